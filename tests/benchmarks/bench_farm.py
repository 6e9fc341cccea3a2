"""Many boards at once: a run on 20 of them against the ideal, and a probe of 100 in one command.

    python tests/benchmarks/bench_farm.py [--boards 20] [--probed 100] [--runs 1000]

Boards are real sshd on loopback addresses; needs root, openssh-server, openssh-client. All of them
share this host's cores with the host's own part, so that a measurement is a fixed number of runs
here, and what is compared is work: the ideal is one process per core that does the same list
(for each board, target and round: a process that loads the artifact, times it and, in the first
round, evaluates) one after the other through the local transport, without SSH, plan or report. The
host's own part of a run, from its start to the report, comes on top of that in ours.

Runtimes are provided first, by ``wherry devices setup``. ``WHERRY_TEST_ENVIRONMENTS`` names a
folder of environments of the host, so that they are not made anew. Memory is the resident memory of
the command and its children; the agents on the boards are sshd's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from wherry.device import DeviceSpec
from wherry.host import Host
from wherry.measurement import MeasureSettings
from wherry.model import Model
from wherry.target import Target
from wherry.testing.workshop import Workshop
from wherry_devices.agent.lease import Lease

HERE = Path(__file__).parent
DIGITS = HERE.parents[1] / "manifests/digits.onnx"
PREPROCESS = {"scale": 1 / 255, "mean": [0.1307], "std": [0.3081]}
OPTIONS: tuple[dict[str, Any], ...] = (  # one target each
    *({"graph_optimization": level} for level in ("all", "extended", "basic", "none")),
    {"spinning": False},
)
ROUNDS, IMAGES = 2, 200
MANIFEST = """\
wherry: 1
model: {{path: {model}, inputs: {{input: {{preprocess: {preprocess}}}}}}}
data: {{evaluation: {{source: mnist5k, slice: "0:{images}"}}}}
metrics: [top1]
targets:
{targets}
measure:
  {{rounds: {rounds}, warmup_s: 0, warmup_runs: 5,
    duration_s: 0.001, min_runs: {runs}, max_runs: {runs}}}
"""
POLL_S = 0.05


class Done(NamedTuple):
    """How a command went: seconds, peak memory in MB, stdout."""

    seconds: float
    megabytes: float
    output: str


def boards(name: str) -> ModuleType:
    """A file of the tests' boards."""
    sys.path.insert(0, str(HERE.parent / "support"))
    from loading import load

    return load(HERE.parent / "boards/ssh" / f"{name}.py")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def home_in(folder: Path) -> dict[str, str]:
    """Variables of a child with a home of wherry's in a folder."""
    home = folder / "wherry"
    home.mkdir(parents=True)
    if named := os.environ.get("WHERRY_TEST_ENVIRONMENTS"):
        (home / "environments").symlink_to(Path(named).absolute())
    return dict(os.environ, WHERRY_HOME=str(home), WHERRY_CONFIG=str(folder / "none"))


def wherry(folder: Path, variables: Mapping[str, str], *arguments: str) -> Done:
    """Run the command there; exits where it fails."""
    begun = time.perf_counter()
    with (folder / "errors").open("w+") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "wherry", *arguments],
            cwd=folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        over, peak = threading.Event(), [0.0]

        def watch() -> None:
            while not over.wait(POLL_S):
                peak[0] = max(peak[0], resident(child.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        output, _ = child.communicate()
        taken = time.perf_counter() - begun
        over.set()
        watcher.join()
        errors.seek(0)
        if child.returncode:
            sys.exit(f"wherry {' '.join(arguments)}: {errors.read()[-3000:]}")
    return Done(taken, peak[0], output)


def resident(pid: int) -> float:
    """MB of a process, its children, and theirs."""
    kilobytes, waiting = 0, [pid]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        with contextlib.suppress(OSError):  # it has just ended
            lines = (folder / "status").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
            for task in (folder / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return kilobytes / 1000


def left_behind(board: Any) -> str | None:
    """What is still on a board after a run."""
    if (holder := Lease(board.home / "lease").holder()) is not None:
        return f"its lease is held by {holder}"
    root = str(board.home / ".wherry").encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if root in (folder / "cmdline").read_bytes().split(b"\0"):
                return f"the agent {folder.name} is left"
    return None


def farm(folder: Path, farmed: Sequence[Any], workstation: Any, runs: int) -> float:
    """Set up and run; the seconds of the run."""
    variables = home_in(folder)
    variables["HOME"] = str(workstation.home)
    names = [f"b{number}" for number in range(len(farmed))]
    inventory(folder, dict(zip(names, farmed, strict=True)), workstation)
    rows = [
        {
            "backend": "onnxruntime",
            "precision": "fp32",
            "threads": 1,
            "device": names,
            "onnxruntime": options,
        }
        for options in OPTIONS
    ]
    text = MANIFEST.format(
        model=DIGITS,
        preprocess=json.dumps(PREPROCESS),
        targets="\n".join(f"  - {json.dumps(row)}" for row in rows),
        images=IMAGES,
        rounds=ROUNDS,
        runs=runs,
    )
    (folder / "farm.yaml").write_text(text)
    done = wherry(folder, variables, "devices", "setup", "--backend", "onnxruntime", *names)
    say(f"setup of {len(farmed)} boards: {done.seconds:.1f} s, {done.megabytes:.0f} MB")
    done = wherry(folder, variables, "run", "farm.yaml", "--json", "report.json", "--quiet")
    results = json.loads((folder / "report.json").read_text())["results"]
    good = sum(result["status"] == "ok" for result in results)
    say(
        f"run on {len(farmed)} boards, {len(OPTIONS)} targets each, {ROUNDS} rounds: "
        f"{done.seconds:.1f} s, {done.megabytes:.0f} MB, {good} of {len(results)} targets"
    )
    left = {name: what for name, board in zip(names, farmed, strict=True)
            if (what := left_behind(board))}  # fmt: skip
    if left or good != len(farmed) * len(OPTIONS):
        sys.exit(f"not all is well: {left or 'targets failed'}")
    say("every lease is free, and no agent is left")
    return done.seconds


def inventory(folder: Path, devices: Mapping[str, Any], workstation: Any) -> None:
    """Write devices.yaml."""
    entries = {
        name: workstation.parameters(
            board,
            root=str(board.home / ".wherry"),
            lease=str(board.home / "lease"),
            python="/usr/bin/python3",
        )
        for name, board in devices.items()
    }
    boards("workstation").write_inventory(folder, entries)


def probe(folder: Path, probed: Sequence[Any], workstation: Any) -> None:
    variables = home_in(folder)
    variables["HOME"] = str(workstation.home)
    names = [f"b{number}" for number in range(len(probed))]
    inventory(folder, dict(zip(names, probed, strict=True)), workstation)
    done = wherry(folder, variables, "devices", "probe", "--json", *names)
    found = json.loads(done.output)
    answered = sum("error" not in board for board in found.values())
    say(
        f"probe of {len(probed)} boards: {done.seconds:.1f} s, {done.megabytes:.0f} MB, "
        f"{answered} answered"
    )
    if answered != len(probed):
        sys.exit(1)


def ideal(folder: Path, jobs: int, runs: int) -> float:
    """Seconds of one process per core that does the same work without SSH."""
    cores = len(os.sched_getaffinity(0))
    workers = []
    for core in range(cores):
        share = len(range(jobs)[core::cores])
        command = [sys.executable, __file__, "--runs", str(runs), "--work", str(share)]
        variables = home_in(folder / f"core{core}")
        workers.append(
            subprocess.Popen(
                command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()  # it is ready
    seconds = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        output, _ = worker.communicate()
        if worker.returncode:
            sys.exit("a worker failed")
        seconds.append(float(output))
    return max(seconds)


def work(share: int, runs: int) -> None:
    """One core's part of the ideal: so many times each target in all of its rounds."""
    host = Host.load()
    backend, transport = host.backends["onnxruntime"], host.transports["local"]
    settings = MeasureSettings(ROUNDS, 0.0, 5, 0.001, runs, runs)
    with tempfile.TemporaryDirectory() as scratch:
        workshop = Workshop(host, Path(scratch))
        model = Model.load(DIGITS).with_static_shapes({"input": (1, 1, 28, 28)}, Path(scratch))
        targets = [
            Target("onnxruntime", "fp32", "local", backend.options(threads=1, **options))
            for options in OPTIONS
        ]
        artifact = workshop.convert(model, targets[0], [{"input": np.zeros((1, 1, 28, 28), "f4")}])
        images = np.random.default_rng(1).integers(0, 256, (IMAGES, 28, 28), dtype=np.uint8)
        device = transport.connect(DeviceSpec("local", "local", transport.parameters()), workshop)
        with device.session() as session:
            session.runtime_lock(backend)
            with session.host(artifact, targets[0], backend, {"input": PREPROCESS}):
                pass  # environments are made, and files are on the disk
            say("ready")
            sys.stdin.readline()
            begun = time.perf_counter()
            for target in targets * share:
                for number in range(ROUNDS):
                    with session.host(artifact, target, backend, {"input": PREPROCESS}) as runner:
                        runner.time({"input": images[0]}, settings)
                        if number == 0:
                            runner.peak_memory_bytes()
                            for _ in runner.infer({"input": image} for image in images):
                                pass
            say(f"{time.perf_counter() - begun:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--boards", type=int, default=20)
    parser.add_argument("--probed", type=int, default=100)
    parser.add_argument("--runs", type=int, default=1000, help="of a target in each round")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work is not None:
        work(asked.work, asked.runs)
        return
    openssh = boards("openssh")
    if (why := openssh.missing()) is not None:
        sys.exit(why)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        workstation = boards("workstation").Workstation(folder / "workstation")
        made = []
        for number in range(max(asked.boards, asked.probed)):
            address = f"127.0.{20 + number // 200}.{1 + number % 200}"
            board = stack.enter_context(openssh.OpenSsh(folder / f"sshd{number}", address))
            workstation.enter(board)
            made.append(board)
        if asked.probed:
            probe(folder / "probe", made[: asked.probed], workstation)
        if asked.boards:
            ours = farm(folder / "farm", made[: asked.boards], workstation, asked.runs)
            best = ideal(folder / "ideal", asked.boards, asked.runs)
            say(
                f"the same work, one process per core: {best:.1f} s; ours / ideal {ours / best:.2f}"
            )


if __name__ == "__main__":
    main()

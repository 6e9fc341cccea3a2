"""Boards over SSH against their peers: scp, and the same agent without SSH.

    python tests/benchmarks/bench_ssh.py [--rounds 5]

Boards are real sshd on a loopback address; needs root, openssh-server, openssh-client. Printed are
medians of ratios of pairs in the same run, with the least and the greatest:

- shipping: 100 MiB, and 500 files of 20 kB, from connecting to the folder that stands on the board,
  against the whole of ``scp``, in random order. Ours compares every hash on the board.
- evaluation: 4,800 images as uint8 through ONNX Runtime, over SSH and with 20 ms of added round
  trip, against the local agent.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from wherry.artifact import hash_file
from wherry.device import DeviceSpec
from wherry.host import Host
from wherry.model import Model
from wherry.target import Target
from wherry.testing.workshop import Workshop

HERE = Path(__file__).parent
DIGITS = HERE.parents[1] / "manifests/digits.onnx"
IMAGES = 4800
SPEC = {"scale": 1 / 255, "mean": [0.1307], "std": [0.3081]}


def boards(name: str) -> ModuleType:
    """A file of the tests' boards."""
    sys.path.insert(0, str(HERE.parent / "support"))
    from loading import load

    return load(HERE.parent / "boards/ssh" / f"{name}.py")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def show(name: str, ratios: list[float], note: str) -> None:
    say(f"{name:42} {statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]  {note}")


class Bench:
    def __init__(self, folder: Path, board: object, workstation: object) -> None:
        self.folder, self.board, self.workstation = folder, board, workstation
        self.host = Host.load()
        self.workshop = Workshop(self.host, folder)

    def device(self, name: str, port: int | None = None, host: str | None = None):
        transport = self.host.transports[name]
        values = {}
        if name == "ssh":
            values = self.workstation.parameters(
                self.board,
                root=str(self.board.home / ".wherry"),
                lease=str(self.board.home / "lease"),
                python="/usr/bin/python3",
            )
            values |= {"port": port or self.board.port, "host": host or self.board.host}
        spec = DeviceSpec("board", name, transport.parameters.model_validate(values))
        return transport.connect(spec, self.workshop)

    def shipping(self, rounds: int) -> None:
        options = ["-q", "-i", self.workstation.key, "-P", str(self.board.port)]
        options += ["-o", f"UserKnownHostsFile={self.workstation.known_hosts}"]
        for name, count, size in (("100 MiB", 1, 100 << 20), ("500 files of 20 kB", 500, 20_000)):
            ratios, peers = [], []
            taken: dict[str, float] = {}
            for number in range(rounds):
                folder = self.folder / f"ship-{count}-{number}"
                folder.mkdir()
                for index in range(count):
                    (folder / f"f{index}").write_bytes(os.urandom(size))
                files = {path.name: (hash_file(path), path) for path in folder.iterdir()}
                there = f"{self.board.user}@{self.board.host}:{self.board.home}/scp-{folder.name}"

                def ours(files=files) -> None:
                    with self.device("ssh").session(lease=False) as session:
                        session.ship(files)

                def scp(folder=folder, there=there) -> None:
                    subprocess.run(["scp", *options, "-r", str(folder), there], check=True)

                for side in random.sample(["scp", "ours"], 2):
                    os.sync()  # what was written before is not this side's to wait for
                    taken[side] = seconds({"scp": scp, "ours": ours}[side])
                peers.append(taken["scp"])
                ratios.append(taken["ours"] / taken["scp"])
            show(f"shipping {name} / scp", ratios, f"scp {statistics.median(peers):.2f} s")

    def evaluation(self, rounds: int, far: object) -> None:
        backend = self.host.backends["onnxruntime"]
        target = Target("onnxruntime", "fp32", "board", backend.options())
        source = Model.load(DIGITS)
        (name,) = (spec.name for spec in source.inputs)
        model = source.with_static_shapes({name: (1, 1, 28, 28)}, self.folder)
        shape = {name: np.zeros((1, 1, 28, 28), np.float32)}
        artifact = self.workshop.convert(model, target, [shape])
        images = np.random.default_rng(1).integers(0, 256, (IMAGES, 28, 28), dtype=np.uint8)
        devices = {
            "local": self.device("local"),
            "ssh": self.device("ssh"),
            "ssh, 20 ms away": self.device("ssh", far.port, far.host),
        }
        taken: dict[str, list[float]] = {label: [] for label in devices}
        for _ in range(rounds):
            for label, device in devices.items():
                with (
                    device.session(lease=False) as session,
                    session.host(artifact, target, backend, {name: SPEC}) as runner,
                ):
                    samples = ({name: image} for image in images)
                    taken[label].append(seconds(lambda r=runner, s=samples: list(r.infer(s))))
        for label in list(devices)[1:]:
            ratios = [a / b for a, b in zip(taken["local"], taken[label], strict=True)]
            show(
                f"throughput {label} / local",
                ratios,
                f"local {IMAGES / statistics.median(taken['local']):.0f} images/s",
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    openssh = boards("openssh")
    if (why := openssh.missing()) is not None:
        sys.exit(why)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        workstation = boards("workstation").Workstation(folder / "workstation")
        os.environ["HOME"] = str(workstation.home)
        with (
            openssh.OpenSsh(folder / "sshd", "127.0.9.99") as board,
            boards("proxy").Proxy((board.host, board.port), delay_s=0.010) as far,
        ):
            workstation.enter(board)
            workstation.trust(board, host=far.host, port=far.port)
            bench = Bench(folder, board, workstation)
            say(f"median [least, greatest] of {rounds} pairs")
            bench.shipping(rounds)
            bench.evaluation(rounds, far)


if __name__ == "__main__":
    main()

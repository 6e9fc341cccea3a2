"""Tries many models on a backend: converts them in parallel, runs them in one go, compares.

What the suite of ``wherry.testing`` does for one network in many processes takes a second and
more; here it has to be done for hundreds.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from wherry.artifact import Artifact
from wherry.engine import worker
from wherry.errors import ParityError, ToolError, UnsupportedError
from wherry.host import Host
from wherry.model import Model
from wherry.native import Wanted
from wherry.parity import Parity, check, compare
from wherry.reference import Reference
from wherry.target import Target
from wherry.testing.workshop import Workshop

HERE = Path(__file__).parent
BINDING = HERE.parents[1] / "core" / "wherry" / "binding.py"


@dataclass
class Trial:
    """What became of one model.

    Attributes:
        status: ``right``, ``refused`` (with a reason, before anything ran), ``failed`` (the
            converter did), ``wrong`` (parity), ``broken`` (the runner failed or crashed).
        words: the error's, else empty.
    """

    model: Model
    status: str = ""
    words: str = ""
    artifact: Artifact | None = None
    parity: Parity | None = None


class Trials:
    """A backend's trials.

    Args:
        name: of the backend.
        folder: an empty one.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.host = Host.load()
        self.backend = self.host.backends[name]
        self.folder = folder
        self.workshop = Workshop(self.host, folder)

    def run(
        self,
        models: Mapping[str, onnx.ModelProto],
        samples: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
        precision: str = "fp32",
        **options: Any,
    ) -> dict[str, Trial]:
        """Try all models; ``samples`` are those of each."""
        backend = self.backend
        target = Target(backend.name, precision, "local", backend.options(**options))
        if backend.converter is not None:
            self.workshop.environment(backend.converter)  # once, and not in every thread
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            made = pool.map(
                lambda name: self._convert(name, models[name], target, samples[name]), models
            )
            trials = dict(zip(models, made, strict=True))
        converted = {name: trial for name, trial in trials.items() if trial.artifact}
        for name in converted:
            np.savez(self._path(name, "in.npz"), **{
                f"{index}/{tensor}": array
                for index, sample in enumerate(samples[name])
                for tensor, array in sample.items()
            })  # fmt: skip
        self._drive(converted, target)
        for name, trial in converted.items():
            self._compare(name, trial, samples[name], precision)
        return trials

    def _path(self, name: str, ending: str) -> Path:
        return self.folder / f"{name}.{ending}"

    def _convert(
        self,
        name: str,
        proto: onnx.ModelProto,
        target: Target,
        given: Sequence[Mapping[str, np.ndarray]],
    ) -> Trial:
        source, directory = self._path(name, "onnx"), self._path(name, "static")
        onnx.save(proto, source)
        directory.mkdir()
        trial = Trial(Model.load(source).with_static_shapes({}, directory))
        try:
            trial.artifact = self.workshop.convert(trial.model, target, given)
        except (UnsupportedError, ToolError) as error:
            trial.status = "refused" if isinstance(error, UnsupportedError) else "failed"
            trial.words = str(error)
        return trial

    def _drive(self, trials: Mapping[str, Trial], target: Target) -> None:
        cases = [
            {
                "runner": str(self.backend.runner),
                "binding": str(BINDING),
                "directory": str(trial.artifact.directory),
                "artifact": trial.artifact.to_json(),
                "options": target.options.model_dump(mode="json"),
                "board": self._board(),
                "inputs": str(self._path(name, "in.npz")),
                "outputs": str(self._path(name, "out.npz")),
            }
            for name, trial in trials.items()
            if trial.artifact
        ]
        path = self.folder / "cases.json"
        path.write_text(json.dumps(cases))
        python = Path(sys.executable)
        if self.backend.runtime:
            python = self.workshop.environment(self.backend.runtime[0])
        with (self.folder / "drive.log").open("w") as log:
            subprocess.run(
                [python, HERE / "drive.py", path], check=True, stdout=log, stderr=log, timeout=800
            )

    def _board(self) -> dict[str, Any]:
        """What the runner's ``prepare`` is told of this machine."""
        cache, native = self.folder / "cache", self.folder / "native"
        cache.mkdir(exist_ok=True)
        machine = platform.machine()
        if self.backend.native is not None and not native.exists():
            native.mkdir()
            files = self.backend.native.files(Wanted(machine), self.workshop)
            for name, (_, path) in files.items():
                (native / name).symlink_to(path)
        where = str(native) if native.exists() else None
        return {"tools": {}, "cache": str(cache), "native": where, "machine": machine}

    def _compare(
        self, name: str, trial: Trial, samples: Sequence[Mapping[str, np.ndarray]], precision: str
    ) -> None:
        error, results = self._path(name, "out.npz.error"), self._path(name, "out.npz")
        if error.exists() or not results.exists():
            trial.status = "broken"
            trial.words = error.read_text() if error.exists() else "it crashed"
            return
        outputs: list[dict[str, np.ndarray]] = [{} for _ in samples]
        with np.load(results) as arrays:
            for key, array in arrays.items():
                index, _, tensor = key.partition("/")
                outputs[int(index)][tensor] = array
        reference = Reference(trial.model)
        wanted = [reference.run(sample) for sample in samples]
        try:
            trial.parity = compare(*without_nans(outputs, wanted))
            check(trial.parity, self.backend.threshold(precision), name)
        except ParityError as wrong:
            trial.status, trial.words = "wrong", str(wrong)
        else:
            trial.status = "right"


def without_nans(
    outputs: Sequence[Mapping[str, np.ndarray]], wanted: Sequence[Mapping[str, np.ndarray]]
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Both with zeros where both are NaN; one of them alone stays what it is."""
    ours = [dict(sample) for sample in outputs]
    theirs = [dict(sample) for sample in wanted]
    for mine, other in zip(ours, theirs, strict=True):
        for name, array in other.items():
            if array.dtype.kind != "f" or name not in mine or mine[name].shape != array.shape:
                continue
            both = np.isnan(array) & np.isnan(mine[name])
            mine[name], other[name] = np.where(both, 0, mine[name]), np.where(both, 0, array)
    return ours, theirs


@contextlib.contextmanager
def warm(time_s: float = 120.0) -> Iterator[None]:
    """Within, tools go on running from one request to the next; see `Warm`."""
    tools = Warm(time_s)
    try:
        with tools.taken():
            yield
    finally:
        tools.close()


class Warm:
    """Tools that go on running: to start one takes longer than to convert a small network.

    Args:
        time_s: that one request may take.
    """

    def __init__(self, time_s: float = 120.0) -> None:
        self._time_s = time_s
        self._idle: dict[Path, queue.LifoQueue[subprocess.Popen[str]]] = {}
        self._all: list[subprocess.Popen[str]] = []

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Within, a `wherry.testing.workshop.Workshop` runs its tools by these."""
        workshop = sys.modules["wherry.testing.workshop"]
        own, workshop.run_tool = workshop.run_tool, self.run_tool
        try:
            yield
        finally:
            workshop.run_tool = own

    def run_tool(
        self, python: Path, script: Path, request: Mapping[str, Any], *, scratch: Path, **_: Any
    ) -> dict[str, Any]:
        """As `wherry.engine.worker.run_tool`."""
        idle = self._idle.setdefault(python, queue.LifoQueue())
        try:
            tool = idle.get_nowait()
        except queue.Empty:
            tool = subprocess.Popen(
                [python, HERE / "warm.py"], env=worker._environment(python, scratch, None),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            self._all.append(tool)
        assert tool.stdin is not None and tool.stdout is not None
        asked, answered = scratch / "request.json", scratch / "response.json"
        asked.write_text(json.dumps(request))
        paths = {"script": str(script), "request": str(asked), "response": str(answered)}
        timer = threading.Timer(self._time_s, tool.kill)
        timer.start()
        tool.stdin.write(json.dumps(paths) + "\n")
        tool.stdin.flush()
        line = tool.stdout.readline()
        timer.cancel()
        if not line:
            raise ToolError(f"{script.name} crashed, or took {self._time_s:g} s")
        idle.put(tool)
        if said := json.loads(line):
            raise ToolError(said)
        response: dict[str, Any] = json.loads(answered.read_text())
        if error := response.get("error"):
            kind = UnsupportedError if error.get("unsupported") else ToolError
            raise kind(error["message"], where=error.get("where"), remedy=error.get("remedy"))
        return response

    def close(self) -> None:
        for tool in self._all:
            tool.communicate()  # its input ends, and so does it

"""The run role: hosts one runner in its runtime's environment.

Loads it, runs it once, answers samples as they stream in, times it, and tells its peak memory. A
thread takes the frames in, so that reading overlaps running, and ends the process at once where the
host hangs up. Whatever the runner raises is told to the host, and ends this process.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from . import layers, sensors, sustained, timing, tools
from .frames import Frame, FrameError, Tensor, from_array, to_array
from .lease import Lease, Runs
from .wire import Wire

_GRACE_S = 10  # the host, which knows more, ends a hanging process first


class Hosting:
    """See the module.

    Args:
        wire: to the host.
        root: the folder of ours on this board.
        service: process id of the service agent that we belong to.
    """

    def __init__(self, wire: Wire, root: Path, service: int) -> None:
        self._wire = wire
        self._root = root
        self._runs = Runs(root / "runs")
        self._service = service
        self._frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._runner: Any = None
        self._binding: Any = None
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._resident_before = 0
        self._answers = {
            "load": self._load,
            "infer": self._infer,
            "time": self._time,
            "sustain": self._sustain,
            "layers": self._layers,
            "memory": self._memory,
            "close": self._close,
        }

    def serve(self) -> None:
        """Answer until the host hangs up; never returns."""
        sys.dont_write_bytecode = (
            False  # we are all there; the runtime's packages start faster with
        )
        self._runs.add(self._service)
        self._wire.write({"op": "hello", "pid": os.getpid()})
        threading.Thread(target=self._take, daemon=True).start()
        while True:
            frame = self._frames.get()
            # A runtime that hangs with the interpreter's lock held ends by the kernel's hand.
            signal.alarm(int(frame.header["limit_s"]) + _GRACE_S)
            try:
                self._answers[frame.header["op"]](frame)
            except Exception as error:  # noqa: BLE001 -- a runner may raise anything; the host is told
                traceback.print_exc()
                self._wire.write({"error": f"{type(error).__name__}: {error}"})
                self._exit(1)
            signal.alarm(0)

    def _take(self) -> None:
        try:
            while True:
                frame = self._wire.read()
                if frame is None:
                    self._exit(0)
                else:
                    self._frames.put(frame)
        except FrameError as error:
            sys.stderr.write(f"wherry-agent: {error}\n")
            self._exit(1)

    def _exit(self, status: int) -> None:
        """End without the runtime's destructors: some crash, some wait for their threads."""
        self._runs.remove()
        sys.stderr.flush()
        os._exit(status)

    def _load(self, frame: Frame) -> None:
        header = frame.header
        preprocess = _module("wherry_preprocess", header["preprocess_file"])
        binding = self._binding = _module("wherry_binding", header["binding_file"])
        module = _module("wherry_runner", header["runner_file"])
        # not in the header, which is short: a description names every layer
        artifact = json.loads(bytes(frame.tensors["artifact"].data))
        directory, record = header["directory"], {}
        if hasattr(module, "prepare"):
            begun = time.perf_counter_ns()
            told = module.prepare(directory, artifact, header["options"], self._board(header))
            if "unavailable" in told:
                self._wire.write({"unavailable": told["unavailable"]})
                return
            directory = told.get("directory", directory)
            prepare_ms = (time.perf_counter_ns() - begun) / 1e6
            record = {**told.get("record", {}), "prepare_ms": prepare_ms}
        specs = header["preprocess"]
        self._inputs = [
            binding.Input(each, specs.get(each["onnx"], {}), preprocess.apply)
            for each in artifact["inputs"]
        ]
        self._outputs = [binding.Output(each) for each in artifact["outputs"]]
        zeros = {entry.runtime: entry.zeros() for entry in self._inputs}
        _reset_peak()
        self._resident_before = _memory_bytes("VmRSS")
        begun = time.perf_counter_ns()
        self._runner = module.load(directory, artifact, header["options"])
        loaded = time.perf_counter_ns()
        self._runner.set_inputs(zeros)
        self._runner.run()
        values = self._runner.get_outputs()
        ended = time.perf_counter_ns()
        for output in self._outputs:  # what does not fit is told at once
            output.gather(0, 1, binding.returned(values, output.runtime))
        versions = module.versions() if hasattr(module, "versions") else {}
        answer = {
            "load_ms": (loaded - begun) / 1e6,
            "first_ms": (ended - loaded) / 1e6,
            "versions": versions,
            "record": record,
        }
        self._wire.write(answer)

    def _board(self, header: dict[str, Any]) -> dict[str, Any]:
        """What a runner's ``prepare`` is told of the board."""
        cache = self._root / "cache" / header["backend"]
        cache.mkdir(parents=True, exist_ok=True)
        return {
            "tools": tools.find(header["wanted"], header["named"]),
            "cache": str(cache),
            "native": header["native"],
            "machine": os.uname().machine,
        }

    def _infer(self, frame: Frame) -> None:
        """Run the samples of a frame, whose tensors are [samples, *sample]."""
        runner, inputs, outputs = self._runner, self._inputs, self._outputs
        count: int = frame.header["count"]
        samples = [(entry, to_array(frame.tensors[entry.onnx])) for entry in inputs]
        for index in range(count):
            runner.set_inputs({entry.runtime: entry.prepare(raw[index]) for entry, raw in samples})
            runner.run()
            values = runner.get_outputs()
            for output in outputs:
                output.gather(index, count, self._binding.returned(values, output.runtime))
        tensors = [from_array(output.onnx, output.gathered()) for output in outputs]
        self._wire.write({"count": count}, tensors)

    def _time(self, frame: Frame) -> None:
        """Time one sample, whose tensors are as in a frame of one sample."""
        inputs, reader = self._timed_inputs(frame), sensors.Reader()
        plan = timing.Plan(**frame.header["plan"])
        timed = timing.measure(
            self._runner, inputs, plan, reader.read, ask=lambda: reader.read(ask=True)
        )
        answer = {
            "warmup_runs": timed.warmup_runs,
            "steady": timed.steady,
            "sensors": timed.sensors,
            "timed_by": timed.timed_by,
            "record": timed.record,
        }
        samples = [
            Tensor(name, "uint64", (len(values),), memoryview(values))
            for name, values in (("infer_ns", timed.infer_ns), ("total_ns", timed.total_ns))
        ]
        self._wire.write(answer, samples)

    def _sustain(self, frame: Frame) -> None:
        """Run one sample without pause."""
        inputs, reader = self._timed_inputs(frame), sensors.Reader()
        duration_s = frame.header["duration_s"]
        points = sustained.sustain(self._runner, inputs, duration_s, reader.read)
        self._wire.write({"points": points})

    def _layers(self, frame: Frame) -> None:
        """Time the layers of one sample; ``names`` is null where the runner does not."""
        inputs = self._timed_inputs(frame)
        found = layers.time_layers(self._runner, inputs, frame.header["duration_s"])
        if found is None:
            self._wire.write({"names": None})
            return
        # numbered: names of layers may be alike but for what a frame cannot say
        times = [
            Tensor(str(index), "uint64", (len(values),), memoryview(values))
            for index, values in enumerate(found.values())
        ]
        self._wire.write({"names": list(found)}, times)

    def _timed_inputs(self, frame: Frame) -> dict[str, Any]:
        """A sample in the runtime's form; raises RuntimeError where the lease is not ours."""
        holder = Lease(Path(frame.header["lease"])).holder()
        if holder is None or holder.get("token") != frame.header["token"]:
            raise RuntimeError("the lease of the board is no longer ours: nothing may be timed")
        return {
            entry.runtime: entry.prepare(to_array(frame.tensors[entry.onnx])[0])
            for entry in self._inputs
        }

    def _memory(self, _frame: Frame) -> None:
        if hasattr(self._runner, "peak_memory_bytes"):  # its runtime is another process
            self._wire.write({"peak_bytes": self._runner.peak_memory_bytes()})
            return
        peak = _memory_bytes("VmHWM")
        told = peak > 0 and self._resident_before > 0
        self._wire.write({"peak_bytes": max(0, peak - self._resident_before) if told else None})

    def _close(self, _frame: Frame) -> None:
        if self._runner is not None:
            self._runner.close()
        self._wire.write({"closed": True})
        self._exit(0)


class _Uncached(importlib.machinery.SourceFileLoader):
    """Leaves no bytecode in the board's store: on a full disk it might be half a file."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Keep nothing."""


def _module(name: str, path: str) -> ModuleType:
    """Import a file that was shipped to the board; it may import those beside it relatively."""
    loader, folder = _Uncached(name, path), str(Path(path).parent)
    finder = importlib.machinery.FileFinder(folder, (_Uncached, [".py"]))
    sys.path_importer_cache[folder] = finder
    spec = importlib.util.spec_from_file_location(
        name, path, loader=loader, submodule_search_locations=[folder]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _reset_peak() -> None:
    """Begin the peak of resident memory anew; without it, what imports took counts too."""
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:  # not allowed here: see above
        return


def _memory_bytes(field: str) -> int:
    """A field of /proc/self/status, bytes; 0 where the board does not tell."""
    try:
        lines = Path("/proc/self/status").read_text("utf-8", errors="replace").splitlines()
    except OSError:  # no /proc: does not tell
        return 0
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0

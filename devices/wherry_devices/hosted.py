"""A hosted runner: the host's side of an agent's process that has loaded an artifact."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import wherry
from wherry.artifact import Artifact, Binding
from wherry.device import RawTiming
from wherry.errors import DataError, DeviceError, ToolError, UnsupportedError
from wherry.measurement import MeasureSettings
from wherry.target import Backend, Target
from wherry_devices.agent import frames, layers, timing
from wherry_devices.board import Board, as_sensors
from wherry_devices.channel import AgentEnded, AgentSilent, Channel

SHIPPED = tuple(Path(wherry.__file__).parent / name for name in ("preprocess.py", "binding.py"))
"""Files of the core that run on a board, beside the runner."""

_IN_FLIGHT = 4  # frames of samples that are sent and not yet answered
_FRAME_SAMPLES = 64
_FRAME_BYTES = 1 << 20  # of inputs
_ANSWER_BYTES = 8 << 20  # of outputs, about
_FRAME_MS = 1000.0  # of running, about
_START_S = 60.0
_CLOSE_S = 5.0
_WARMUP_SLACK = timing.WARMUP_BOUND + 1
_LAYERS_SLACK = 10  # what timing single layers may add
_EXTRA_RUNS = 10  # beside those that the settings ask for: windows of warm-up, runs after a pause


class Hosted:
    """See `wherry.device.HostedRunner`; a process that is started, and then loads.

    Args:
        channel: to an agent in the role ``run``.
        board: the board that it runs on.
        artifact: what it will load.
        target: for errors.
        limit_s: how long one command may take.
    """

    def __init__(
        self, channel: Channel, board: Board, artifact: Artifact, target: Target, limit_s: float
    ) -> None:
        self._channel = channel
        self._board = board
        self._artifact = artifact
        self._target = target
        self._limit_s = limit_s
        self._inputs = [binding.onnx for binding in artifact.inputs]
        self._usable = True
        self._pid: int | None = None
        self.load_ms = 0.0
        self.first_ms = 0.0
        self.versions: Mapping[str, Any] = {}
        self.record: Mapping[str, Any] = {}
        board.watch(channel)

    def load(
        self,
        directory: str,
        code: str,
        backend: Backend,
        preprocess: Mapping[str, Mapping[str, Any]],
        tools: Mapping[str, str],
        native: str | None = None,
    ) -> None:
        """Load the artifact and run it once.

        Args:
            directory: of the artifact, on the board.
            code: of runner.py and `SHIPPED`, on the board.
            backend: the artifact's.
            preprocess: per ONNX input, its declared preprocessing.
            tools: where the inventory says that the owner's tools are.
            native: folder of the backend's machine code, on the board.

        Raises:
            UnsupportedError: the board does not have what the runner needs of it.
        """
        self._pid = int(self._receive("start", _START_S).header["pid"])  # its hello
        described = json.dumps(self._artifact.to_json()).encode()
        answer = self._ask(
            "load",
            [frames.Tensor("artifact", "uint8", (len(described),), memoryview(described))],
            directory=directory,
            runner_file=f"{code}/runner.py",
            preprocess_file=f"{code}/preprocess.py",
            binding_file=f"{code}/binding.py",
            options=self._target.options.model_dump(mode="json"),
            preprocess={name: dict(spec) for name, spec in preprocess.items()},
            backend=backend.name,
            wanted={name: list(usual) for name, usual in backend.tools.items()},
            named={name: path for name, path in tools.items() if name in backend.tools},
            native=native,
            limit_s=self._limit_s + backend.prepare_s,
        ).header
        if "unavailable" in answer:
            raise self._unavailable(answer["unavailable"])
        self.load_ms = float(answer["load_ms"])
        self.first_ms = float(answer["first_ms"])
        self.versions = answer["versions"]
        self.record = answer["record"]

    def infer(
        self, samples: Iterable[Mapping[str, np.ndarray]]
    ) -> Iterator[Mapping[str, np.ndarray]]:
        """See `wherry.device.HostedRunner.infer`."""
        under_way = 0
        try:
            for batch in self._batches(samples):
                self._send("infer", _stack(batch), count=len(batch))
                under_way += 1
                if under_way == _IN_FLIGHT:
                    under_way -= 1
                    yield from self._outputs()
            while under_way:
                under_way -= 1
                yield from self._outputs()
        finally:
            if self._usable:  # the caller stopped early: take the answers that are still coming
                for _ in range(under_way):
                    self._receive("infer", self._limit_s)

    def time(self, inputs: Mapping[str, np.ndarray], settings: MeasureSettings) -> RawTiming:
        """See `wherry.device.HostedRunner.time`."""
        self._check_lease()
        plan = dataclasses.asdict(settings)
        plan = {name: plan[name] for name in timing.Plan._fields}
        runs = settings.warmup_runs + settings.min_runs + _EXTRA_RUNS
        expected_s = (
            _WARMUP_SLACK * settings.warmup_s + settings.duration_s + runs * self.first_ms / 1000
        )
        answer = self._ask(
            "time",
            _stack([self._taken(inputs)]),
            limit_s=self._limit_s + expected_s,
            plan=plan,
            token=self._board.token,
            lease=self._board.lease_file,
        )
        self._board.check()  # the lease was ours until the end
        infer_ns, total_ns = (
            frames.to_array(answer.tensors[name]) for name in ("infer_ns", "total_ns")
        )
        return RawTiming(
            infer_ns=infer_ns,
            total_ns=total_ns,
            warmup_runs=int(answer.header["warmup_runs"]),
            steady=bool(answer.header["steady"]),
            sensors=tuple(as_sensors(reading) for reading in answer.header["sensors"]),
            timed_by=answer.header["timed_by"],
            record=answer.header["record"],
        )

    def sustain(
        self, inputs: Mapping[str, np.ndarray], duration_s: float
    ) -> Sequence[Mapping[str, Any]]:
        """See `wherry.device.HostedRunner.sustain`."""
        self._check_lease()
        answer = self._ask(
            "sustain",
            _stack([self._taken(inputs)]),
            limit_s=self._limit_s + duration_s,
            duration_s=duration_s,
            token=self._board.token,
            lease=self._board.lease_file,
        )
        self._board.check()  # as above
        points: list[Mapping[str, Any]] = answer.header["points"]
        return points

    def time_layers(
        self, inputs: Mapping[str, np.ndarray], duration_s: float
    ) -> Mapping[str, np.ndarray] | None:
        """See `wherry.device.HostedRunner.time_layers`."""
        self._check_lease()
        expected_s = duration_s + layers.LEAST_RUNS * self.first_ms / 1000
        answer = self._ask(
            "layers",
            _stack([self._taken(inputs)]),
            limit_s=self._limit_s + _LAYERS_SLACK * expected_s,
            duration_s=duration_s,
            token=self._board.token,
            lease=self._board.lease_file,
        )
        self._board.check()  # as above
        names: Sequence[str] | None = answer.header["names"]
        if names is None:
            return None
        return {
            name: frames.to_array(answer.tensors[str(index)]) for index, name in enumerate(names)
        }

    def _check_lease(self) -> None:
        if self._board.token is None:
            raise DeviceError(
                "nothing may be timed without the lease",
                where=self._board.name,
                remedy="Open the session with lease=True.",
            )

    def peak_memory_bytes(self) -> int | None:
        """See `wherry.device.HostedRunner.peak_memory_bytes`."""
        peak = self._ask("memory").header["peak_bytes"]
        return None if peak is None else int(peak)

    def close(self) -> None:
        """Let the runner close, and end the process; end it anyway where it had failed."""
        if not self._usable:
            self.abandon()
            return
        try:
            self._ask("close", limit_s=_CLOSE_S)
        except BaseException:
            self.abandon()
            raise
        self._usable = False
        self._channel.close(_CLOSE_S)

    def abandon(self) -> None:
        """End the process, whatever it is doing."""
        self._usable = False
        self._channel.close(0)
        if self._pid is not None:  # closing a connection does not end a process that hangs
            self._board.end_run(self._pid)

    def _batches(
        self, samples: Iterable[Mapping[str, np.ndarray]]
    ) -> Iterator[list[Mapping[str, np.ndarray]]]:
        """Successive samples that fit in one frame: of the same shapes and types, not too many."""
        batch: list[Mapping[str, np.ndarray]] = []
        form: object = None
        most = 1
        for sample in map(self._taken, samples):
            this = [(array.shape, array.dtype) for array in sample.values()]
            if batch and (len(batch) == most or this != form):
                yield batch
                batch = []
            if this != form:
                form, most = this, self._most(sample)
            batch.append(sample)
        if batch:
            yield batch

    def _most(self, sample: Mapping[str, np.ndarray]) -> int:
        """How many samples like this one go into a frame."""
        taken = sum(array.nbytes for array in sample.values())
        given = sum(_answer_bytes(binding) for binding in self._artifact.outputs)
        limits = (
            _FRAME_SAMPLES,
            _FRAME_BYTES // max(1, taken),
            _ANSWER_BYTES // max(1, given),
            int(_FRAME_MS / self.first_ms),
        )
        return max(1, min(limits))

    def _taken(self, sample: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """What the artifact takes of a sample, in its order."""
        try:
            return {name: sample[name] for name in self._inputs}
        except KeyError as error:
            raise DataError(
                f"a sample has the inputs {sorted(sample)}, the model takes {self._inputs}",
                remedy="Name the dataset's inputs as the model does.",
            ) from error

    def _outputs(self) -> Iterator[Mapping[str, np.ndarray]]:
        answer = self._receive("infer", self._limit_s)
        arrays = {name: frames.to_array(tensor) for name, tensor in answer.tensors.items()}
        for index in range(answer.header["count"]):
            yield {name: array[index] for name, array in arrays.items()}

    def _ask(
        self,
        command: str,
        tensors: Sequence[frames.Tensor] = (),
        limit_s: float | None = None,
        **fields: Any,
    ) -> frames.Frame:
        limit_s = self._limit_s if limit_s is None else limit_s
        self._send(command, tensors, limit_s=limit_s, **fields)
        return self._receive(command, limit_s)

    def _send(self, command: str, tensors: Sequence[frames.Tensor] = (), **fields: Any) -> None:
        try:
            self._channel.send({"limit_s": self._limit_s, **fields, "op": command}, tensors)
        except frames.FrameError as error:
            raise DataError(
                f"a sample cannot be sent to the board: {error}",
                where=self._board.name,
                remedy="Use smaller samples.",
            ) from error

    def _receive(self, command: str, limit_s: float) -> frames.Frame:
        try:
            frame = self._channel.receive(limit_s)
        except AgentEnded as ended:
            self._usable = False
            self._board.check()  # a lost board is not the runner's fault
            raise self._error(command, _how_it_ended(ended), ended.stderr) from ended
        except AgentSilent as silent:
            self._usable = False
            self._channel.kill("it took too long")
            self._board.check()
            raise self._error(command, f"gave {silent} and was ended", "") from silent
        if "error" in frame.header:
            self._usable = False
            self._board.check()
            raise self._error(command, f"failed: {frame.header['error']}", "")
        return frame

    def _unavailable(self, told: Mapping[str, Any]) -> UnsupportedError:
        where = f"{self._board.name}: {told['where']}" if told.get("where") else self._board.name
        return UnsupportedError(str(told["message"]), where=where, remedy=told.get("remedy"))

    def _error(self, command: str, what: str, stderr: str) -> ToolError:
        text = f"{self._target.describe()}: the runner {what} (command {command!r})"
        if stderr:
            text += f"; it last said: {stderr}"
        return ToolError(
            text,
            where=self._board.name,
            remedy="If another backend runs this model, the fault lies in this runtime or runner.",
        )


def _stack(batch: Sequence[Mapping[str, np.ndarray]]) -> list[frames.Tensor]:
    """Tensors [samples, *sample] by input."""
    return [
        frames.from_array(name, np.stack([sample[name] for sample in batch])) for name in batch[0]
    ]


def _answer_bytes(binding: Binding) -> int:
    return int(np.prod(binding.shape, dtype=np.int64)) * np.dtype(binding.dtype).itemsize


def _how_it_ended(ended: AgentEnded) -> str:
    """The end of a runner's process, for people."""
    if ended.reason:
        return f"broke off: {ended.reason}"
    if ended.status is None:
        return "ended, and how is not known"
    if ended.status >= 0:
        return f"ended with status {ended.status}"
    try:
        name = signal.Signals(-ended.status).name
    except ValueError:
        name = f"signal {-ended.status}"
    hint = {"SIGKILL": ", perhaps by the kernel for want of memory", "SIGALRM": ": it hung"}
    return f"crashed with {name}{hint.get(name, '')}"

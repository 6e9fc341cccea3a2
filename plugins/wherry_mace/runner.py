"""Runs a network on a board with the owner's ``mace_run`` (Python 3.8, numpy).

For samples one mace_run runs as long as the runner does: its ``--input_dir`` takes one file after
the other from a folder, and here the files are named pipes, so that it waits in each for the next
sample and its engine is made once. (It reads the folder's names in the order in which any program
does.) For times it is started anew, with ``--restart_round``: it tells only the average of
``--round`` inferences, but once for each engine that it makes.

mace_run tries for ever where an engine cannot be made: whatever it says of an error ends it, and so
does a limit of time. What it says is read by a terminal of its own, for it keeps its lines back
where it writes to a file. It ends when we do, however that comes about.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pty
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SLOTS = 512  # samples that one process takes
ENGINE_S, RUN_S = 180.0, 120.0  # longest: to make an engine, for one inference
PROBE_S = 30.0
SIZING_RUNS = 2
STEADY = 0.02  # the medians of the end of the warm-up and of what follows differ by no more
_AFFINITY = {"none": 0, "big": 1, "little": 2}
_HINTS = {"default": 0, "low": 1, "normal": 2, "high": 3}

_SAID = re.compile(r"([IWEF]) (\S.*?):(\d+)\] (.*)")
_FAILED = " failed with error: "
_RUNNING = ("net.cc", "flow.cc", "engine.cc")
"""Ends of names of MACE's files that run networks: with --input_dir it goes on where they fail."""
_REMARKS = {"env.cc", "thread_pool.cc", "file_system.cc"}
"""MACE's files that call an error what a board may well lack: clocks to read, cores to pin."""
_VERSION = re.compile(r"mace version: (.*)")
_AVERAGE = re.compile(r"Average latency: (\d+(?:\.\d+)?(?:e[+-]?\d+)?) ms")
_TIMES = re.compile(r"time +(\d+\.\d{3}) +(\d+\.\d{3}) +(\d+\.\d{3}) +(\d+\.\d{3})")
_HEADER = re.compile(r" +capability\(CPU\) +init +warmup +run_avg")
_ORDER = "Sort by Run Order"

# The kernel ends what this starts when we end (PR_SET_PDEATHSIG, 1); it survives exec.
_STARTER = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])"
)

_versions: dict[str, str] = {}


def versions() -> dict[str, str]:
    """What runs here, for the record."""
    return dict(_versions, numpy=np.__version__)


def prepare(
    directory: str, artifact: dict[str, Any], options: dict[str, Any], board: dict[str, Any]
) -> dict[str, Any]:
    """Find the board's mace_run and ask for its version; a folder for pipes and files is made."""
    del artifact, options
    tool = board["tools"].get("mace_run")
    if tool is None:
        return _unavailable(
            "there is no mace_run here",
            "Build MACE for this board, and name its mace_run in the inventory (tools: {mace_run: "
            "PATH}) or in the environment variable MACE_RUN.",
        )
    version, trouble = _ask_version(tool)
    if trouble:
        return _unavailable(
            f"{tool} does not run as a mace_run: {trouble}",
            "Name a mace_run that was built for this board; run it there by hand to see why.",
        )
    runs = Path(board["cache"]) / "runs"
    _sweep(runs)
    scratch = runs / f"{os.getpid()}-{time.monotonic_ns()}"
    scratch.mkdir(parents=True)
    told = {"tool": tool, "model": directory, "cache": board["cache"], "version": version}
    (scratch / "tool.json").write_text(json.dumps(told), "utf-8")
    return {"directory": str(scratch), "record": {"mace_run": tool, "mace": version}}


def _unavailable(message: str, remedy: str) -> dict[str, Any]:
    return {"unavailable": {"message": message, "where": "tool mace_run", "remedy": remedy}}


def _ask_version(tool: str) -> tuple[str, str]:
    """(version, what is wrong). It is given fewer shapes than names, and so makes no engine."""
    flags = ["--input_node=x", "--output_node=y", "--input_shape=1", "--output_shape=1:1"]
    try:
        process = Process([tool, *flags], PROBE_S)
    except OSError as error:
        return "", str(error)
    try:
        process.finish()
    except ValueError as error:
        return "", str(error)
    finally:
        process.end()
    for line in process.lines:
        found = _VERSION.fullmatch(message(line))
        if found:
            return found[1].strip(), ""
    return "", "it does not say its version"


def _sweep(runs: Path) -> None:
    """Remove the folders of runners that ended without closing."""
    for folder in runs.iterdir() if runs.is_dir() else ():
        if not Path("/proc", folder.name.partition("-")[0]).exists():
            shutil.rmtree(folder, ignore_errors=True)


def load(directory: str, artifact: dict[str, Any], options: dict[str, Any]) -> Runner:
    """A runner whose engine is made; ValueError where mace_run refuses the model."""
    scratch = Path(directory)
    told = json.loads((scratch / "tool.json").read_text("utf-8"))
    _versions["mace"] = told["version"]
    return Runner(scratch, told, artifact, options)


class Runner:
    """One network in one mace_run.

    Args:
        scratch: a folder of our own.
        told: what `prepare` found.
        artifact: its description.
        options: those of the target.
    """

    timed_by = "mace_run"

    def __init__(
        self,
        scratch: Path,
        told: dict[str, Any],
        artifact: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        self._scratch, self._options = scratch, options
        # It takes a file for the first input whose name only begins like it: the longest first.
        self._inputs = sorted(
            artifact["inputs"], key=lambda b: len(file_name(b["runtime"])), reverse=True
        )
        self._outputs = artifact["outputs"]
        self._given: dict[str, np.ndarray] = {
            b["runtime"]: np.zeros(b["shape"], np.float32) for b in self._inputs
        }
        self._made: dict[str, np.ndarray] = {}
        self._rounds = int(options["rounds"])
        self._argv = [told["tool"], *self._flags(told)]
        self._peak = 0
        self._write_inputs(self._given)
        self._stream = self._open()

    def set_inputs(self, inputs: dict[str, np.ndarray]) -> None:
        """Keep the arrays, by name."""
        self._given = inputs

    def run(self) -> None:
        """One inference: the sample goes to mace_run, and its outputs come back."""
        if self._stream.used == SLOTS:
            self._stream.finish()
            self._stream = self._open()
        self._made = self._stream.infer(self._given)
        self._peak = max(self._peak, self._stream.process.peak_bytes())

    def get_outputs(self) -> dict[str, np.ndarray]:
        """Those of the last run."""
        return self._made

    def measure(self, inputs: dict[str, np.ndarray], plan: dict[str, Any]) -> dict[str, Any]:
        """Times by mace_run's own clock; each is the average of ``rounds`` inferences.

        Before each, mace_run makes an engine and runs it once, which is not in the time. All comes
        from one process, for each begins with a network of MACE's own that measures the processor:
        the first times are the warm-up.
        """
        self._write_inputs(inputs)
        self.set_inputs(inputs)
        lasted = []
        for _ in range(SIZING_RUNS):
            begun = time.monotonic()
            self.run()
            lasted.append((time.monotonic() - begun) * 1e3)
        each = max(1e-3, self._stream.init_ms + min(lasted) * (self._rounds + 1))
        most = int(plan["max_runs"])
        warm = max(int(plan["warmup_runs"]), math.ceil(float(plan["warmup_s"]) * 1e3 / each))
        warm = min(warm, most)
        count = math.ceil(float(plan["duration_s"]) * 1e3 / each)
        count = min(most, max(int(plan["min_runs"]), count))
        found = self._times(warm + count, self._rounds, each)
        times = [block["average_ms"] for block in found]
        measured = found[warm:]
        return {
            "infer_ns": [round(time_ms * 1e6) for time_ms in times[warm:]],
            "warmup_runs": warm,
            "steady": _is_steady(times[:warm], times[warm:]),
            "record": {
                "rounds": self._rounds,
                "mace_run_init_ms": statistics.median(block["init_ms"] for block in measured),
                "mace_run_first_ms": statistics.median(block["warmup_ms"] for block in measured),
            },
        }

    def _times(self, count: int, rounds: int, each_ms: float) -> list[dict[str, float]]:
        flags = [f"--round={rounds}", f"--restart_round={count}"]
        return blocks(self._once(flags, count * each_ms / 1e3), count)

    def time_layers(self, inputs: dict[str, np.ndarray], runs: int) -> dict[str, list[int]]:
        """Nanoseconds of each operation in ``runs`` inferences, each of an engine of its own."""
        self._write_inputs(inputs)
        flags = ["--round=1", f"--restart_round={runs}", "--benchmark=true"]
        return operations(self._once(flags, 0.0), runs)

    def peak_memory_bytes(self) -> int | None:
        """Of the mace_run that takes samples: all that it held at once, its program too."""
        return self._peak or None

    def close(self) -> None:
        """End mace_run and remove what was ours."""
        self._stream.process.end()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _open(self) -> Stream:
        return Stream(self._argv, self._scratch, self._inputs, self._outputs)

    def _once(self, flags: list[str], expected_s: float) -> list[str]:
        """The lines of a mace_run of its own."""
        process = Process([*self._argv, *flags], ENGINE_S + RUN_S + 20 * expected_s)
        try:
            process.finish()
        finally:
            process.end()
        return process.lines

    def _write_inputs(self, inputs: dict[str, np.ndarray]) -> None:
        for name, array in inputs.items():
            (self._scratch / f"given_{file_name(name)}").write_bytes(array.tobytes())

    def _flags(self, told: dict[str, Any]) -> list[str]:
        """What is the same in every start."""
        options = self._options
        flags = {
            "model_name": "model",
            "model_file": str(Path(told["model"], "model.pb")),
            "model_data_file": str(Path(told["model"], "model.data")),
            **_about("input", self._inputs),
            **_about("output", self._outputs),
            "input_file": str(self._scratch / "given"),
            "output_file": str(self._scratch / "made"),
            "num_threads": options["threads"],
            "cpu_affinity_policy": _AFFINITY[options["affinity"]],
        }
        if options["runtime"] == "gpu":
            flags["gpu_perf_hint"] = _HINTS[options["gpu_perf"]]
            flags["gpu_priority_hint"] = _HINTS[options["gpu_priority"]]
            flags["opencl_cache_reuse_policy"] = int(options["opencl_cache"])
            if options["opencl_cache"]:
                flags["opencl_cache_full_path"] = str(Path(told["cache"], "opencl.bin"))
            for word, flag in (
                ("opencl_binary", "opencl_binary_file"),
                ("opencl_parameters", "opencl_parameter_file"),
            ):
                if options[word]:
                    flags[flag] = options[word]
        return [f"--{name}={value}" for name, value in flags.items()]


def _is_steady(warm: list[float], measured: list[float]) -> bool:
    """Whether the warm-up's second half is as fast as so many times behind it."""
    half = warm[len(warm) // 2 :]
    if not half:
        return True
    after = statistics.median(measured[: len(half)])
    return abs(statistics.median(half) - after) <= STEADY * after


def _about(side: str, bindings: list[dict[str, Any]]) -> dict[str, str]:
    """mace_run's words for inputs or outputs; pictures go in and come out as ONNX has them."""
    shapes = [",".join(map(str, b["shape"])) for b in bindings]
    orders = ["NCHW" if len(b["shape"]) == 4 else "NONE" for b in bindings]
    return {
        f"{side}_node": ",".join(b["runtime"] for b in bindings),
        f"{side}_shape": ":".join(shapes),
        f"{side}_data_type": ",".join("float32" for _ in bindings),
        f"{side}_data_format": ",".join(orders),
    }


def file_name(text: str) -> str:
    """A tensor's name in mace_run's files."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in text)


class Stream:
    """A mace_run that takes samples one after the other.

    Args:
        argv: of it, without folders.
        scratch: where folders are made.
        inputs: bindings, in the order of the flags.
        outputs: likewise.

    Attributes:
        used: samples that it was given.
        init_ms: from its start until it took the first; 0 before.
        process: it.
    """

    def __init__(
        self,
        argv: list[str],
        scratch: Path,
        inputs: list[dict[str, Any]],
        outputs: list[dict[str, Any]],
    ) -> None:
        self._inputs, self._outputs = inputs, outputs
        self.used, self.init_ms = 0, 0.0
        folders = [scratch / side for side in ("in", "out")]
        for folder, bindings in zip(folders, (inputs, outputs)):  # noqa: B905 -- Python 3.8
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for slot in range(SLOTS):
                for binding in bindings:
                    os.mkfifo(folder / f"{file_name(binding['runtime'])}.{slot}")
        self._in, self._out = folders
        # The order in which it will meet them: a folder tells its names to all alike.
        first = file_name(inputs[0]["runtime"]) + "."
        names = [path.name for path in self._in.iterdir() if path.name.startswith(first)]
        self._order = [name[len(first) :] for name in names]
        self._begun = time.monotonic()
        self.process = Process([*argv, f"--input_dir={self._in}", f"--output_dir={self._out}"])

    def infer(self, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a sample; ValueError where mace_run ends or says of an error."""
        slot = self._order[self.used]
        limit = time.monotonic() + (RUN_S if self.used else ENGINE_S)
        self.used += 1
        for binding in self._inputs:
            path = self._in / f"{file_name(binding['runtime'])}.{slot}"
            self._send(path, given[binding["runtime"]], limit)
        made = {}
        for binding in self._outputs:
            path = self._out / f"{file_name(binding['runtime'])}.{slot}"
            shape = binding["shape"]
            raw = self._receive(path, 4 * int(np.prod(shape, dtype=np.int64)), limit)
            made[binding["runtime"]] = np.frombuffer(raw, np.float32).reshape(shape)
        return made

    def finish(self) -> None:
        """Wait for the end of a process that has had all its samples."""
        try:
            self.process.limit = time.monotonic() + RUN_S
            self.process.finish()
        finally:
            self.process.end()

    def _send(self, path: Path, array: np.ndarray, limit: float) -> None:
        """Into a pipe as soon as mace_run has opened it."""
        pause = 5e-5
        while True:
            try:
                pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError as error:
                if error.errno != errno.ENXIO:  # nobody has opened it
                    raise
            self.process.pump(limit, pause=pause)
            pause = min(2 * pause, 2e-3)
        if not self.init_ms:
            self.init_ms = (time.monotonic() - self._begun) * 1e3
        try:
            data = memoryview(array.tobytes())
            while data:
                self.process.pump(limit, pipe, select.POLLOUT)
                try:
                    data = data[os.write(pipe, data) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError as error:
                    raise ValueError(f"mace_run did not take {path.name}") from error
        finally:
            os.close(pipe)

    def _receive(self, path: Path, size: int, limit: float) -> bytes:
        pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            data = bytearray()
            while len(data) < size:
                self.process.pump(limit, pipe, select.POLLIN)
                try:
                    part = os.read(pipe, size - len(data))
                except BlockingIOError:
                    continue
                if not part and data:
                    raise ValueError(f"mace_run wrote {len(data)} bytes of {size} to {path.name}")
                data += part
            return bytes(data)
        finally:
            os.close(pipe)


class Process:
    """A mace_run with a terminal of its own.

    Args:
        argv: to start; OSError where it is no program.
        limit_s: after so many seconds, `finish` gives up.

    Attributes:
        lines: what it has said.
        limit: when `finish` gives up, by the monotonic clock.
    """

    def __init__(self, argv: list[str], limit_s: float = math.inf) -> None:
        if not os.access(argv[0], os.X_OK) or not Path(argv[0]).is_file():
            raise FileNotFoundError(errno.ENOENT, "not a program", argv[0])
        self.lines: list[str] = []
        self.limit = time.monotonic() + limit_s
        self._rest, self._checked = b"", 0
        self._terminal, theirs = pty.openpty()
        # MACE reads its settings from the environment: what it inherits must not change a time
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MACE_")}
        environment.update(MACE_CPP_MIN_LOG_LEVEL="INFO", MACE_CPP_MIN_VLOG_LEVEL="0")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _STARTER, str(os.getpid()), *argv],
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                env=environment,
                start_new_session=True,
            )
        finally:
            os.close(theirs)

    def pump(self, limit: float, pipe: int = -1, event: int = 0, pause: float = 1.0) -> None:
        """Take what it says until the pipe is ready, or for ``pause`` seconds without one.

        Raises:
            ValueError: it ended, it said of an error, or the limit is over.
        """
        poll = select.poll()
        poll.register(self._terminal, select.POLLIN)
        if pipe >= 0:
            poll.register(pipe, event)
        while True:
            if time.monotonic() > limit:
                raise ValueError(f"mace_run takes too long; {self._last()}")
            ready = dict(poll.poll((1.0 if pipe >= 0 else pause) * 1e3))
            if self._terminal in ready:
                alive = self._read()
                self._check()
                if not alive:
                    raise ValueError(f"mace_run ended ({self._ended()}); {self._last()}")
            if pipe < 0 or pipe in ready:
                return

    def finish(self) -> None:
        """Wait for its end; ValueError as in `pump`, and where it did not end well."""
        while True:
            if time.monotonic() > self.limit:
                raise ValueError(f"mace_run takes too long; {self._last()}")
            if select.select([self._terminal], [], [], 1.0)[0]:
                alive = self._read()
                self._check()
                if not alive:
                    break
        ended = self._ended()
        if ended != "exit code 0":
            raise ValueError(f"mace_run ended ({ended}); {self._last()}")

    def peak_bytes(self) -> int:
        """Of its memory so far; 0 where the board does not tell."""
        try:
            text = Path(f"/proc/{self._process.pid}/status").read_text("utf-8", "replace")
        except OSError:  # it has ended, or there is no /proc
            return 0
        found = re.search(r"^VmHWM:\s+(\d+) kB", text, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0

    def end(self) -> None:
        """Kill it where it still runs."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1

    def _read(self) -> bool:
        """Take lines; False at their end."""
        try:
            data = os.read(self._terminal, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # how a terminal ends
                raise
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        self.lines += [line.decode("utf-8", "replace").rstrip("\r") for line in lines]
        return bool(data)

    def _check(self) -> None:
        """Raise ValueError with the first error that it speaks of and that counts."""
        fresh, self._checked = self.lines[self._checked :], len(self.lines)
        for line in fresh:
            found = _SAID.fullmatch(line)
            if found is None:
                continue
            level, file, number, text = found.groups()
            failed = level == "E" and Path(file).name not in _REMARKS
            failed = failed or (_FAILED in text and file.endswith(_RUNNING))
            if level == "F" or failed:
                raise ValueError(f"mace_run says: {text.strip()} ({file}:{number})")

    def _ended(self) -> str:
        code = self._process.wait()
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name

    def _last(self) -> str:
        said = [line for line in self.lines if line.strip()]
        return f"its last line: {said[-1]}" if said else "it said nothing"


# --- what it says --------------------------------------------------------------------------------


def message(line: str) -> str:
    """A line without MACE's prefix."""
    found = _SAID.fullmatch(line)
    return found[4] if found else line


def blocks(lines: list[str], count: int) -> list[dict[str, float]]:
    """What mace_run tells at the end of each restart round, milliseconds.

    Args:
        lines: all that it said.
        count: how many there have to be.

    Returns:
        For each: ``average_ms``, of the inferences; ``init_ms``, of making the engine;
        ``warmup_ms``, of the first inference.

    Raises:
        ValueError: there are more or fewer, or the two places that tell an average disagree.
    """
    found: list[dict[str, float]] = []
    average: float | None = None
    header = False
    for line in lines:
        said = _AVERAGE.fullmatch(message(line).strip())
        if said:
            average = float(said[1])
        if _HEADER.fullmatch(line.rstrip()):
            header = True
        times = _TIMES.fullmatch(line.rstrip()) if header else None
        if times is None:
            continue
        init, warmup, told = (float(times[index]) for index in (2, 3, 4))
        if average is None or abs(average - told) > 1e-3 + 1e-5 * told:
            raise ValueError(f"mace_run tells two averages: {average} ms and {told} ms")
        found.append({"average_ms": average, "init_ms": init, "warmup_ms": warmup})
        average, header = None, False
    if len(found) != count:
        raise ValueError(f"mace_run told {len(found)} times of {count}")
    return found


def operations(lines: list[str], count: int) -> dict[str, list[int]]:
    """The table of operations in run order of each restart round: name to nanoseconds.

    Args:
        lines: all that mace_run said.
        count: how many tables there have to be.

    Raises:
        ValueError: there are more or fewer, or they tell of other operations.
    """
    tables: list[dict[str, int]] = []
    columns: list[str] = []
    inside = False
    for line in lines:
        text = message(line).strip()
        if text == _ORDER:
            tables.append({})
            columns, inside = [], True
        elif inside and text.startswith("|"):
            cells = [cell.strip() for cell in text.strip("|").split("|")]
            if not columns:
                columns = cells
                continue
            if len(cells) != len(columns):
                raise ValueError(f"mace_run wrote a row that its table has not: {text}")
            row = dict(zip(columns, cells))  # noqa: B905 -- Python 3.8; as long, see above
            tables[-1][row["name"]] = round(float(row["Avg(ms)"]) * 1e6)
        elif inside and columns and tables[-1] and set(text) == {"-"}:
            inside = False
    if len(tables) != count:
        raise ValueError(f"mace_run wrote {len(tables)} tables of {count}")
    if any(table.keys() != tables[0].keys() for table in tables) or not tables[0]:
        raise ValueError("mace_run's tables tell of other operations each time")
    return {name: [table[name] for table in tables] for name in tables[0]}

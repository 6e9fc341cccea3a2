"""Runs a network on a board with Caffe2 (Python 3.8, numpy): in a process of its own.

That process is ``engine``, a small program that loads a Caffe2 library and answers requests on its
pipes; what it says and takes stands at the top of its source, ``engine.cc``. wherry ships both;
where it could not compile the program for this board, this board's own compiler does it here.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

INIT_NET, PREDICT_NET = "init_net.pb", "predict_net.pb"
VERSION = "library.txt"  # of a library that wherry brings: which one it is
OWN = "wherry"
PREPARED = "prepared.json"
FLAGS = ("-O2", "-std=c++11", "-Wl,--wrap=__libc_start_main", "-ldl")

_LIBRARIES = ("libtorch_cpu.so", "libtorch.so", "libcaffe2.so")  # newer ones first
_TYPES = {1: "float32", 2: "int32", 5: "bool", 6: "uint8", 7: "int8", 10: "int64", 13: "float64"}
_CODES = {name: code for code, name in _TYPES.items()}
_ANSWER_S = 600.0  # the host, which knows more, ends a hanging agent before
_END_S = 5.0
_TAIL_LINES = 20


class EngineError(RuntimeError):
    """The library or the program failed; the text says how."""


_versions = {"numpy": np.__version__}


def versions() -> dict[str, str]:
    """What runs here, for the record."""
    return dict(_versions)


# --- preparing ---------------------------------------------------------------------------------


def prepare(
    directory: str,
    artifact: dict[str, Any],  # noqa: ARG001 -- every runner's prepare is given it
    options: dict[str, Any],
    board: dict[str, Any],
) -> dict[str, Any]:
    """Find the library, and the program or a compiler for it.

    Returns:
        ``directory``: a folder in which ``prepared.json`` names all of it.
    """
    native, cache = board.get("native"), Path(board["cache"])
    where, named = _library(options, board, native)
    library = _library_in(where) if where else None
    if library is None:
        return _unavailable(
            f"there is no Caffe2 library {where}"
            if where
            else f"there is no Caffe2 library for {board['machine']} that wherry could bring",
            where or "tool libtorch",
            "Say where libtorch_cpu.so of PyTorch 1.7 to 1.10 is: tools: {libtorch: PATH} of the "
            "device in devices.yaml, or the option library.",
        )
    engine = _engine(Path(native) if native else None, cache)
    if engine is None:
        return _unavailable(
            "the program that runs Caffe2's networks could not be compiled: neither the host has "
            f"a C++ compiler for {board['machine']}, nor this board one of its own",
            "engine.cc",
            "On the host: apt install g++ (for this machine itself) or g++-aarch64-linux-gnu (for "
            "a 64-bit ARM board); or on the board: apt install g++.",
        )
    version = f"{library.name}, {library.stat().st_size} bytes"
    if named == OWN:
        version = (library.parent / VERSION).read_text().strip()
    told = {"networks": directory, "library": str(library), "engine": str(engine)}
    told["version"] = version
    text = json.dumps(told, sort_keys=True)
    folder = cache / "prepared" / hashlib.sha256(text.encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / PREPARED, text.encode())
    record = {"library": str(library), "library_version": version, "library_from": named}
    return {"directory": str(folder), "record": record}


def _library(
    options: dict[str, Any], board: dict[str, Any], native: str | None
) -> tuple[str | None, str]:
    """The path of the library or of its folder, and who named it."""
    if options.get("library"):
        return str(Path(options["library"]).expanduser()), "the option library"
    if "libtorch" in board["tools"]:
        return board["tools"]["libtorch"], "the tool libtorch"
    if native and _library_in(native):
        return native, OWN
    return None, ""


def _library_in(where: str) -> Path | None:
    """The library at a path: the file itself, or one in that folder or in its ``lib``."""
    path = Path(where)
    if path.is_file():
        return path
    for folder in (path, path / "lib"):
        for name in _LIBRARIES:
            if (folder / name).is_file():
                return folder / name
    return None


def _engine(native: Path | None, cache: Path) -> Path | None:
    """The program, shipped or compiled here; None: it can neither be had nor made."""
    if native is None:
        return None
    shipped, source = native / "engine", native / "engine.cc"
    if shipped.is_file():
        data = shipped.read_bytes()
        program = cache / f"engine-{hashlib.sha256(data).hexdigest()[:32]}"
        if not program.exists():  # what is shipped may not be executed where it is
            _write(program, data, 0o755)
        return program
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    program = cache / f"engine-{hashlib.sha256(source.read_bytes()).hexdigest()[:32]}-own"
    if not program.exists():
        part = program.with_name(f"{program.name}.{os.getpid()}.part")
        command = [compiler, str(source), "-o", str(part), *FLAGS]
        run = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            check=False,
        )  # fmt: skip
        if run.returncode:
            text = run.stdout.decode(errors="replace")[-2000:]
            raise EngineError(f"{compiler} does not compile engine.cc:\n{text}")
        part.replace(program)
    return program


def _write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """A file that is there whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.chmod(mode)
    part.replace(path)


def _unavailable(message: str, where: str, remedy: str) -> dict[str, Any]:
    return {"unavailable": {"message": message, "where": where, "remedy": remedy}}


# --- the program -------------------------------------------------------------------------------


class Engine:
    """The program with its networks loaded; raises EngineError where it does not load them.

    Args:
        told: what ``prepared.json`` holds.
        threads: of the runtime.
    """

    def __init__(self, told: dict[str, str], threads: int) -> None:
        networks = Path(told["networks"])
        command = [told["engine"], told["library"], str(threads)]
        command += [str(networks / name) for name in (INIT_NET, PREDICT_NET)]
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **counts},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            self._answer("load the networks")
        except BaseException:
            self.close()
            raise

    def ask(self, letter: str, *parts: Any) -> memoryview:
        """One request and its answer."""
        size = 1 + sum(memoryview(part).nbytes for part in parts)
        try:
            for part in (struct.pack("<I", size), letter.encode(), *parts):
                left = memoryview(part).cast("B") if memoryview(part).nbytes else memoryview(b"")
                while left:
                    left = left[self._stdin.write(left) :]
        except OSError as error:
            raise self._ended(f"take the request {letter}") from error
        return self._answer(f"answer the request {letter}")

    def _answer(self, what: str) -> memoryview:
        deadline = time.monotonic() + _ANSWER_S
        (size,) = struct.unpack("<I", self._take(4, deadline, what))
        answer = self._take(size, deadline, what)
        if answer[0]:
            text = bytes(answer[1:]).decode(errors="replace")
            # Its exceptions end in a list of addresses.
            text = re.split(r"\s*(?:frame #0:|\(?Exception raised from)", text)[0]
            raise EngineError(f"Caffe2: {text}")
        return answer[1:]

    def _take(self, size: int, deadline: float, what: str) -> memoryview:
        data, done = memoryview(bytearray(size)), 0
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN | select.POLLHUP)
        while done < size:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise EngineError(f"Caffe2 did not {what} in {_ANSWER_S:g} s{self._said()}")
            got = self._stdout.readinto(data[done:])  # type: ignore[attr-defined] # it is a FileIO
            if not got:
                raise self._ended(what)
            done += got
        return data

    def _ended(self, what: str) -> EngineError:
        """Why there is no answer."""
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return EngineError(f"Caffe2 hung up, and did not {what}{self._said()}")
        how = f"exit status {status}"
        if status < 0:
            with contextlib.suppress(ValueError):  # a signal without a name
                how = signal.Signals(-status).name
        self._listener.join(1.0)
        return EngineError(f"Caffe2's process ended ({how}) and did not {what}{self._said()}")

    def _said(self) -> str:
        return "".join(f"\n  {line}" for line in self._tail)

    def _listen(self) -> None:
        assert self._process.stderr
        with self._process.stderr as stream:
            for line in iter(lambda: stream.readline(4096), b""):
                self._tail.append(line.decode(errors="replace").rstrip())

    def close(self) -> None:
        """End the process, whatever it is doing."""
        with contextlib.suppress(OSError):  # it has ended
            self._stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()
        self._listener.join(1.0)


# --- the runner --------------------------------------------------------------------------------


def load(directory: str, artifact: dict[str, Any], options: dict[str, Any]) -> Runner:
    """A runner over what `prepare` found; EngineError where Caffe2 does not load the networks."""
    told = json.loads(Path(directory, PREPARED).read_text())
    _versions["caffe2"] = told["version"]
    return Runner(told, artifact, options)


class Runner:
    """One network in a process of Caffe2's."""

    def __init__(
        self, told: dict[str, str], artifact: dict[str, Any], options: dict[str, Any]
    ) -> None:
        self._told, self._artifact = told, artifact
        self._engine = Engine(told, options["threads"])
        self._names = [binding["runtime"] for binding in artifact["outputs"]]

    def set_inputs(self, inputs: dict[str, np.ndarray]) -> None:
        """Copy the arrays into Caffe2's blobs."""
        self._engine.ask("I", *_tensors(inputs))

    def run(self) -> int:
        """One inference; its nanoseconds, without the way there and back."""
        (took,) = struct.unpack("<Q", self._engine.ask("R"))
        return int(took)

    def get_outputs(self) -> dict[str, np.ndarray]:
        """Copies of the last run's outputs."""
        return dict(_arrays(self._engine.ask("O", *map(_text, self._names))))

    def time_layers(self, inputs: dict[str, np.ndarray], runs: int) -> dict[str, list[int]]:
        """Nanoseconds of each operator in each of ``runs`` inferences.

        Each operator is a network of its own over the same blobs, and these run one after the
        other: Caffe2 runs a simple network's operators in just that way.
        """
        net = (Path(self._told["networks"]) / PREDICT_NET).read_bytes()
        names = []
        for name, operator in _operators(net):
            names.append(name)
            self._engine.ask("C", _text(_net(f"layer {name}", operator)))
        self.set_inputs(inputs)
        asked = [_text(f"layer {name}") for name in names]
        times: dict[str, list[int]] = {name: [] for name in names}
        for run in range(runs + 1):
            taken = self._engine.ask("L", *asked)
            if run:  # the first one warms up
                for name, (took,) in zip(names, struct.iter_unpack("<Q", taken)):  # noqa: B905 -- Python 3.8 has no strict
                    times[name].append(int(took))
        return times

    def peak_memory_bytes(self) -> int:
        """What loading and running took of Caffe2's process at the most; not the library itself."""
        (peak,) = struct.unpack("<Q", self._engine.ask("M"))
        return int(peak)

    def close(self) -> None:
        """End Caffe2's process."""
        self._engine.close()


def _text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<I", len(data)) + data


def _tensors(arrays: dict[str, np.ndarray]) -> Iterator[Any]:
    for name, array in arrays.items():
        head = struct.pack(f"<BI{array.ndim}q", _CODES[array.dtype.name], array.ndim, *array.shape)
        yield _text(name) + head
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _arrays(answer: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    at = 0
    while at < len(answer):
        (size,) = struct.unpack_from("<I", answer, at)
        name = bytes(answer[at + 4 : at + 4 + size]).decode()
        at += 4 + size
        code, axes = struct.unpack_from("<BI", answer, at)
        shape = struct.unpack_from(f"<{axes}q", answer, at + 5)
        at += 5 + 8 * axes
        dtype = np.dtype(_TYPES[code])
        count = int(np.prod(shape, dtype=np.int64))
        yield name, np.frombuffer(answer, dtype, count, at).reshape(shape)
        at += count * dtype.itemsize


# --- NetDef (protocol buffers): field 1 is its name, 2 an operator, 3 its type; of an operator
# field 3 is its name -----------------------------------------------------------------------------


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and value of the fields of a message that have a length; the others are passed."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 2:
            size, at = _varint(data, at)
            yield key >> 3, data[at : at + size]
            at += size
        elif key & 7 == 0:
            _, at = _varint(data, at)
        else:
            at += 8 if key & 7 == 1 else 4


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _operators(net: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and serialised form of each operator."""
    for number, operator in _fields(net):
        if number == 2:
            yield next(v for n, v in _fields(operator) if n == 3).decode(), operator


def _net(name: str, operator: bytes) -> bytes:
    """A network of one operator."""
    parts = ((1, name.encode()), (2, operator), (3, b"simple"))
    return b"".join(_key(number) + _length(len(value)) + value for number, value in parts)


def _key(number: int) -> bytes:
    return bytes([number << 3 | 2])


def _length(value: int) -> bytes:
    made = bytearray()
    while value >= 128:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])

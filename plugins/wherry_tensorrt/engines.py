"""Engines on a board: built from the artifact once, and kept (Python 3.8, standard library).

An engine runs only where it was built: on this GPU, with this TensorRT. So its name in the cache is
a hash over the ONNX files, the arguments, TensorRT's version, the GPU and the board's system. It is
built in a folder of its own, which gets its name when it is whole; one at a time on a board. What
TensorRT found out about this GPU's kernels is kept beside the engines, for the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from . import command, output

ENGINE, LAYERS, LOG, ABOUT = "engine.plan", "layers.json", "build.log", "about.json"
RECIPE, RANGES = "recipe.json", "ranges.json"
"""Of the artifact: what to build, and for implicit int8 the thresholds of the tensors."""

_L4T = Path("/etc/nv_tegra_release")
_PROBE_S, _BUILD_S = 120.0, 6 * 3600.0
# Becomes a program that the kernel kills when the process that started it ends.
_TETHER = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("whoever started it is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Place(NamedTuple):
    """What an engine is built for.

    Attributes:
        version: of TensorRT.
        gpu: its name.
        capability: its compute capability, e.g. ``8.7``.
        system: the first line of NVIDIA's Linux for Tegra; "": another system.
    """

    version: str
    gpu: str
    capability: str
    system: str


class Engine(NamedTuple):
    """A built engine.

    Attributes:
        directory: with ``ENGINE``, ``LAYERS``, ``LOG`` and ``ABOUT``.
        about: what ``ABOUT`` says.
        is_new: it was built just now.
    """

    directory: Path
    about: dict[str, Any]
    is_new: bool


def start(
    program: str, arguments: list[str], folder: Path, log: Path, limit_s: float
) -> tuple[int, str]:
    """Run a program to its end: its status, and what it said, which is in ``log`` too.

    Raises:
        RuntimeError: it took too long.
    """
    tether = [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid())]
    with log.open("w+b") as stream:
        process = subprocess.Popen(
            [*tether, program, *arguments],
            cwd=str(folder),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError(f"{program} took over {limit_s:g} s") from None
        except BaseException:
            process.kill()
            process.wait()
            raise
        stream.seek(0)
        return status, stream.read().decode(errors="replace")


# --- what there is -------------------------------------------------------------------------------


def tool_at(path: str) -> command.Tool:
    """What a trtexec can do.

    Raises:
        command.Refusal: it does not run, or is another program.
    """
    with tempfile.TemporaryDirectory(prefix="wherry-trt-") as folder:
        try:
            _, text = start(path, ["--help"], Path(folder), Path(folder) / "log", _PROBE_S)
        except (OSError, RuntimeError) as error:
            raise _no_tool(path, str(error)) from error
    version, flags = output.version(text), output.flags(text)
    if not version or "--onnx" not in flags:
        raise _no_tool(path, output.last_words(text) or "it says nothing")
    return command.Tool(path, version, flags)


def _no_tool(path: str, why: str) -> command.Refusal:
    return command.Refusal(
        f"{path} does not run as NVIDIA's trtexec: {why}",
        "Name the program with `tools: {trtexec: PATH}` in devices.yaml; on JetPack it is "
        "/usr/src/tensorrt/bin/trtexec (package libnvinfer-bin).",
    )


def place_of(tool: command.Tool) -> Place:
    """Ask trtexec for its GPU: it says before it looks at the engine, which here is an empty file.

    Raises:
        command.Refusal: it finds none.
    """
    with tempfile.TemporaryDirectory(prefix="wherry-trt-") as folder:
        empty = Path(folder) / "empty.plan"
        empty.touch()
        _, text = start(
            tool.path, [f"--loadEngine={empty}"], Path(folder), Path(folder) / "log", _PROBE_S
        )
    found = output.device(text)
    if found is None:
        raise command.Refusal(
            f"TensorRT finds no GPU on this board: {output.last_words(text)}",
            "Run trtexec on the board by hand: it has to say `Selected Device`.",
        )
    return Place(tool.version, found.name, found.compute_capability, system())


def system() -> str:
    """The release of NVIDIA's Linux for Tegra; "": this is none."""
    try:
        return _L4T.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip("# ")
    except (OSError, IndexError):
        return ""


# --- building ------------------------------------------------------------------------------------


def plan_of(directory: Path, options: dict[str, Any]) -> command.Plan:
    """What an artifact's recipe says; the calibration cache is still missing."""
    recipe = json.loads((directory / RECIPE).read_text(encoding="utf-8"))
    typed = recipe["typed"]
    return command.Plan(
        precision=recipe["precision"],
        model=str(directory / recipe["model"]),
        typed=str(directory / typed) if typed else "",
        quantised=recipe["quantised"],
        keep=tuple(recipe["keep"]),
        rest=recipe["rest"],
        shapes=recipe["shapes"],
        options=options,
    )


def by_trtexec(
    artifact: dict[str, Any],
    directory: Path,
    cache: Path,
    options: dict[str, Any],
    tool: command.Tool,
    place: Place,
) -> Engine:
    """The engine of an artifact, from the cache or built.

    Raises:
        command.Refusal: this trtexec cannot build it.
        RuntimeError: it failed to, with its own words.
    """
    plan = with_ranges(plan_of(directory, options), directory, cache, tool)
    timing = timing_cache(cache, place)
    files = command.Files(ENGINE, LAYERS, str(timing))
    arguments = command.build_arguments(plan, tool, files)
    places = ((str(directory), "ARTIFACT"), (str(cache), "CACHE"))
    key = {"way": "trtexec", "arguments": [_replaced(each, places) for each in arguments]}

    def build(folder: Path) -> None:
        status, text = start(tool.path, arguments, folder, folder / LOG, _BUILD_S)
        if status or not output.passed(text) or not (folder / ENGINE).is_file():
            raise RuntimeError(
                f"trtexec of TensorRT {tool.version} built no engine (status {status}): "
                f"{output.last_words(text)}; its arguments: {' '.join(arguments)}"
            )

    return kept(artifact, cache, place, key, build)


def kept(
    artifact: dict[str, Any],
    cache: Path,
    place: Place,
    key: dict[str, Any],
    build: Callable[[Path], None],
) -> Engine:
    """What is in the cache under this key, or what ``build`` leaves in a folder.

    Args:
        artifact: its description; the hashes of its files are part of the key.
        cache: the backend's folder on the board.
        place: likewise part of the key.
        key: what else decides the engine, JSON values.
        build: is given an empty folder.
    """
    whole = {"files": artifact["files"], "place": list(place), **key}
    name = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]
    engines = cache / "engines"
    engines.mkdir(parents=True, exist_ok=True)
    target = engines / name
    with _alone(cache):
        if (target / ABOUT).is_file():
            os.utime(str(target))  # when it was used last
            return Engine(target, json.loads((target / ABOUT).read_text("utf-8")), is_new=False)
        for old in engines.glob("*.part"):  # of builders that were ended
            shutil.rmtree(str(old), ignore_errors=True)
        part = engines / f"{name}.part"
        part.mkdir()
        sys.stderr.write(f"building an engine for {place.gpu} with TensorRT {place.version}\n")
        try:
            build(part)
        except BaseException:
            shutil.rmtree(str(part), ignore_errors=True)
            raise
        about = {"place": place._asdict(), **key}
        (part / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        shutil.rmtree(str(target), ignore_errors=True)
        os.sync()
        part.rename(target)
    return Engine(target, about, is_new=True)


@contextlib.contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Hold the lock of the cache, which the kernel frees when this process ends."""
    with (cache / "building.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write("waiting for another that builds an engine on this board\n")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def timing_cache(cache: Path, place: Place) -> Path:
    """Where TensorRT keeps what it measured on this GPU."""
    folder = cache / "timing"
    folder.mkdir(parents=True, exist_ok=True)
    words = json.dumps(list(place)).encode()
    return folder / f"{hashlib.sha256(words).hexdigest()[:16]}.cache"


def with_ranges(
    plan: command.Plan, directory: Path, cache: Path, tool: command.Tool
) -> command.Plan:
    """The same with the calibration cache of implicit int8, in the words of this TensorRT."""
    if plan.quantised != "implicit":
        return plan
    thresholds = json.loads((directory / RANGES).read_text(encoding="utf-8"))
    text = calibration_text(tool.version, thresholds)
    folder = cache / "ranges"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.cache"
    if not path.is_file():
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    return plan._replace(calibration=str(path))


def calibration_text(version: str, thresholds: dict[str, float]) -> str:
    """TensorRT's calibration cache: a header, and for each tensor its step as a float32 in hex.

    A cache whose header names another version is refused by TensorRT.

    Args:
        version: digits, as trtexec has it.
        thresholds: tensor to its greatest |x|.
    """
    lines = [f"TRT-{version}-EntropyCalibration2"]
    for name, most in thresholds.items():
        lines.append(f"{name}: {struct.pack('>f', most / 127).hex()}")
    return "\n".join(lines) + "\n"


def read_calibration(text: str) -> tuple[str, dict[str, float]]:
    """The inverse of `calibration_text`; names may hold colons.

    Raises:
        ValueError: it is no calibration cache.
    """
    head, *lines = text.splitlines()
    words = head.split("-")
    if len(words) != 3 or words[0] != "TRT":
        raise ValueError(f"not a calibration cache: {head!r}")
    found = {}
    for line in filter(None, lines):
        name, _, value = line.rpartition(": ")
        found[name] = struct.unpack(">f", bytes.fromhex(value))[0] * 127
    return words[1], found


def _replaced(text: str, places: tuple[tuple[str, str], ...]) -> str:
    for path, word in places:
        text = text.replace(path, word)
    return text

"""Reads what trtexec prints and writes (Python 3.8, numpy).

The formats are those of TensorRT 8.5 to 11.1. Names stand in its JSON files as they are, quotes and
all, so that these are read line by line and not as JSON.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import numpy as np

_HEADER = re.compile(r"&&&& RUNNING TensorRT\.trtexec \[TensorRT v(\d+)\]")
_OPTION = re.compile(r"^ {1,4}(--[A-Za-z0-9]+)", re.MULTILINE)
_SECTION = re.compile(r"^=== (.+) ===\s*$", re.MULTILINE)
_STAMP = r"^\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[%s\] (.*)$"
_ERROR = re.compile(_STAMP % "E", re.MULTILINE)
_WARNING = re.compile(_STAMP % "W", re.MULTILINE)
_NUMBER = r"(-?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|inf|nan))"
_STATISTICS = ("min", "max", "mean", "median")
_PROFILED = re.compile(
    r'^[,\s]*\{\s*"name"\s*:\s*"(?P<name>.*)"\s*,\s*"timeMs"\s*:\s*(?P<time>[^,\s]+)'
    r'\s*,\s*"averageMs"\s*:\s*(?P<average>[^,\s]+)'
    r'(?:\s*,\s*"medianMs"\s*:\s*(?P<median>[^,\s]+))?'
    r'\s*,\s*"percentage"\s*:\s*[^,\s]+\s*\}\s*$'
)
_COUNT = re.compile(r'"count"\s*:\s*(\d+)')
_OUTPUT = re.compile(
    r'\{\s*"name"\s*:\s*"(?P<name>[^\n]*)"\s*\n\s*,\s*"dimensions"\s*:\s*"(?P<dims>[\dx ]*)"'
    r'\s*,\s*"values"\s*:\s*\[(?P<values>[^\]]*)\]'
)
_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)\](?=$|[\x1e\x1f]|\[ONNX Layer: )", re.DOTALL)
_LAST_CHARS = 2000


class Device(NamedTuple):
    """The GPU that trtexec chose."""

    name: str
    compute_capability: str


class Layer(NamedTuple):
    """A layer of a profile, milliseconds of one inference."""

    name: str
    median_ms: float


def version(text: str) -> str:
    """The digits of its first line, ``8502`` or ``100300``; "": this is not trtexec's."""
    found = _HEADER.search(text)
    return found[1] if found else ""


def flags(help_text: str) -> frozenset[str]:
    """The options that ``--help`` explains; what a text only mentions is not one."""
    return frozenset(_OPTION.findall(help_text))


def device(text: str) -> Device | None:
    """What it says of the GPU before it does anything; None: it found none."""
    name = re.search(r"Selected Device: (.+?)\s*$", text, re.MULTILINE)
    capability = re.search(r"Compute Capability: (\d+\.\d+)", text)
    return Device(name[1], capability[1]) if name and capability else None


def errors(text: str) -> list[str]:
    """Its lines of severity E, each once."""
    return list(dict.fromkeys(line.strip() for line in _ERROR.findall(text) if line.strip()))


def warnings(text: str) -> list[str]:
    """Its lines of severity W, each once."""
    return list(dict.fromkeys(line.strip() for line in _WARNING.findall(text) if line.strip()))


def passed(text: str) -> bool:
    """Whether it says at its end that all went well."""
    return "&&&& PASSED TensorRT.trtexec" in text


def last_words(text: str) -> str:
    """What to tell of a failure: the errors, or else the end of what it said."""
    found = errors(text)
    said = " | ".join(found) if found else " ".join(text.split())
    return said[-_LAST_CHARS:]


def summary(text: str) -> dict[str, Any]:
    """The performance summary: ``throughput_qps``, and for ``latency`` and ``compute`` a dict.

    What it does not say is absent: with the profiler in the same run there is no summary.
    """
    found: dict[str, Any] = {}
    throughput = re.search(r"Throughput: " + _NUMBER + " qps", text)
    if throughput:
        found["throughput_qps"] = float(throughput[1])
    for word, name in (("Latency", "latency"), ("GPU Compute Time", "compute")):
        line = re.search(r"\] " + word + r": (min = .*)$", text, re.MULTILINE)
        if not line:
            continue
        values = {}
        for each in _STATISTICS:
            value = re.search(each + " = " + _NUMBER + " ms", line[1])
            if value:
                values[f"{each}_ms"] = float(value[1])
        for percent, value in re.findall(
            r"percentile\((\d+(?:\.\d+)?)%\) = " + _NUMBER + " ms", line[1]
        ):
            values[f"p{percent}_ms"] = float(value)
        found[name] = values
    warmed = re.search(r"Warmup completed (\d+) queries", text)
    if warmed:
        found["warmup_runs"] = int(warmed[1])
    return found


def times(text: str) -> list[dict[str, float]]:
    """The file of ``--exportTimes``: milliseconds of each inference, warm-up left out.

    Raises:
        ValueError: it is none.
    """
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ValueError("not a list of times")
    return found


def profile(text: str) -> tuple[int, list[Layer]]:
    """The file of ``--exportProfile``: how many inferences, and each layer's time.

    Where a version tells no median, the average stands for it.

    Raises:
        ValueError: it is none.
    """
    count = _COUNT.search(text)
    if not count:
        raise ValueError("a profile without a count")
    layers = []
    for line in text.splitlines():
        found = _PROFILED.match(line)
        if found:
            layers.append(Layer(found["name"], float(found["median"] or found["average"])))
    return int(count[1]), layers


def outputs(text: str) -> dict[str, np.ndarray]:
    """The file of ``--exportOutput``: name to float64 [dimensions], of the last inference.

    The numbers have six digits: `raw_name` is better where trtexec can dump.
    """
    found = {}
    for match in _OUTPUT.finditer(text):
        values = np.array([float(v) for v in re.split(r"[,\s]+", match["values"]) if v])
        dims = [int(axis) for axis in re.findall(r"\d+", match["dims"])]
        found[match["name"]] = values.reshape(dims)
    return found


def raw_name(tensor: str, shape: tuple[int, ...]) -> str:
    """How the name of a dumped output begins; the word for its type and ``.raw`` follow."""
    safe = re.sub(r"[^A-Za-z0-9._,-]", "_", tensor)
    return ".".join([safe, "output", *map(str, shape), ""])


def layer_metadata(text: str) -> dict[str, list[str]]:
    """The file of ``--exportLayerInfo``: layer to the ONNX nodes that TensorRT says it does.

    Only from 8.6 on and with detailed profiles do layers say so; of all others the list is empty.
    """
    try:
        entries = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):  # names are not escaped in old versions
        return {}
    found: dict[str, list[str]] = {}
    for entry in entries:
        if isinstance(entry, str):
            found[entry] = []
        elif isinstance(entry, dict) and "Name" in entry:
            found[str(entry["Name"])] = _ONNX_LAYER.findall(str(entry.get("Metadata", "")))
    return found


# --- layers by ONNX nodes ------------------------------------------------------------------------

_MOVES = re.compile(r"^(?:Reformatting CopyNode|reformat|shuffle between|.*_copy_(?:in|out)put$)")
_BEFORE, _AFTER = "([{,+ ", ")]},+ ."
_SUFFIX = re.compile(r"_(?:clone|copy|castIn|castOut)[_\w]*|_\d+")


def nodes_in(name: str, known: frozenset[str]) -> list[str]:
    """The ONNX nodes in a layer's name, in the order in which they stand there.

    TensorRT joins the names of what it fuses: ``a + b``, ``PWN(a, b)``, ``{ForeignNode[a...b]}``,
    ``a || b``, with suffixes of its own. Of a ForeignNode only the ends are named. A layer that
    only moves data does no node.

    Args:
        name: the layer's.
        known: names of the ONNX nodes.
    """
    if _MOVES.match(name):
        return []
    found: list[tuple[int, str]] = []
    covered = [False] * len(name)
    for node in sorted(known, key=len, reverse=True):
        start = name.find(node) if node else -1
        while start >= 0:
            end = start + len(node)
            if _stands_alone(name, start, end) and not any(covered[start:end]):
                covered[start:end] = [True] * (end - start)
                found.append((start, node))
            start = name.find(node, start + 1)
    return list(dict.fromkeys(node for _, node in sorted(found)))


def _stands_alone(name: str, start: int, end: int) -> bool:
    if start and name[start - 1] not in _BEFORE and name[start - 3 : start] != "...":
        return False
    rest = name[end:]
    suffix = _SUFFIX.match(rest)
    if suffix:
        rest = rest[suffix.end() :]
    return not rest or rest[0] in _AFTER

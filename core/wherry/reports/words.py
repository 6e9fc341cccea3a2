"""What all forms of a report say alike: figures, marks, notes, and text that can do no harm."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.manifest.sections import ORIGINAL
from wherry.target import listed

Result = Mapping[str, Any]
"""One of the report's ``results``."""

LEGEND = {
    "*": "Pareto front",
    "~": "not clean: something disturbed the measurement",
    "e": "emulated board: the latency means nothing",
    "c": "from the store",
}
NAMED = 4
"""How many results a note names; it counts the others."""


def marks(result: Result) -> str:
    """The signs of `LEGEND` that a result has."""
    latency = result["latency"] or {}
    signs = {
        "*": result["pareto"],
        "~": latency and not latency["clean"],
        "e": latency.get("emulated"),
        "c": result["cached"],
    }
    return "".join(sign for sign, present in signs.items() if present)


def legend(results: Iterable[Result]) -> dict[str, str]:
    """`LEGEND` for the signs that some of the results have."""
    present = "".join(marks(result) for result in results)
    return {sign: text for sign, text in LEGEND.items() if sign in present}


def ms_text(value: float | None) -> str:
    """Milliseconds to the microsecond; three significant digits where that would be too coarse."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value >= 0.1 else f"{value:#.3g}"


def metric_text(value: float | None) -> str:
    """Four significant digits, or a dash."""
    return "-" if value is None else f"{value:.4g}"


def speedup_text(value: float | None) -> str:
    """``x1.62``, or a dash."""
    return "-" if value is None else f"x{value:.2f}"


def shows_original(results: Iterable[Result]) -> bool:
    """Whether some result is of another variant and has the original beside it."""
    return any(
        r["variant"] != ORIGINAL and r.get("speedup_vs_original") is not None for r in results
    )


def bytes_text(count: int | None) -> str:
    """``1.4 MB``; decimal units, as the sizes of files are sold."""
    if count is None:
        return "-"
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 999.95:  # what the next unit would show as 1.0
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def size_text(result: Result) -> str:
    """An artifact's size, and what is sent of it where it travels packed."""
    text = bytes_text(result["size_bytes"])
    packed = result["packed_bytes"]
    return text if packed is None else f"{text}, packed {bytes_text(packed)}"


def energy_text(value: float | None) -> str:
    """Millijoules to three significant digits, from 100 on whole ones; or a dash."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def sustained_text(result: Result) -> str:
    """What the run without pause showed, in a sentence; empty where there was none."""
    found = result.get("sustained")
    if not found:
        return ""
    text = f"{found['duration_s']:.0f} s without pause"
    if found["ratio"] is not None:
        text += f": at the end x{found['ratio']:.2f} of the time at the start"
    degrees = [p["temperature_c"] for p in found["points"] if p["temperature_c"] is not None]
    if degrees:
        text += f", {degrees[0]:.0f} to {max(degrees):.0f} \N{DEGREE SIGN}C"
    if found["throttled_s"] is not None:
        text += f"; slower from {found['throttled_s']:.0f} s on: {found['throttled_by']}"
    return f"{text}."


def option_text(value: object) -> str:
    """An option's value as in a manifest; a dash where a backend has no such option."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return listed(value)
    return value if isinstance(value, str) else json.dumps(value)


def differing_options(results: Iterable[Result]) -> list[str]:
    """The options, by name, whose value is not the same in all results that have them."""
    values: dict[str, set[str]] = {}
    for result in results:
        for name, value in result["target"]["options"].items():
            values.setdefault(name, set()).add(option_text(value))
    return [name for name, found in values.items() if len(found) > 1]


_HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters: a terminal obeys them, XML forbids them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # make text appear in another order than it is
    "\ud800-\udfff\ufffe\uffff]"  # halves of pairs, from names of files; no characters at all
)


def clean(text: object) -> str:
    """Text in which a control character (but tab and newline) or half a pair is a sign: U+FFFD."""
    return _HARMFUL.sub("\N{REPLACEMENT CHARACTER}", str(text).replace("\r\n", "\n"))


def one_line(text: object) -> str:
    """`clean`, with each run of white space as one space."""
    return clean(" ".join(str(text).split()))


@dataclass(frozen=True)
class Note:
    """A sentence and the results that it speaks of.

    Attributes:
        text: the sentence.
        where: results in words, or how many.
    """

    text: str
    where: str


def unmeasured(results: Sequence[Result]) -> list[tuple[str, Note]]:
    """Each error once, with the status (``failed`` or ``skipped``) and all results that have it."""
    found: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result["status"] != "ok":
            found.setdefault((result["status"], result["error"]), []).append(result["name"])
    return [(status, Note(error, "; ".join(names))) for (status, error), names in found.items()]


def notes(results: Sequence[Result]) -> list[Note]:
    """Warnings, and what disturbed measurements, each kind once.

    Disturbances that differ in their figures are one kind, and show the range of each figure.
    """
    warnings: dict[str, list[str]] = {}
    factors: dict[str, list[tuple[float, str]]] = {}
    disturbances: dict[str, list[tuple[str, str]]] = {}
    for result in results:
        name, latency = result["name"], result["latency"]
        for text in result["warnings"]:
            if match := _FACTOR.search(text):
                kind = text[: match.start()].rstrip()
                factors.setdefault(kind, []).append((float(match[1]), name))
            else:
                warnings.setdefault(text, []).append(name)
        if latency and not latency["steady"]:
            warnings.setdefault("The warm-up did not become steady.", []).append(name)
        for text in latency["disturbances"] if latency else ():
            disturbances.setdefault(_FIGURE.sub("#", text), []).append((text, name))

    def where(names: Iterable[str]) -> str:
        distinct = list(dict.fromkeys(names))
        if len(distinct) <= NAMED:
            return "; ".join(distinct)
        count = len(distinct)
        return (
            f"all {count} targets"
            if count == len(results)
            else f"{count} of {len(results)} targets"
        )

    found = [Note(text, where(names)) for text, names in warnings.items()]
    for text, pairs in factors.items():
        worst = [f"{name} x{factor:.2f}" for factor, name in sorted(pairs)]
        more = [f"and {len(worst) - NAMED} more"] if len(worst) > NAMED else []
        found.append(Note(text, "; ".join([*worst[:NAMED], *more])))
    for seen in disturbances.values():
        text = _with_ranges([sentence for sentence, _ in seen])
        found.append(Note(text, where(name for _, name in seen)))
    return found


_FACTOR = re.compile(r"\(x([0-9.]+)\)$")
"""How a warning says by how much a target is slower than its peer in fp32."""
_FIGURE = re.compile(r"(?<![\w.-])\d+(?:\.\d+)?(?!\w|[.-]\w)")
"""A number that is no part of a name or a version."""


def _with_ranges(sentences: Sequence[str]) -> str:
    """One sentence for several that differ in their figures."""
    figures = zip(*(_FIGURE.findall(sentence) for sentence in sentences), strict=True)
    ranges = (
        "-".join(dict.fromkeys((min(found, key=float), max(found, key=float)))) for found in figures
    )
    return _FIGURE.sub(_next_of(ranges), sentences[0])


def _next_of(texts: Iterable[str]) -> Callable[[re.Match[str]], str]:
    iterator = iter(texts)
    return lambda _match: next(iterator)

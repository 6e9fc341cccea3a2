"""What all forms of a comparison say alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wherry.records.compare import MARGINS, FailOn
from wherry.reports import words

Comparison = Mapping[str, Any]
"""As `wherry.records.compare.compare` makes it, with ``fail_on`` and ``failures``."""

Figure = Mapping[str, Any]
"""One of a result's ``figures``."""


@dataclass(frozen=True)
class Row:
    """A line of the table; ``told``: it is no mere confirmation that nothing has changed."""

    target: str
    figure: str
    base: str
    new: str
    change: str
    interval: str
    verdict: str
    told: bool


HEAD = ("target", "figure", "base", "new", "change", "95 %", "")


def rows(comparison: Comparison) -> Iterator[Row]:
    """All figures of all targets that are in both."""
    for result in comparison["results"]:
        for figure in result["figures"]:
            yield Row(
                result["name"],
                figure["figure"].removesuffix(".median_ms"),
                value_text(figure, figure["base"]),
                value_text(figure, figure["new"]),
                change_text(figure),
                interval_text(figure),
                verdict_text(figure),
                figure["verdict"] in {"better", "worse"} or figure["figure"] == "latency.median_ms",
            )


def value_text(figure: Figure, value: float | None) -> str:
    """A value in its unit."""
    unit = figure["unit"]
    if unit == "B":
        return words.bytes_text(None if value is None else round(value))
    if unit == "ms":
        return words.ms_text(value) + (" ms" if value is not None else "")
    if unit == "mJ":
        return words.energy_text(value) + (" mJ" if value is not None else "")
    return words.metric_text(value) + (f" {unit}" if unit and value is not None else "")


def change_text(figure: Figure, over: float = 0.0) -> str:
    """Metrics by their difference, all else in percent.

    Args:
        figure: that has changed.
        over: a relative change that is a bound: what is more than it is shown as more.
    """
    if figure["difference"] is None:
        return "-"
    if figure["unit"] not in {"B", "ms", "mJ"}:
        return f"{figure['difference']:+.4g}"
    if figure["change"] is None:
        return "-"
    if figure["verdict"] not in {"better", "worse"}:
        return percent(figure["change"], over)
    return percent(figure["change"], max(over, MARGINS.get(figure["figure"], 0.0)))


def percent(share: float, over: float = 0.0) -> str:
    """``+5.1 %``; with more digits where one hides that it is more than a bound."""
    digits = 1
    while over and abs(share) > over >= round(abs(share), digits + 2) and digits < _MOST_DIGITS:
        digits += 1
    return f"{100 * share:+.{digits}f} %"


_MOST_DIGITS = 6
"""Of a percentage: a byte in a hundred megabytes."""


def interval_text(figure: Figure) -> str:
    """On the scale of `change_text`."""
    if figure["ci95"] is None:
        return "-"
    if figure["unit"] == "ms":
        low, high = (percent(end / figure["base"]) for end in figure["ci95"])
        return f"{low.removesuffix(' %')} to {high}"
    low, high = (f"{end:+.4g}" for end in figure["ci95"])
    return f"{low} to {high}"


def verdict_text(figure: Figure) -> str:
    """The verdict, and why where it needs a reason."""
    why = figure["why"]
    return f"{figure['verdict']}: {why}" if why else figure["verdict"]


def sentence(figure: Figure, over: float = 0.0) -> str:
    """A figure in a line: ``latency.median_ms 5.000 ms to 5.250 ms, +5.0 % (...): worse``."""
    text = f"{figure['figure']} {value_text(figure, figure['base'])} to "
    text += f"{value_text(figure, figure['new'])}"
    if figure["difference"] is not None:
        text += f", {change_text(figure, over)}"
    if figure["ci95"] is not None:
        text += f" (95 %: {interval_text(figure)})"
    return f"{text}: {verdict_text(figure)}"


def failure_text(failure: Mapping[str, Any], comparison: Comparison) -> str:
    """One of the comparison's ``failures`` in a line."""
    least = FailOn.parse(comparison["fail_on"]).least
    for result in comparison["results"]:
        for figure in result["figures"]:
            if (result["name"], figure["figure"]) == (failure["name"], failure["figure"]):
                return f"{result['name']}: {sentence(figure, least)}"
    return ": ".join(filter(None, (failure["name"], failure["why"])))


def failures_text(comparison: Comparison) -> str:
    """All that fails in a paragraph: what is worse apart from what is not known to be as good."""
    parts = []
    for kind, head in _KINDS.items():
        found = [each for each in comparison["failures"] if each["kind"] == kind]
        texts = [words.one_line(failure_text(each, comparison)) for each in found[: words.NAMED]]
        if texts:
            more = [f"and {len(found) - words.NAMED} more"] if len(found) > words.NAMED else []
            parts.append(f"{len(found)} {head}: " + "; ".join([*texts, *more]))
    return f"{comparison['fail_on']}: " + ". ".join(parts)


_KINDS = {
    "worse": "worse",
    "not comparable": "not comparable, and so not known to be as good",
    "not measured": "not measured on both sides",
}


def failures_remedy(comparison: Comparison) -> str:
    """What to do about what fails without being worse; empty: nothing does."""
    failures = comparison["failures"]
    reasons = dict.fromkeys(word for each in failures for word in each["reasons"])
    remedies = []
    if reasons:
        flags = " ".join(f"--allow {word}" for word in reasons)
        remedies.append(f"`{flags}` compares all the same what is not comparable for that reason.")
    if any(each["kind"] != "worse" and not each["reasons"] for each in failures):
        remedies.append("Measure what is missing, or take another base.")
    return " ".join(remedies)


def summary(comparison: Comparison) -> str:
    """``1 worse, 2 better, 9 the same, 3 not comparable``."""
    counts = comparison["summary"]
    names = {"same": "the same"}
    found = [
        f"{counts[verdict]} {names.get(verdict, verdict)}"
        for verdict in ("worse", "better", "same", "not comparable")
        if counts[verdict]
    ]
    return ", ".join(found) or "nothing to compare"


def notes(comparison: Comparison) -> Iterator[str]:
    """What was allowed, what is unlike, what is in one run only, what else is another."""
    if comparison["allowed"]:
        allowed = ", ".join(comparison["allowed"])
        yield f"unlike measurements are compared, for that was allowed: {allowed}"
    unlike: dict[str, list[str]] = {}
    differs: dict[str, list[str]] = {}
    for result in comparison["results"]:
        for each in result["unlike"]:
            word = "allowed" if each["allowed"] else "not compared"
            unlike.setdefault(f"{word}, {each['reason']}: {each['text']}", []).append(
                result["name"]
            )
        for text in result["differs"]:
            differs.setdefault(text, []).append(result["name"])
    for text, names in {**unlike, **differs}.items():
        yield f"{text} ({_where(names, comparison)})"
    for result in comparison["results"]:
        if result["status"] != "compared":
            yield f"{result['status']}: {result['name']}: {result['why']}"


def _where(names: Iterable[str], comparison: Comparison) -> str:
    found = list(names)
    if len(found) <= words.NAMED:
        return "; ".join(found)
    return f"{len(found)} of {len(comparison['results'])} targets"


def title(comparison: Comparison) -> str:
    """Which two are compared."""
    return f"{comparison['base']['source']} to {comparison['new']['source']}"

"""Gates: read, and checked against each other and the rows that they speak of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path as FilePath

from wherry.manifest.expand import Expander, Row
from wherry.manifest.problems import Path, Problems, suggest, validate
from wherry.manifest.schema import BOUNDS, GateForm
from wherry.manifest.sections import (
    COMPARED,
    MEASURED,
    ORIGINAL,
    Drop,
    Gate,
    MetricSection,
    Selector,
)
from wherry.manifest.source import Node


def read_gates(
    nodes: Sequence[Node],
    metrics: Sequence[MetricSection],
    rows: Sequence[Row] | None,
    expander: Expander,
    base: FilePath,
) -> tuple[Gate, ...]:
    """Read ``gates:``.

    Args:
        nodes: the gates.
        metrics: of the manifest.
        rows: None where the targets are wrong, so that none can be missed.
        expander: knows the words of `where:`.
        base: where baseline files' relative paths start.
    """
    root, problems = expander.root, expander.problems
    gates: list[tuple[Path, Gate]] = []
    known = [*(metric.key for metric in metrics), *MEASURED]
    for index, node in enumerate(nodes):
        path: Path = ("gates", index)
        form = validate(GateForm, node, root, path, problems)
        if form is None:
            continue
        if form.metric not in known:
            problems.add(
                root.at((*path, "metric")),
                f"{form.metric!r} is no metric of this manifest, nor one that is always measured",
                suggest(form.metric, known),
            )
            continue
        if (wrong := _comparison_problem(form)) is not None:
            key, message, remedy = wrong
            problems.add(root.at((*path, key)), message, remedy)
            continue
        where: Selector | None = Selector()
        if form.where is not None:
            where = expander.selector(root.find((*path, "where"))[0], (*path, "where"))
        if where is None:
            continue
        gate = Gate(
            metric=form.metric,
            where=where,
            max_drop=_amount(form.max_drop),
            min=form.min,
            max=form.max,
            text=_text(form),
            location=str(root.at(path)),
            max_increase=_amount(form.max_increase),
            min_speedup=form.min_speedup,
            against=_against(form, base),
            allow=frozenset(form.allow or ()),
        )
        if rows is not None and not _spoken_of(gate, rows):
            problems.add(root.at((*path, "where")), *_never(gate))
            continue
        if gate.against == ORIGINAL and (alone := _without_original(gate, rows or ())) is not None:
            problems.add(
                root.at((*path, "against")),
                f"{alone.variant} on {alone.target.describe()} has no original to compare with",
                "Let the variant `original` run there, too, or narrow the gate's `where:`.",
            )
            continue
        gates.append((path, gate))
    _check_bounds(gates, root, rows or (), problems)
    return tuple(gate for _, gate in gates)


Wrong = tuple[str, str, str]
"""A key, the problem, the remedy."""


def _comparison_problem(form: GateForm) -> Wrong | None:
    """What is wrong with what a gate compares."""
    metric, against, increase = form.metric, form.against, form.max_increase
    if form.max_drop is not None and metric in MEASURED:
        return (
            "max_drop",
            f"{metric} cannot drop: the original in fp32 has none to compare with",
            "Give min, max or max_increase; max_drop is for the metrics of this manifest.",
        )
    if increase is not None and metric not in COMPARED:
        return (
            "max_increase",
            f"{metric} is not compared with other runs",
            f"max_increase is for {', '.join(COMPARED)}; max_drop for the manifest's metrics.",
        )
    if isinstance(increase, str) and not _fits(increase, metric):
        return ("max_increase", f"{increase!r} is no amount of {metric}", "Correct the unit.")
    if form.min_speedup is not None and metric != COMPARED[0]:
        what = f"a speed-up is of {COMPARED[0]}, not of {metric}"
        return ("min_speedup", what, "Correct the metric.")
    if increase is not None and against is None:
        return (
            "max_increase",
            "it is not said what is compared with",
            "Add `against:` with original, fp32, last, best, tag:NAME or a baseline file.",
        )
    return _against_problem(form)


def _against_problem(form: GateForm) -> Wrong | None:
    against = form.against
    if form.max_drop is not None and against == "fp32":
        return (
            "against",
            "metrics are not compared with the same target in fp32",
            "Leave `against:` out: the original in fp32 is what they are compared with.",
        )
    compares = ("max_drop", "max_increase", "min_speedup")
    if against is not None and all(getattr(form, bound) is None for bound in compares):
        return (
            "against",
            "no bound of this gate compares",
            f"Give {', '.join(compares[:2])} or {compares[2]}, or remove `against:`.",
        )
    if form.allow is not None and against in {None, ORIGINAL, "fp32"}:
        remedy = "Remove it, or compare with a baseline file, a tag, `last` or `best`."
        return ("allow", "it is for comparing with other runs", remedy)
    return None


def _spoken_of(gate: Gate, rows: Sequence[Row]) -> list[Row]:
    return [
        row
        for row in rows
        if gate.speaks_of(row.variant) and gate.where.matches(row.variant, row.target)
    ]


def _never(gate: Gate) -> tuple[str, str]:
    """The problem of a gate that speaks of no row, and the remedy."""
    if gate.against == ORIGINAL:
        return (
            "no variant but the original is like that: there is nothing to compare with it",
            "Correct `where:`, or add a variant.",
        )
    return (
        "no target of this manifest is like that: the gate would never be looked at",
        "Correct `where:`, or remove the gate.",
    )


def _without_original(gate: Gate, rows: Sequence[Row]) -> Row | None:
    """A row that the gate speaks of, on whose target the original does not run."""
    known = {id(row.target) for row in rows if row.variant == ORIGINAL}
    return next((row for row in _spoken_of(gate, rows) if id(row.target) not in known), None)


_UNITS = {"ms": ("ms", 1.0), "B": ("bytes", 1.0), "kB": ("bytes", 1e3), "MB": ("bytes", 1e6),
          "mJ": ("mj", 1.0)}  # fmt: skip


def _split(written: str) -> tuple[float, str]:
    number = written.rstrip("%msBkMJ ")
    return float(number), written[len(number) :].strip()


def _fits(written: str, metric: str) -> bool:
    """Whether an amount's unit is one of the metric's."""
    unit = _split(written)[1]
    return unit in {"", "%"} or metric.endswith(f"_{_UNITS[unit][0]}")


def _amount(written: float | str | None) -> Drop | None:
    if isinstance(written, str):
        number, unit = _split(written)
        if unit == "%":
            return Drop(number / 100, relative=True)
        return Drop(number * _UNITS[unit][1] if unit else number)
    return None if written is None else Drop(written)


def _against(form: GateForm, base: FilePath) -> str | None:
    """Files as absolute paths, and what is meant where nothing is said."""
    against = form.against
    if against is None:
        return None if form.min_speedup is None else "fp32"
    if against == ORIGINAL and form.max_drop is not None:
        return None  # of metrics there is one in fp32 on the host, whatever the targets are
    if against.endswith(".json") and not against.startswith("tag:"):
        return str(base / FilePath(against).expanduser())
    return against


def _text(form: GateForm) -> str:
    """``top1 max_drop 0.01 where device pi4``."""
    words = [form.metric]
    for bound in BOUNDS:
        value = getattr(form, bound)
        if value is not None:
            words += [bound, value if isinstance(value, str) else f"{value:g}"]
    if form.against is not None:
        words += ["against", form.against]
    if form.allow is not None:
        words += ["allow", "|".join(form.allow)]
    if form.where is not None:
        chosen = form.where.model_dump(exclude_unset=True)
        conditions = [f"{kind} {'|'.join(map(str, values))}" for kind, values in chosen.items()]
        words += ["where", " and ".join(conditions)]
    return " ".join(words)


def _check_bounds(
    gates: Sequence[tuple[Path, Gate]], root: Node, rows: Sequence[Row], problems: Problems
) -> None:
    """No value may have to be above one gate's least and below another's greatest."""
    for (low_path, low), (high_path, high) in product(gates, gates):
        if low.metric != high.metric or low.min is None or high.max is None:
            continue
        if low.min <= high.max:
            continue
        for row in rows:
            pair = (low.where, high.where)
            if all(where.matches(row.variant, row.target) for where in pair):
                problems.add(
                    root.at(max(low_path, high_path)),
                    f"no value of {low.metric} can pass: it must be at least {low.min:g} "
                    f"({low.location}) and at most {high.max:g} ({high.location}) for "
                    f"{row.variant} on {row.target.describe()}",
                    "Correct a bound, or keep the gates apart with `where:`.",
                )
                break

"""Gates: read, and checked against each other and the rows that they speak of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from wherry.manifest.expand import Expander, Row
from wherry.manifest.problems import Path, Problems, suggest, validate
from wherry.manifest.schema import GateForm
from wherry.manifest.sections import MEASURED, Drop, Gate, MetricSection, Selector
from wherry.manifest.source import Node


def read_gates(
    nodes: Sequence[Node],
    metrics: Sequence[MetricSection],
    rows: Sequence[Row] | None,
    expander: Expander,
) -> tuple[Gate, ...]:
    """Read ``gates:``; ``rows`` is None where the targets are wrong, so that none can be missed."""
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
        if form.max_drop is not None and form.metric in MEASURED:
            problems.add(
                root.at((*path, "max_drop")),
                f"{form.metric} cannot drop: the original in fp32 has none to compare with",
                "Give min or max; max_drop is for the metrics of this manifest.",
            )
            continue
        where: Selector | None = Selector()
        if form.where is not None:
            where = expander.selector(root.find((*path, "where"))[0], (*path, "where"))
        if where is None:
            continue
        if rows is not None and not any(where.matches(row.variant, row.target) for row in rows):
            problems.add(
                root.at((*path, "where")),
                "no target of this manifest is like that: the gate would never be looked at",
                "Correct `where:`, or remove the gate.",
            )
            continue
        gate = Gate(
            metric=form.metric,
            where=where,
            max_drop=_drop(form.max_drop),
            min=form.min,
            max=form.max,
            text=_text(form),
            location=str(root.at(path)),
        )
        gates.append((path, gate))
    _check_bounds(gates, root, rows or (), problems)
    return tuple(gate for _, gate in gates)


def _drop(written: float | str | None) -> Drop | None:
    if isinstance(written, str):
        return Drop(float(written.removesuffix("%")) / 100, relative=True)
    return None if written is None else Drop(written)


def _text(form: GateForm) -> str:
    """``top1 max_drop 0.01 where device pi4``."""
    words = [form.metric]
    for bound in ("max_drop", "min", "max"):
        value = getattr(form, bound)
        if value is not None:
            words += [bound, value if isinstance(value, str) else f"{value:g}"]
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

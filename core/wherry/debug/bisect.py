"""``--bisect``: the least set of nodes that have to stay in fp32 for the wanted accuracy.

The candidates are the layers, ranked by what their own errors do to the outputs. With the worst
``n`` of them in fp32, the accuracy grows with ``n``: a binary search finds the least ``n``. Of
those, every one is then left out again by trial, in ever smaller groups: a layer is kept only if
the accuracy is missed without it. Each try is converted, run on the device and scored; each is in
the store, so that a search that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.debug.case import Case, Spread
from wherry.errors import UnsupportedError, UsageError
from wherry.reference import Reference, load_reference, record_reference
from wherry.stages.context import HostContext, take_or_build
from wherry.stages.keys import agent_code, files_digest, own_code, own_lock, plugin_code
from wherry.stages.prepare import model_ready
from wherry.stages.reference import make_metrics
from wherry.store import Key
from wherry.wording import counted

if TYPE_CHECKING:
    from wherry.artifact import Artifact
    from wherry.device import Session
    from wherry.manifest.sections import Gate
    from wherry.metrics import Metric
    from wherry.stages.services import Services

SAMPLES = 500
"""How many samples a try is scored on unless the user says."""

DEFAULTS = ("agreement", 0.99), ("sqnr_db", 20.0)
"""What is wanted where neither the user nor the manifest says: of networks that tell classes, and
of others."""

FEW = 16
"""Up to so many nodes are tried one by one at the end, rather than those of a layer together."""

SCORES_FILE = "scores.json"


@dataclass(frozen=True)
class Want:
    """The accuracy that is wanted.

    Attributes:
        metric: its word in the scores.
        bound: the value to reach.
        higher: whether greater values are better.
        source: who says so, for people.
    """

    metric: str
    bound: float
    higher: bool
    source: str

    def met(self, scores: Mapping[str, float]) -> bool:
        """Whether a try reaches it."""
        value = scores[self.metric]
        # differences of floats: a value that equals the bound in decimal reaches it
        slack = 1e-12 * (abs(value) + abs(self.bound))
        better = value - self.bound if self.higher else self.bound - value
        return better >= -slack

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.metric} {'>=' if self.higher else '<='} {self.bound:.6g} ({self.source})"


@dataclass(frozen=True)
class Try:
    """One set of nodes in fp32, converted and run.

    Attributes:
        nodes: beside those that the manifest keeps already.
        scores: metric to value.
        met: whether they are what is wanted.
        size_bytes: of the artifact.
    """

    nodes: tuple[str, ...]
    scores: Mapping[str, float]
    met: bool
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Of the report."""
        return {
            "nodes": list(self.nodes),
            "metrics": dict(self.scores),
            "met": self.met,
            "size_bytes": self.size_bytes,
        }


@dataclass(frozen=True)
class Bisection:
    """What came of the search.

    Attributes:
        want: what was wanted.
        original: the scores of the model in fp32.
        found: the least set; None: even with all layers in fp32 it is not reached.
        tries: in their order, ``found`` among them.
        samples: how many each was scored on.
    """

    want: Want
    original: Mapping[str, float]
    found: Try | None
    tries: tuple[Try, ...]
    samples: int

    def to_json(self) -> dict[str, Any]:
        """Of the report."""
        return {
            "want": {
                "metric": self.want.metric,
                "bound": self.want.bound,
                "better": "higher" if self.want.higher else "lower",
                "text": self.want.text,
            },
            "samples": self.samples,
            "original": dict(self.original),
            "found": None if self.found is None else self.found.to_json(),
            "tries": [attempt.to_json() for attempt in self.tries],
        }


class Scorer:
    """Runs artifacts of a case on its device, and scores what they give.

    Args:
        case: what is debugged.
        session: with its device.
        samples: how many, evenly spread over the data.
        extra: a metric to score beside the manifest's; empty: none.
        progress: told what is being done.

    Attributes:
        original: the scores of the model in fp32.
    """

    def __init__(
        self,
        case: Case,
        session: Session,
        samples: int,
        extra: str,
        progress: Callable[[str], None],
    ) -> None:
        self._case = case
        self._session = session
        self._data = Spread(case.dataset, samples)
        self._ready = model_ready(self._data, case.original, case.services)
        self._extra = extra
        self._progress = progress
        key = Key("debug-reference", self._data_parts())

        def record(context: HostContext) -> None:
            reference = Reference(case.original)
            record_reference(reference, self._ready, context.output, progress=self._count)

        progress("running the original")
        entry, _, _ = take_or_build(case.services, "original", key, record)
        self._reference = load_reference(entry.directory)
        metrics = self._metrics()
        for index, sample in enumerate(self._data):
            _feed(metrics, self._reference(index), self._reference(index), sample.label)
        self.original = _results(metrics)

    def __len__(self) -> int:
        return len(self._data)

    def score(self, artifact: Artifact) -> Mapping[str, float]:
        """Metric to value, from the device or from the store."""
        case, services = self._case, self._case.services
        device = case.target.device
        board = self._session.info
        key = Key(
            "score",
            {
                **self._data_parts(),
                "artifact": artifact.digest,
                "options": case.target.options.model_dump(mode="json", exclude={"keep_fp32"}),
                "runtime": self._session.runtime_lock(case.backend),
                "runner": files_digest(case.backend.board_code),
                "agent": agent_code(services, device),
                "board": [board.fingerprint, board.identity],
                "metrics": {name: _code(name, services) for name in self._metrics()},
            },
        )

        def build(context: HostContext) -> None:
            (context.output / SCORES_FILE).write_text(json.dumps(self._run(artifact)))

        entry, _, _ = take_or_build(services, "score", key, build)
        scores: dict[str, float] = json.loads((entry.directory / SCORES_FILE).read_text())
        return scores

    def _run(self, artifact: Artifact) -> dict[str, float]:
        metrics = self._metrics()
        labels: deque[int | np.ndarray | None] = deque()

        def samples() -> Iterator[Mapping[str, np.ndarray]]:
            for sample in self._ready:
                labels.append(sample.label)
                yield sample.inputs

        case = self._case
        with self._session.host(artifact, case.target, case.backend, {}) as hosted:
            for index, outputs in enumerate(hosted.infer(samples())):
                _feed(metrics, outputs, self._reference(index), labels.popleft())
                self._count(index + 1, len(self._data))
        return _results(metrics)

    def _count(self, done: int, total: int) -> None:
        self._case.services.check()
        if done % 50 == 0:
            self._progress(f"{done}/{total} samples")

    def _metrics(self) -> dict[str, Metric]:
        metrics = make_metrics(self._case.services)
        if self._extra and self._extra not in metrics:
            metrics[self._extra] = self._case.services.host.metrics[self._extra].create(None)
        return metrics

    def _data_parts(self) -> dict[str, Any]:
        case = self._case
        return {
            "original": case.original.digest,
            "data": self._data.digest,
            "preprocess": dict(case.services.manifest.model.preprocess),
            "code": own_code("data/views", "preprocess", "reference", "debug/bisect"),
            "host": own_lock(),
        }


def in_fp32(count: int) -> str:
    """For people."""
    return f"{counted(count, 'node')} in fp32"


def _feed(
    metrics: Mapping[str, Metric],
    outputs: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    label: int | np.ndarray | None,
) -> None:
    for metric in metrics.values():
        metric.update(outputs, reference, label)


def _results(metrics: Mapping[str, Metric]) -> dict[str, float]:
    return {name: float(metric.result()) for name, metric in metrics.items()}


def _code(key: str, services: Services) -> list[Any]:
    """What stands for a metric in keys."""
    name = next((s.name for s in services.manifest.metrics if s.key == key), key)
    kind = services.host.metrics[name]
    return [plugin_code(services, "metrics", name, kind.files), kind.version]


def wanted(
    services: Services, text: str | None
) -> tuple[str, Callable[[Mapping[str, float]], Want]]:
    """What is wanted: the metric, and what makes the bound from the original's scores.

    Args:
        services: of a run whose plan has one row.
        text: the user's ``METRIC=VALUE``; None: the first gate on a metric that speaks of this
            row, or else a default.

    Raises:
        UsageError: there is no such metric, or no number.
    """
    (row,) = services.plan.rows
    kinds = services.host.metrics
    keys = {section.key: section.name for section in services.manifest.metrics}

    def higher(metric: str) -> bool:
        return kinds[keys.get(metric, metric)].better == "higher"

    if text is not None:
        metric, _, value = text.partition("=")
        if metric not in keys and metric not in kinds:
            raise UsageError(
                f"there is no metric {metric!r} to want",
                remedy=f"There are {', '.join(sorted({*keys, *kinds}))}.",
            )
        try:
            bound = float(value)
        except ValueError:
            bound = math.nan
        if not math.isfinite(bound):  # it would be reached by all, or by none
            raise UsageError(
                f"{text!r} wants no number", remedy="Write METRIC=VALUE, e.g. top1=0.97."
            )
        return metric, lambda _original: Want(metric, bound, higher(metric), "--want")
    for gate in services.manifest.gates:
        if gate.metric not in keys or not gate.where.matches(row.variant, row.target):
            continue
        up, source = higher(gate.metric), f"the gate `{gate.text}`"
        least = gate.min if up else gate.max
        drops = gate.max_drop is not None and gate.against is None
        if not drops and least is None:
            continue
        return gate.metric, partial(_of_gate, gate, up, least, source)
    classes = {"top1", "top5", "agreement"}.intersection(keys.values())
    metric, bound = DEFAULTS[0] if classes else DEFAULTS[1]
    return metric, lambda _original: Want(metric, bound, higher(metric), "the default")


def _of_gate(
    gate: Gate, up: bool, least: float | None, source: str, original: Mapping[str, float]
) -> Want:
    """What a gate wants, where the original has these scores."""
    bounds = [] if least is None else [least]
    if gate.max_drop is not None and gate.against is None:
        value, drop = original[gate.metric], gate.max_drop
        most = drop.amount * (abs(value) if drop.relative else 1.0)
        bounds.append(value - most if up else value + most)
    return Want(gate.metric, max(bounds) if up else min(bounds), up, source)


def bisect(
    case: Case,
    units: Sequence[tuple[str, ...]],
    scorer: Scorer,
    want: Want,
    progress: Callable[[str], None],
    done: Callable[[], None] = lambda: None,
) -> Bisection:
    """Search; see the module.

    Args:
        case: what is debugged.
        units: nodes that are kept together, the most worthwhile first.
        scorer: of the case.
        want: what is to be reached.
        progress: told of each try.
        done: called after each: the board was there.

    Raises:
        UnsupportedError: the backend cannot keep single nodes in fp32.
        WherryError: a try could not be converted or run.
    """
    if case.target.precision not in case.backend.mixed:
        raise UnsupportedError(
            f"{case.target.describe()} cannot keep single nodes in fp32, so that there is nothing "
            "to search",
            remedy="Leave --bisect out.",
        )
    search = _Search(case, scorer, want, progress, done)
    found = search.run(units)
    return Bisection(want, scorer.original, found, tuple(search.tries), len(scorer))


class _Search:
    def __init__(
        self,
        case: Case,
        scorer: Scorer,
        want: Want,
        progress: Callable[[str], None],
        done: Callable[[], None],
    ) -> None:
        self._case = case
        self._scorer = scorer
        self._done = done
        self._want = want
        self._progress = progress
        self._known: dict[frozenset[str], Try] = {}
        self.tries: list[Try] = []

    def run(self, units: Sequence[tuple[str, ...]]) -> Try | None:
        """The least set that was found; None: there is none."""
        if self._reaches([]):
            return self._try([])
        if not units or not self._reaches(units):
            return None
        low, high = 0, len(units)  # it is missed with ``low``, and reached with ``high``
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._reaches(units[:middle]) else (middle, high)
        kept = self._without_needless(list(units[:high]))
        nodes = dict.fromkeys(node for unit in kept for node in unit)
        if len(kept) < len(nodes) <= FEW:  # a layer may need only some of its nodes
            kept = self._without_needless([(node,) for node in nodes])
        return self._try(kept)

    def _without_needless(self, kept: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Leave out what can be, in groups of half of them, of a quarter, ..., of one.

        The least worthwhile are tried first, so that of two that do alike the other one stays.
        """
        size = max(1, len(kept) // 2)
        while size:
            end = len(kept)
            while end > 0:
                start = max(0, end - size)
                rest = kept[:start] + kept[end:]
                if rest and self._reaches(rest):
                    kept = rest
                end = start
            size //= 2
        return kept

    def _reaches(self, units: Sequence[tuple[str, ...]]) -> bool:
        return self._try(units).met

    def _try(self, units: Sequence[tuple[str, ...]]) -> Try:
        nodes = tuple(dict.fromkeys(node for unit in units for node in unit))
        known = self._known.get(frozenset(nodes))
        if known is not None:
            return known
        self._progress(f"running try {len(self.tries) + 1}: {in_fp32(len(nodes))}")
        target = self._case.target
        keep = tuple(dict.fromkeys((*target.options.keep_fp32, *nodes)))
        options = target.options.model_copy(update={"keep_fp32": keep})
        artifact = self._case.converted(replace(target, options=options))
        scores = self._scorer.score(artifact)
        self._done()
        made = Try(nodes, scores, self._want.met(scores), artifact.size_bytes)
        self._known[frozenset(nodes)] = made
        self.tries.append(made)
        self._progress(
            f"try {len(self.tries)}: {in_fp32(len(nodes))}: {self._want.metric} "
            f"{scores[self._want.metric]:.6g}"
        )
        return made

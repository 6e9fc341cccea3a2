"""Whether two results are measurements of the like, and why not: never compared silently."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from wherry.difference import makes_pairs
from wherry.errors import UsageError
from wherry.records.rows import target_key
from wherry.records.snapshot import Board, TargetSnapshot, Timing

LATENCY, SIZE, MEMORY, ENERGY = "latency.median_ms", "size_bytes", "peak_memory_bytes", "energy_mj"
ORIGINAL = "original"
"""The reason that no time and no board takes away."""

REASONS: Mapping[str, str] = {
    "options": "they ran with other options, such as another number of threads",
    "board": "they ran on two boards",
    "system": "the board's system has changed in between",
    "clocks": "governor, power mode or fixed clocks differ",
    "timer": "two clocks held the time",
    "emulated": "a board is emulated, where latency means nothing",
    "not-clean": "something disturbed a measurement",
    "convention": "wherry measured in two ways",
    "data": "the metrics are over other samples",
    "metric": "a metric is made in two ways",
    ORIGINAL: "a metric against the original, and the originals differ",
    "energy": "the energy was found in two ways",
}
"""Why figures are not compared; each can be allowed by its word."""


@dataclass(frozen=True)
class Unlike:
    """Why some figures of two results are not compared.

    Attributes:
        reason: a key of `REASONS`.
        text: what was found on both sides.
        figures: of which figures that is said.
    """

    reason: str
    text: str
    figures: frozenset[str]


def check_reasons(words: Iterable[str]) -> frozenset[str]:
    """Of ``--allow``; raises `UsageError` for a word that is no reason."""
    allowed = frozenset(words)
    if unknown := sorted(allowed - set(REASONS)):
        raise UsageError(
            f"{unknown[0]!r} is no reason why measurements are unlike",
            remedy=f"There are {', '.join(REASONS)}.",
        )
    return allowed


def pair(
    base: Sequence[TargetSnapshot], new: Sequence[TargetSnapshot]
) -> list[tuple[TargetSnapshot | None, TargetSnapshot | None]]:
    """Which results of two runs belong together, in the order of the new ones; None: no other.

    The same on both sides; what is left, by all but the options where one each is left, so that a
    change of threads is told as such; and then by all but the device, too.
    """
    left, right = list(base), list(new)
    partner: dict[int, TargetSnapshot] = {}
    for key in (key_of, _without_options, _without_device):
        mine, theirs = _by(key, left), _by(key, (n for n in right if id(n) not in partner))
        for word, (one, *more) in theirs.items():
            found = mine.get(word, [])
            if len(found) == 1 and not more:
                partner[id(one)] = found[0]
                left.remove(found[0])
    pairs: list[tuple[TargetSnapshot | None, TargetSnapshot | None]] = [
        (partner.get(id(one)), one) for one in right
    ]
    return [*pairs, *((one, None) for one in left)]


def _by(key: object, targets: Iterable[TargetSnapshot]) -> dict[object, list[TargetSnapshot]]:
    assert callable(key)
    found: dict[object, list[TargetSnapshot]] = {}
    for target in targets:
        found.setdefault(key(target), []).append(target)
    return found


def key_of(target: TargetSnapshot) -> str:
    """What is the same in all runs: variant, backend, precision, device and options."""
    words = target.model_dump(include={"backend", "precision", "device", "options"})
    return target_key({"variant": target.variant, "target": words})


def _without_options(target: TargetSnapshot) -> tuple[str, ...]:
    return (*_without_device(target), target.device)


def _without_device(target: TargetSnapshot) -> tuple[str, ...]:
    return (target.variant, target.backend, target.precision)


def differences(base: TargetSnapshot, new: TargetSnapshot) -> list[Unlike]:
    """All reasons against comparing figures of two results of the same variant."""
    scores = frozenset(base.scores) | frozenset(new.scores)
    timed, physical = frozenset({LATENCY, ENERGY}), frozenset({LATENCY, ENERGY, MEMORY})
    found: list[Unlike] = []

    def add(reason: str, text: str, figures: frozenset[str]) -> None:
        found.append(Unlike(reason, text, figures))

    if base.options != new.options:
        add("options", _options(base, new), physical | scores | {SIZE})
    for reason, text in _boards(base, new):
        add(reason, text, physical)
    if clocks := _changed(base.board.clocks, new.board.clocks):
        add("clocks", clocks, timed)
    if base.timing and new.timing:
        for reason, text in _timings(base.timing, new.timing):
            add(reason, text, timed if reason != "emulated" else physical)
        if (which := disturbed(base, new)) and (hit := timed - _borne_alike(base, new)):
            add("not-clean", which, hit)
    if (base.data, base.evaluated) != (new.data, new.evaluated):
        samples = f"{base.evaluated} samples against {new.evaluated}"
        same = base.evaluated == new.evaluated
        add("data", "other samples, as many" if same else samples, scores)
    for name in sorted(frozenset(base.scores) & frozenset(new.scores)):
        one, other = base.scores[name], new.scores[name]
        if (one.definition, one.better, one.unit) != (other.definition, other.better, other.unit):
            add("metric", f"{name} is made by other code", frozenset({name}))
        if base.model != new.model and "original" in {one.against, other.against}:
            add(ORIGINAL, f"{name} is against each run's own original", frozenset({name}))
    if base.energy_by != new.energy_by and None not in {base.energy_mj, new.energy_mj}:
        add("energy", f"{base.energy_by} against {new.energy_by}", frozenset({ENERGY}))
    return found


def _options(base: TargetSnapshot, new: TargetSnapshot) -> str:
    names = sorted({*base.options, *new.options})
    found = [(name, base.options.get(name), new.options.get(name)) for name in names]
    return ", ".join(f"{name} {one} against {other}" for name, one, other in found if one != other)


def _boards(base: TargetSnapshot, new: TargetSnapshot) -> Iterator[tuple[str, str]]:
    one, other = base.board, new.board
    known = bool(one.identity and other.identity)
    if one.identity != other.identity if known else base.device != new.device:
        yield "board", f"{_board(base.device, one)} against {_board(new.device, other)}"
    elif one.fingerprint != other.fingerprint:
        same = one.system == other.system
        what = "memory, cores, Python or glibc" if same else f"{one.system} against {other.system}"
        yield "system", what


def _board(device: str, board: Board) -> str:
    name = f"{device} ({board.name})" if board.name else device
    return f"{name} {board.identity[:8]}".strip()


def _timings(base: Timing, new: Timing) -> Iterator[tuple[str, str]]:
    if base.timed_by != new.timed_by:
        yield "timer", f"{base.timed_by} against {new.timed_by}"
    if base.convention != new.convention:
        yield "convention", f"{base.convention} against {new.convention}"
    if which := _which(base.emulated, new.emulated):
        yield "emulated", which


def _which(base: bool, new: bool) -> str:
    """Of which side something is true; empty: of none."""
    return "both" if base and new else "the base" if base else "the new one" if new else ""


def disturbed(base: TargetSnapshot, new: TargetSnapshot) -> str:
    """Which of two that were timed is not clean; empty: none."""
    if base.timing is None or new.timing is None:
        return ""
    return _which(not base.timing.clean, not new.timing.clean)


def took_turns(base: TargetSnapshot, new: TargetSnapshot) -> bool:
    """Whether their rounds took turns, in one run or in two; of one measurement, too."""
    one_run = bool(new.measured_in) and base.measured_in == new.measured_in
    return one_run or (bool(new.turns) and base.turns == new.turns)


def one_measurement(base: TargetSnapshot, new: TargetSnapshot) -> bool:
    """Whether one of them was taken from the store, or both, so that they are the same."""
    same = (base.measured_in, base.artifact, base.name) == (new.measured_in, new.artifact, new.name)
    return same and bool(new.measured_in)


def _borne_alike(base: TargetSnapshot, new: TargetSnapshot) -> frozenset[str]:
    """The figures that are compared although something disturbed the measurement of a side.

    What disturbed both in turns fell on both alike. Where one side alone is marked: which side goes
    first is drawn for each pair, so that what came from outside hit either by chance; a pair has a
    rank and no more, so that a few do not decide; and what comes with a side, as its heat, is its
    own. Without pairs a few could decide, and energy has none.
    """
    if base.timing is None or new.timing is None or not took_turns(base, new):
        return frozenset()
    if not (base.timing.clean or new.timing.clean):
        return frozenset({LATENCY, ENERGY})
    known = None not in {base.energy_mj, new.energy_mj}
    paired = makes_pairs(base.timing.round_ms, new.timing.round_ms)
    return frozenset({LATENCY} if paired else ()) | frozenset(() if known else {ENERGY})


def _changed(base: Mapping[str, str], new: Mapping[str, str]) -> str:
    return ", ".join(
        f"{name} {base.get(name, 'unknown')} against {new.get(name, 'unknown')}"
        for name in sorted({*base, *new})
        if base.get(name) != new.get(name)
    )

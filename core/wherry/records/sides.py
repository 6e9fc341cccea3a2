"""The sides of a comparison by their names: runs, the best of all runs, baseline files."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.difference import LEAST_ROUNDS
from wherry.errors import UsageError
from wherry.records.likeness import LATENCY, check_reasons, differences, key_of
from wherry.records.naming import TAG
from wherry.records.snapshot import Snapshot, TargetSnapshot, read_baseline, snapshot

if TYPE_CHECKING:
    from wherry.records.database import Records
    from wherry.records.lists import Point

BEST = "best"


def is_file(name: str) -> bool:
    """Whether a name means a baseline file: it has a folder, or ends as one, and is no `TAG`."""
    return not name.startswith(TAG) and ("/" in name or name.endswith(".json"))


def is_manifest(name: str) -> bool:
    """Whether a name means a manifest, which is run; no `TAG` does."""
    return not name.startswith(TAG) and name.endswith((".yaml", ".yml"))


def sides(base: str, new: str, *, allow: Iterable[str] = ()) -> tuple[Snapshot, Snapshot]:
    """Both sides of a comparison.

    Args:
        base: an id of a run, the beginning of one, a tag, ``tag:NAME``, ``last``, ``last~N``, a
            baseline file, or ``best``.
        new: the same, but ``best``.
        allow: reasons for which ``best`` takes unlike measurements.

    Raises:
        UsageError: there is no such run.
        StoreError: what is there cannot be read.
    """
    from wherry.records.database import Records

    if new == BEST:
        raise UsageError("the best is what others are compared with", remedy="Give it first.")
    if is_file(base) and is_file(new):
        return read_baseline(Path(base)), read_baseline(Path(new))
    with Records.open() as records:
        if base != BEST:
            return side(records, base), side(records, new)
        if is_file(new):  # which has no folder of the manifest, but its name
            judged = read_baseline(Path(new))
            return best(records, judged, manifest=judged.manifest, allow=allow), judged
        record = records.load(new)
        judged = snapshot(record)
        return best(records, judged, manifest=record.values["manifest"], allow=allow), judged


def side(records: Records, name: str) -> Snapshot:
    """A run's, or a baseline file's; see `sides`."""
    if is_file(name):
        return read_baseline(Path(name))
    return snapshot(records.load(name))


def best(records: Records, new: Snapshot, *, manifest: str, allow: Iterable[str] = ()) -> Snapshot:
    """Of each target of a run the fastest clean measurement like it, over its manifest's others.

    It is the luckiest, too: what is compared with it looks a little worse than it is.

    Args:
        records: where they are.
        new: the run.
        manifest: of the run, as in `last_of`: targets of other networks are called alike. A network
            that was trained anew has the same manifest, and is what one wants to compare with.
        allow: reasons for which unlike measurements are taken.

    Raises:
        UsageError: no target has any.
    """
    allowed = check_reasons(allow)
    load = cache(lambda run_id: snapshot(records.load(run_id)))
    found: list[TargetSnapshot] = []
    for target in new.targets:
        known = [
            point
            for point in records.trend(key_of(target), manifest=manifest)
            if point.run_id != new.run_id and _may_be_like(point, target, allowed)
        ]
        for point in sorted(known, key=lambda point: point.value or 0.0):
            old = next(t for t in load(point.run_id).targets if key_of(t) == key_of(target))
            if _like(old, target, allowed):
                found.append(old)
                break
    if not found:
        raise UsageError(
            f"no other run of {manifest} has a clean measurement like those of {new.source}",
            remedy="Run it once more, name a run, or allow a reason with --allow.",
        )
    return Snapshot(
        source=f"the best of all runs of {new.manifest}",
        run_id="",
        tag=None,
        wherry=new.wherry,
        manifest=new.manifest,
        finished="",
        targets=found,
    )


def _may_be_like(point: Point, new: TargetSnapshot, allowed: frozenset[str]) -> bool:
    """Whether the whole run is worth loading: a team has thousands on what its boards once were."""
    unlike = {
        "not-clean": not point.clean,
        "emulated": bool(point.emulated),
        "timer": new.timing is not None and point.timed_by != new.timing.timed_by,
    }
    moved = (point.board or "") != new.board.fingerprint
    return (
        point.value is not None
        and not any(found for reason, found in unlike.items() if reason not in allowed)
        and not (moved and allowed.isdisjoint({"board", "system"}))
    )


def _like(old: TargetSnapshot, new: TargetSnapshot, allowed: frozenset[str]) -> bool:
    if old.timing is None or len(old.timing.round_ms) < LEAST_ROUNDS:
        return False
    reasons = {each.reason for each in differences(old, new) if LATENCY in each.figures}
    if old.timing.clean:
        reasons.discard("not-clean")  # then it is the new one, of which the comparison tells
    return not reasons - allowed


def last_of(records: Records, manifest: str, before: str) -> Snapshot:
    """The last run of a manifest before one, which may be kept or not.

    Raises:
        UsageError: there is none.
    """
    try:
        kept: str | None = records.find(before)
    except UsageError:
        kept = None
    for run in records.runs(limit=1, before=kept, manifest=manifest):
        return side(records, run.run_id)
    raise UsageError(
        f"there is no earlier run of {manifest}",
        remedy="Run it once without the gate, or name a baseline file.",
    )


def tagged(records: Records, tag: str, but: str) -> Snapshot:
    """The last run with a tag, but one; raises `UsageError` where there is none."""
    for run in records.runs(limit=2, tag=tag):
        if run.run_id != but:
            return side(records, run.run_id)
    raise UsageError(
        f"no other run has the tag {tag!r}", remedy=f"Make one with `wherry run --tag {tag}`."
    )

"""The sides of a comparison by their names: runs, the best of all runs, baseline files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from wherry.difference import LEAST_ROUNDS
from wherry.errors import StoreError, UsageError
from wherry.records.likeness import LATENCY, check_reasons, differences, pair
from wherry.records.runs import list_runs, load_run, read_report
from wherry.records.snapshot import Snapshot, TargetSnapshot, read_baseline, snapshot

BEST = "best"
_FILES = (".json", ".baseline")


def is_file(name: str) -> bool:
    """Whether a name means a baseline file: it has a folder, or ends as one."""
    return "/" in name or name.endswith(_FILES)


def sides(
    home: Path, base: str, new: str, *, allow: Iterable[str] = ()
) -> tuple[Snapshot, Snapshot]:
    """Both sides of a comparison.

    Args:
        home: the folder of wherry's own files.
        base: an id of a run, the beginning of one, a tag, ``last``, ``last~N``, a baseline file, or
            ``best``.
        new: the same, but ``best``.
        allow: reasons for which ``best`` takes unlike measurements.

    Raises:
        UsageError: there is no such run.
        StoreError: what is there cannot be read.
    """
    if new == BEST:
        raise UsageError("the best is what others are compared with", remedy="Give it first.")
    judged = side(home, new)
    if base == BEST:
        return best(home, judged, allow=allow), judged
    return side(home, base), judged


def side(home: Path, name: str) -> Snapshot:
    """A run's, or a baseline file's; see `sides`."""
    if is_file(name):
        return read_baseline(Path(name))
    return snapshot(load_run(home, name))


def best(home: Path, new: Snapshot, *, allow: Iterable[str] = ()) -> Snapshot:
    """Of each target of a run the fastest clean measurement like it, over all other runs.

    It is the luckiest, too: what is compared with it looks a little worse than it is.

    Raises:
        UsageError: no target has any.
    """
    allowed = check_reasons(allow)
    found: dict[str, TargetSnapshot] = {}
    for run in _others(home, new.run_id):
        for old, fresh in pair(run.targets, new.targets):
            if old is None or fresh is None or not _like(old, fresh, allowed):
                continue
            assert old.timing is not None
            known = found.get(fresh.name)
            if known is None or (known.timing and old.timing.median_ms < known.timing.median_ms):
                found[fresh.name] = old
    if not found:
        raise UsageError(
            f"no other run has a clean measurement like those of {new.source}",
            remedy="Run it once more, name a run, or allow a reason with --allow.",
        )
    return Snapshot(
        source="the best of all runs",
        run_id="",
        tag=None,
        wherry=new.wherry,
        manifest=new.manifest,
        finished="",
        targets=list(found.values()),
    )


def _like(old: TargetSnapshot, new: TargetSnapshot, allowed: frozenset[str]) -> bool:
    if old.timing is None or len(old.timing.round_ms) < LEAST_ROUNDS:
        return False
    reasons = {each.reason for each in differences(old, new) if LATENCY in each.figures}
    if old.timing.clean:
        reasons.discard("not-clean")  # then it is the new one, of which the comparison tells
    return not reasons - allowed


def _others(home: Path, run_id: str) -> Iterator[Snapshot]:
    """All runs but one; what cannot be read cannot be the best."""
    for folder in list_runs(home):
        if folder.name == run_id:
            continue
        try:
            yield snapshot(load_run(home, folder.name))
        except StoreError:
            continue


def last_of(home: Path, manifest: str) -> Snapshot:
    """The last run of a manifest; raises `UsageError` where there is none."""
    for folder in reversed(list_runs(home)):
        try:
            same = read_report(folder)["manifest"] == manifest
        except StoreError:
            continue
        if same:
            return side(home, folder.name)
    raise UsageError(
        f"there is no earlier run of {manifest}",
        remedy="Run it once without the gate, or name a baseline file.",
    )

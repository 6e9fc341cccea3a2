"""What the gates of a run compare its results with; read when a gate asks, and once."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.errors import StoreError, UsageError, WherryError
from wherry.manifest.problems import Problems
from wherry.manifest.sections import ORIGINAL
from wherry.records.compare import compare, compare_targets
from wherry.records.likeness import key_of, took_turns
from wherry.records.naming import TAG
from wherry.records.sides import BEST, best, is_file, last_of, tagged
from wherry.records.snapshot import Snapshot, plain, read_baseline, snapshot
from wherry.reports import RunRecord

if TYPE_CHECKING:
    from wherry.manifest.sections import Manifest

FP32 = "fp32"

_LONELY = {
    FP32: (
        "no peer in fp32 that the same clock timed",
        "Add the precision fp32 to its targets, or narrow the gate's `where:`.",
    ),
    ORIGINAL: (
        "no original on the same target",
        "Let the variant `original` run there, too, or narrow the gate's `where:`.",
    ),
}
"""What a gate compares with in the run itself: what a target without it has, and what to do."""

Entries = dict[str, dict[str, Any]]
"""A comparison's results by their names."""


def check_bases(manifest: Manifest) -> None:
    """Say now of baseline files and tags what gates would say when everything was measured.

    Not of ``last`` and ``best``: a run that fails by them is kept, and the next one has them.

    Raises:
        ManifestError: one is not there or damaged; all are told.
    """
    from wherry.records.database import Records

    problems = Problems()
    for index, gate in enumerate(manifest.gates):
        against = gate.against or ""
        try:
            if is_file(against):
                read_baseline(Path(against))
            elif against.startswith(TAG):
                with Records.open() as records:
                    tagged(records, against.removeprefix(TAG), but="")
        except (UsageError, StoreError) as error:
            place = manifest.root.at(("gates", index, "against"))
            problems.add(place, nothing_there(error), "A run without gates: `--set 'gates=[]'`.")
    problems.check()


def nothing_there(error: WherryError) -> str:
    """Why a gate has nothing to compare with: before the run and after it."""
    return f"there is nothing to compare with: {error}"


class Baselines:
    """The sides that a run is compared with by its gates.

    Args:
        record: of the run, kept or not.
    """

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._known: dict[tuple[str, frozenset[str]], Entries | WherryError] = {}

    @cached_property
    def _new(self) -> Snapshot:
        return snapshot(self._record)

    def entry(self, against: str, allow: frozenset[str], name: str) -> dict[str, Any]:
        """One result of the comparison (`wherry.records.compare`).

        Args:
            against: as `wherry.manifest.sections.Gate` has it.
            allow: reasons for which unlike figures are compared all the same.
            name: of the result.

        Raises:
            UsageError: there is no such run, or no peer in this one.
            StoreError: it cannot be read.
        """
        key = (against, allow)
        if key not in self._known:
            try:
                self._known[key] = self._compare(against, allow)
            except WherryError as error:
                self._known[key] = error  # each result that needs it says so
        found = self._known[key]
        if isinstance(found, WherryError):
            raise found
        if (name := plain(name)) not in found:
            what, remedy = _LONELY[against]
            raise UsageError(f"{name} has {what}", remedy=remedy)
        return found[name]

    def _compare(self, against: str, allow: frozenset[str]) -> Entries:
        if against in _LONELY:
            return self._within(against)
        entries = compare(self._side(against, allow), self._new, allow=allow)["results"]
        return {entry["name"]: entry for entry in entries if entry["new_run"] is not None}

    def _side(self, against: str, allow: frozenset[str]) -> Snapshot:
        from wherry.records.database import Records

        if is_file(against):
            return read_baseline(Path(against))
        own, manifest = (self._record.values[key] for key in ("run_id", "manifest"))
        with Records.open() as records:
            if against == BEST:
                return best(records, self._new, manifest=manifest, allow=allow)
            if against == "last":
                return last_of(records, manifest, own)
            return tagged(records, against.removeprefix(TAG), own)

    def _within(self, against: str) -> Entries:
        """Of each target and its peer in this run.

        Rounds of one run take turns: what disturbed the one disturbed the other.
        """
        mine = {target.name: target for target in self._new.targets}
        originals = {key_of(one): name for name, one in mine.items() if one.variant == ORIGINAL}
        found = {}
        for name, target in mine.items():
            alike = key_of(target.model_copy(update={"variant": ORIGINAL}))
            peer = target.fp32 if against == FP32 else originals.get(alike, "")
            if peer in mine:
                turns = {"not-clean"} if took_turns(mine[peer], target) else set()
                options = {"options"} if against == FP32 else set()  # some are of a precision
                allowed = frozenset(turns | options)
                found[name] = compare_targets(mine[peer], target, allowed)
        return found

"""The names of runs: ids, tags, ``last`` and ``last~N``, and which run each of them means."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol

from wherry.errors import UsageError

TAG = "tag:"
"""Before a tag where another word could be meant: `tag:best`, `tag:feature/x`."""

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""How an id may look: also as the name of a folder, and in an address."""

_BACK = re.compile(r"last(?:~(\d{1,9}))?")
_STAMP = "%Y%m%d-%H%M%S"
ID_STAMP = len("20261124-040500")
"""How much of an id is the time."""

_SHOWN = 5


def new_run_id(now: datetime | None = None) -> str:
    """Sorts by time, e.g. ``20261124-040500-3f9a``."""
    return f"{now or datetime.now(UTC):{_STAMP}}-{secrets.token_hex(2)}"


def check_tag(tag: str) -> None:
    """Refuse a tag by which no run could be found again; raises `UsageError`."""
    if not tag or _BACK.fullmatch(tag):
        raise UsageError(
            f"{tag!r} cannot be a tag: it would not name this run",
            remedy="Take any other word.",
        )


class Named(Protocol):
    """Runs that can be asked for their names; all answers are ids."""

    def newest(self, count: int, skip: int = 0) -> Sequence[str]:
        """The newest, the newest first, without the first ``skip``."""

    def count(self) -> int:
        """How many there are."""

    def with_id(self, name: str) -> bool:
        """Whether one has exactly this id."""

    def with_tag(self, tag: str) -> str | None:
        """The newest with a tag."""

    def beginning(self, name: str, limit: int) -> Sequence[str]:
        """The oldest whose ids begin so."""


def find_run(name: str, runs: Named, where: str) -> str:
    """The id of the run that ``name`` means: an id, a tag, a beginning, ``last`` or ``last~N``.

    Of a tag it is the newest run. A word that is both a tag and the beginning of ids is the tag;
    ``tag:NAME`` is the tag whatever its name is.

    Args:
        name: the word.
        runs: to look in.
        where: they are, for the error.

    Raises:
        UsageError: there is no such run, or several could be meant.
    """
    latest = runs.newest(3)
    if not latest:
        raise UsageError(f"there is no run yet in {where}", remedy="Start one with `wherry run`.")
    newest = f"The newest are {', '.join(reversed(latest))}."
    if match := _BACK.fullmatch(name):
        if found := runs.newest(1, skip=int(match[1] or 0)):
            return found[0]
        count = runs.count()
        there = "is only 1 run" if count == 1 else f"are only {count} runs"
        raise UsageError(f"{name}: there {there}", remedy=newest)
    if runs.with_id(name):
        return name
    if tagged := runs.with_tag(name.removeprefix(TAG)) or runs.with_tag(name):
        return tagged
    begun = runs.beginning(name, _SHOWN) if name else ()
    if len(begun) == 1:
        return begun[0]
    if begun:
        some = ", ".join(begun)
        raise UsageError(f"{name} could be any of {some}", remedy="Give more of the id.")
    raise UsageError(f"there is no run named {name!r}", remedy=newest)

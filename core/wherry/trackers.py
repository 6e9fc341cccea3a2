"""Trackers: where a finished run is told to, beside wherry's own records.

Only those that the user names are told (`track:` in a manifest, ``--track``). A tracker that fails
loses nothing: the run is kept before any of them is asked, and the failure is a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from wherry.errors import Interrupted, UsageError, WherryError

if TYPE_CHECKING:
    from wherry.artifact import Artifact
    from wherry.host import Host
    from wherry.reports import RunRecord

_USER_INFO = re.compile(r"(?<=://)[^/\s]+@")


@dataclass(frozen=True)
class Tracked:
    """What a tracker is told of.

    Attributes:
        record: the run, as it is kept.
        files: of the report, by name: ``report.json``, ``report.html``.
        artifact: for a result's ``artifact`` the artifact in the store; None: it is not there.
    """

    record: RunRecord
    files: Mapping[str, bytes]
    artifact: Callable[[str], Artifact | None]


@dataclass(frozen=True)
class Tracker:
    """Descriptor of a tracker, yielded by ``wherry_trackers``.

    Attributes:
        name: the word in manifests and after ``--track``.
        description: one line.
        parameters: what a manifest may say of it; with no value missing where ``--track`` alone is
            to do. They are kept in the manifest's text: no secrets.
        log: tells it; returns where the run can be seen there, in words. Whatever it raises is a
            warning of the run.
    """

    name: str
    description: str
    parameters: type[BaseModel]
    log: Callable[[Any, Tracked], str]


def wanted(
    asked: Iterable[str], written: Mapping[str, BaseModel], host: Host
) -> dict[str, BaseModel]:
    """The trackers of a run: name to parameters.

    Args:
        asked: with ``--track``.
        written: in the manifest.
        host: the loaded plugins.

    Raises:
        UsageError: there is no such tracker, or it wants parameters that only a manifest can give.
    """
    found = dict(written)
    for name in asked:
        if name in found:
            continue
        if name not in host.trackers:
            raise UsageError(
                f"there is no tracker {name!r}",
                remedy=f"There are: {', '.join(host.trackers) or 'none'}.",
            )
        try:
            found[name] = host.trackers[name].parameters()
        except ValidationError as error:
            missing = ", ".join(str(each["loc"][-1]) for each in error.errors() if each["loc"])
            raise UsageError(
                f"the tracker {name} wants {missing}",
                remedy=f"Give it below `track: {{{name}: ...}}` in the manifest.",
            ) from error
    return found


def track(
    record: RunRecord,
    trackers: Mapping[str, BaseModel],
    host: Host,
    *,
    tell: Callable[[str], None],
    warn: Callable[[str], None],
) -> dict[str, str | None]:
    """Tell trackers of a run that is kept already.

    Args:
        record: of the run.
        trackers: by `wanted`.
        host: the loaded plugins.
        tell: told where the run can be seen.
        warn: told which tracker failed, and why.

    Returns:
        Per tracker where the run can be seen; None: it failed.
    """
    found: dict[str, str | None] = {}
    if not trackers:
        return found
    tracked = Tracked(record, _files(record, host), _artifacts())
    run = record.values["run_id"]
    for name, parameters in trackers.items():
        try:
            found[name] = host.trackers[name].log(parameters, tracked)
        except (Interrupted, KeyboardInterrupt):
            raise
        except Exception as error:  # noqa: BLE001 -- a stranger's code; told below, the run is kept
            found[name] = None
            words = str(error) if isinstance(error, WherryError) else _words(error)
            warn(
                f"{name} was not told of the run: {without_users(words)} The run is kept; "
                f"`wherry report {run} --track {name}` tries again."
            )
        else:
            tell(f"{name}: {without_users(str(found[name]))}")
    return found


def without_users(text: str) -> str:
    """The same text, without the names and passwords in URLs."""
    return _USER_INFO.sub("***@", text)


def _words(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {without_users(first)[:300]}."  # half a password is none


def _files(record: RunRecord, host: Host) -> dict[str, bytes]:
    files = {}
    for form in ("json", "html"):
        if form in host.reports:
            made = host.reports[form].render(record)
            name = f"report{host.reports[form].suffix}"
            files[name] = made.encode() if isinstance(made, str) else made
    return files


def _artifacts() -> Callable[[str], Artifact | None]:
    """Looks artifacts up in the store, which is read when the first one is asked for."""
    known: dict[str, Artifact] = {}

    def find(digest: str) -> Artifact | None:
        if not known:
            known.update(_stored())
        return known.get(digest)

    return find


def _stored() -> dict[str, Artifact]:
    from wherry.errors import StoreError
    from wherry.home import home
    from wherry.stages.convert import read_artifact
    from wherry.store import Store

    found = {}
    for entry in Store(Path(home()) / "store").entries("convert"):
        try:
            artifact = read_artifact(entry)
        except StoreError:
            continue  # `wherry cache verify` tells of damage; nobody asks for this one
        found[f"sha256:{artifact.digest}"] = artifact
    return found

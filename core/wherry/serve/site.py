"""What the pages are made of: the records, this machine's home and inventory, the token."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.errors import StoreError
from wherry.records.progress import Progress, ProgressReader, live_runs

if TYPE_CHECKING:
    from wherry.host import Host
    from wherry.inventory import Inventory
    from wherry.records.database import Records
    from wherry.serve.guard import Keeper

_log = logging.getLogger(__name__)
_FRESH_S = 1.0  # all who look on share what was found so long ago
_FOLLOWED = 64  # runs in progress that are remembered


@dataclass
class Site:
    """All that a request may ask.

    Attributes:
        records: open, shared by the server's threads.
        keeper: of the token.
        home: the folder of wherry's own files.
        probed: device to what the last probe found, and when.
    """

    records: Records
    keeper: Keeper
    home: Path
    probed: dict[str, dict[str, Any]] = field(default_factory=dict)
    probing: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _readers: OrderedDict[str, ProgressReader] = field(default_factory=OrderedDict)
    _live: tuple[float, list[Progress]] = (float("-inf"), [])

    @cached_property
    def host(self) -> Host:
        """The plugins, loaded when they are first asked for."""
        from wherry.host import Host

        return Host.load()

    def inventory(self) -> Inventory:
        """As the user's file and that of the server's folder say now; raises `ManifestError`."""
        from wherry.inventory import load_inventory

        return load_inventory(Path.cwd(), self.host)

    def live(self) -> list[Progress]:
        """The runs of this machine that live, the newest first."""
        with self.lock:
            since, found = self._live
        if time.monotonic() - since > _FRESH_S:
            all_read = [self._read(run_id) for run_id in live_runs(self.home)]
            found = [one for one in all_read if one is not None and one.state == "running"]
            with self.lock:
                self._live = (time.monotonic(), found)
        return found

    def _read(self, run_id: str) -> Progress | None:
        """For a list of runs, which one whose progress cannot be read does not take away."""
        try:
            return self.progress(run_id)
        except StoreError as error:
            _log.warning("%s", error)
            return None

    def progress(self, run_id: str) -> Progress | None:
        """How far a run of this machine is; None: none of that id left its progress here."""
        with self.lock:
            reader = self._readers.pop(run_id, None) or ProgressReader(self.home, run_id)
            self._readers[run_id] = reader
            while len(self._readers) > _FOLLOWED:
                self._readers.popitem(last=False)
        return reader.read()


def now() -> str:
    """For people and scripts: ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")

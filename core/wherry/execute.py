"""A run from the manifest to the record: what ``wherry run`` and ``wherry.api.run`` do."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.errors import GateFailed, RunFailed, StoreError, UnsupportedError
from wherry.home import home
from wherry.wording import counted

if TYPE_CHECKING:
    from wherry.engine.local import Event, StepOutcome
    from wherry.host import Host
    from wherry.manifest import Manifest
    from wherry.plan import Plan
    from wherry.records.progress import ProgressFile
    from wherry.records.requests import Request
    from wherry.reports import RunRecord
    from wherry.stages.services import Services

_log = logging.getLogger(__name__)


UNKEPT_FILE = "record.jsonl"
"""In a run's folder: its record, where the database could not take it."""


class UnkeptError(StoreError):
    """A run ended, and the database could not take its record.

    Args:
        error: what the database said, with what to do.
        record: of the run.
    """

    def __init__(self, error: StoreError, record: RunRecord) -> None:
        message = f"the run was not kept: {error.message}"
        super().__init__(message, where=error.where, remedy=error.remedy)
        self.record = record


@dataclass(frozen=True)
class Prepared:
    """A plan with the services to run it.

    Attributes:
        request: what is kept of the run for `prepare_again`.
    """

    plan: Plan
    services: Services
    run_id: str
    request: Request


def prepare(
    manifest: Path,
    *,
    overrides: Sequence[str] = (),
    remeasure: bool = False,
    host: Host | None = None,
    cancelled: threading.Event | None = None,
    reach: bool = True,
    bases: bool = True,
    earlier: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = _log.warning,
    narrow: Callable[[Manifest], Manifest] | None = None,
) -> Prepared:
    """Load the plugins and the manifest, and lay out the plan; nothing is run yet.

    Args:
        manifest: the file.
        overrides: as ``key.path=value``.
        remeasure: take no measurement from the store.
        host: the loaded plugins; None: load them.
        cancelled: ends the run.
        reach: choose a device for those that targets ask for by tags, and hold it until it was
            measured; without, nothing is reached, and the plan cannot be run where there are any.
        bases: what gates compare with has to be there already; not where a run goes on that has
            measured.
        earlier: the devices that another run has chosen so.
        tell: told what was chosen, and who has the devices while we wait.
        narrow: makes of the loaded manifest the one that is planned, and whose gates nobody
            judges; None: it is planned whole.

    Raises:
        DeviceError: no device with some tags can be had.
        ManifestError: something is wrong with the manifest, or a gate's baseline.
    """
    from wherry.choose import choose, with_devices
    from wherry.engine.environments import Environments
    from wherry.engine.worker import Limits
    from wherry.host import Host as HostClass
    from wherry.manifest import load_manifest
    from wherry.plan import make_plan
    from wherry.records.baselines import check_bases
    from wherry.records.naming import new_run_id
    from wherry.records.requests import Request, digest_of
    from wherry.stages.services import Services as ServicesClass
    from wherry.store import Store

    root, cancelled = home(), cancelled or threading.Event()
    host = host or HostClass.load()
    loaded = load_manifest(manifest, host, overrides=overrides)
    if narrow is not None:
        loaded = narrow(loaded)
    elif bases:
        check_bases(loaded)
    plan = make_plan(loaded, host, loaded.inventory)
    run_id = new_run_id()
    services = ServicesClass(
        plan=plan,
        host=host,
        store=Store(root / "store"),
        environments=Environments(root, cancelled),
        inventory=loaded.inventory,
        home=root,
        run_directory=root / "runs" / run_id,
        limits=Limits(loaded.limits.time_s, loaded.limits.memory_bytes),
        cancelled=cancelled,
        remeasure=remeasure,
    )
    chosen: dict[str, str] = {}
    try:
        if reach:
            chosen = choose(loaded, services, earlier=earlier or {}, tell=tell)
        if chosen:
            services.plan = make_plan(with_devices(loaded, chosen), host, loaded.inventory)
        request = Request(str(loaded.path), digest_of(loaded.merged), tuple(overrides), chosen)
    except BaseException:
        services.release()
        raise
    return Prepared(services.plan, services, run_id, request)


def prepare_again(
    run: str,
    *,
    host: Host | None = None,
    cancelled: threading.Event | None = None,
    tell: Callable[[str], None] = _log.warning,
) -> Prepared:
    """`prepare` what an earlier run was asked for, to go on with it.

    The manifest holds as it is now: ``tell`` says where it has changed.

    Args:
        run: the earlier one's id, the beginning of one, its tag, ``last`` or ``last~N``.
        host: see `prepare`.
        cancelled: see `prepare`.
        tell: see `prepare`.

    Raises:
        UsageError: there is no such run, or it has not ended yet.
    """
    from wherry.records.requests import load_request

    run_id, asked = load_request(home(), run)
    prepared = prepare(
        Path(asked.manifest),
        overrides=asked.overrides,
        host=host,
        cancelled=cancelled,
        bases=False,
        earlier=asked.chosen,
        tell=tell,
    )
    if prepared.request.digest != asked.digest:
        tell(f"{asked.manifest} says something else than in {run_id}: what it says now is run")
    request = replace(prepared.request, tag=asked.tag, continues=run_id)
    return replace(prepared, request=request)


def execute(
    prepared: Prepared,
    *,
    jobs: int | None = None,
    tag: str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> RunRecord:
    """Run the plan, judge the gates, and keep the record in the database of records.

    Args:
        prepared: by `prepare` or `prepare_again`.
        jobs: how many steps at once on the host; None: the cores at hand.
        tag: a name for this run; None: that of the run that it goes on with.
        on_event: told of every step's progress.

    Raises:
        Interrupted: on Ctrl-C.
        StoreError: the home or the database cannot be used, so that nothing was run.
        UnkeptError: all was run, and the database could not take the record.
    """
    from wherry.engine.local import run_steps

    if tag is not None:
        prepared = replace(prepared, request=replace(prepared.request, tag=tag))
    with begun(prepared) as run:
        events = run.telling(on_event)
        return run.end(run_steps(prepared.services, jobs=jobs, on_event=events))


@dataclass(frozen=True)
class Begun:
    """A run that has begun: its folder is there, and says how far it is."""

    prepared: Prepared
    progress: ProgressFile
    started: datetime

    def telling(self, also: Callable[[Event], None] | None) -> Callable[[Event], None]:
        """Tells the run's folder of each event, and another."""
        if also is None:
            return self.progress.step

        def tell(event: Event) -> None:
            self.progress.step(event)
            also(event)

        return tell

    def end(self, outcomes: Mapping[str, StepOutcome]) -> RunRecord:
        """Judge the gates, and keep the record; raises `UnkeptError`."""
        from wherry.records.assemble import assemble
        from wherry.records.baselines import Baselines
        from wherry.records.gates import evaluate, with_gates
        from wherry.records.progress import KEPT

        services = self.prepared.services
        services.release()
        record = assemble(
            services,
            outcomes,
            run_id=self.prepared.run_id,
            request=self.prepared.request,
            started=self.started,
            finished=datetime.now(UTC),
        )
        judged = evaluate(services.manifest.gates, record.values, Baselines(record))
        record = with_gates(record, judged)
        _keep(record, services.run_directory)
        self.progress.end(KEPT)
        return record


@contextlib.contextmanager
def begun(prepared: Prepared) -> Iterator[Begun]:
    """Make the run's folder and hold it; at the end scratch is removed, and boards are given back.

    Raises:
        StoreError: the home or the database cannot be used.
    """
    from wherry.filelock import hold
    from wherry.records.database import Records
    from wherry.records.progress import ProgressFile
    from wherry.records.requests import RUNNING, save_request
    from wherry.stages.context import SCRATCH

    services, request = prepared.services, prepared.request
    started = datetime.now(UTC)
    with contextlib.ExitStack() as stack:
        stack.callback(services.release)  # boards whose step was never reached
        with services.store.files():
            _sweep(services.run_directory.parent)
            services.run_directory.mkdir(parents=True)
            stack.enter_context(hold(services.run_directory / RUNNING, remove=True))
            save_request(request, services.run_directory)
            progress = stack.enter_context(ProgressFile(services.run_directory))
            progress.begin(
                services.plan, prepared.run_id, tag=request.tag, manifest=request.manifest
            )
        Records.open().close()  # what is wrong with it is said now, not in hours
        stack.callback(shutil.rmtree, services.run_directory / SCRATCH, ignore_errors=True)
        yield Begun(prepared, progress, started)


def _keep(record: RunRecord, directory: Path) -> None:
    """In the database; where that fails, in the run's folder, and `UnkeptError` says so."""
    from wherry.records.database import Records
    from wherry.records.transfer import export_file

    try:
        with Records.open() as records:
            records.save(record)
    except StoreError as error:
        path = directory / UNKEPT_FILE
        try:
            export_file([record], path)
        except StoreError as second:
            error.remedy = f"Nor is it in a file: {second}"
        else:
            error.remedy = f"It is in {path}: `wherry records import` that once the database works."
        raise UnkeptError(error, record) from error


def _sweep(runs: Path) -> None:
    """Remove the scratch folders of runs that were killed; their logs stay."""
    from wherry.filelock import TakenError, hold
    from wherry.records.requests import RUNNING
    from wherry.stages.context import SCRATCH

    for scratch in runs.glob(f"*/{SCRATCH}"):
        try:
            with hold(scratch.with_name(RUNNING), wait=False, remove=True):
                shutil.rmtree(scratch, ignore_errors=True)
        except TakenError:
            continue  # that run is alive


def raise_for_outcome(record: RunRecord, *, shown: bool) -> None:
    """Raise what a finished run's exit code says.

    Args:
        record: of the run.
        shown: the report was printed, so that nobody has to be told again why targets failed.

    Raises:
        RunFailed: a target failed.
        GateFailed: a gate did not hold.
        UnsupportedError: no target was measured.
    """
    results = record.values["results"]
    why = "The report above says why for each." if shown else _reasons(results)
    failed = [result for result in results if result["status"] == "failed"]
    if failed:
        names = "; ".join(result["name"] for result in failed[:3])
        more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise RunFailed(
            f"{len(failed)} of {counted(len(results), 'target')} failed: {names}{more}",
            remedy=why,
        )
    broken = [gate for gate in record.values["gates"] if not gate["passed"]]
    if broken:
        reasons = (f"the gate `{gate['gate']}` did not hold: {gate['reason']}" for gate in broken)
        raise GateFailed("; ".join(reasons))
    if not any(result["status"] == "ok" for result in results):
        raise UnsupportedError("no target of the manifest could be run", remedy=why)


def _reasons(results: Sequence[Mapping[str, Any]]) -> str:
    """Each error once, with the targets that it hit."""
    from wherry.reports.words import unmeasured

    return "; ".join(f"{note.where}: {note.text}" for _, note in unmeasured(results))

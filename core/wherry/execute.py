"""A run from the manifest to the record: what ``wherry run`` and ``wherry.api.run`` do."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.errors import GateFailed, RunFailed, UnsupportedError
from wherry.home import home

if TYPE_CHECKING:
    from wherry.engine.local import Event
    from wherry.host import Host
    from wherry.plan import Plan
    from wherry.reports import RunRecord
    from wherry.stages.context import Services

RUNNING = "running"
"""In a run's folder: the file that the run holds a lock on while it lives."""


@dataclass(frozen=True)
class Prepared:
    """A plan with the services to run it."""

    plan: Plan
    services: Services
    run_id: str


def prepare(
    manifest: Path,
    *,
    overrides: Sequence[str] = (),
    remeasure: bool = False,
    host: Host | None = None,
    cancelled: threading.Event | None = None,
) -> Prepared:
    """Load the plugins and the manifest, and lay out the plan; nothing is run yet."""
    from wherry.engine.environments import Environments
    from wherry.engine.worker import Limits
    from wherry.host import Host as HostClass
    from wherry.manifest import load_manifest
    from wherry.plan import make_plan
    from wherry.records.runs import new_run_id
    from wherry.stages.context import Services as ServicesClass
    from wherry.store import Store

    root, cancelled = home(), cancelled or threading.Event()
    host = host or HostClass.load()
    loaded = load_manifest(manifest, host, overrides=overrides)
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
    return Prepared(plan, services, run_id)


def execute(
    prepared: Prepared,
    *,
    jobs: int | None = None,
    tag: str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> RunRecord:
    """Run the plan, judge the gates, and keep the record below ``home()/runs``.

    Raises:
        Interrupted: on Ctrl-C.
        StoreError: the home cannot be written, so that nothing was run, or the record not kept.
    """
    from wherry.engine.local import run_steps
    from wherry.filelock import hold
    from wherry.records.assemble import assemble
    from wherry.records.gates import evaluate
    from wherry.records.runs import save_run, with_gates
    from wherry.stages.context import SCRATCH

    services, run_id = prepared.services, prepared.run_id
    started = datetime.now(UTC)
    with contextlib.ExitStack() as stack:
        with services.store.files():
            _sweep(services.run_directory.parent)
            services.run_directory.mkdir(parents=True)
            stack.enter_context(hold(services.run_directory / RUNNING, remove=True))
        try:
            outcomes = run_steps(services, jobs=jobs, on_event=on_event)
        finally:
            shutil.rmtree(services.run_directory / SCRATCH, ignore_errors=True)
    record = assemble(
        services,
        outcomes,
        run_id=run_id,
        tag=tag,
        started=started,
        finished=datetime.now(UTC),
    )
    judged = evaluate(services.manifest.gates, record.values)
    record = with_gates(record, judged)
    with services.store.files():
        save_run(record, services.run_directory)
    return record


def _sweep(runs: Path) -> None:
    """Remove the scratch folders of runs that were killed; their logs stay."""
    from wherry.filelock import TakenError, hold
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
            f"{len(failed)} of {len(results)} targets failed: {names}{more}",
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

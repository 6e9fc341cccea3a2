"""``wherry doctor``: what this machine offers, and what would stop a run on it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from wherry.errors import EnvironmentError_, WherryError
from wherry.home import home
from wherry.wording import counted

if TYPE_CHECKING:
    from wherry.engine.environments import Environments
    from wherry.host import Host
    from wherry.requirements import Requirements
    from wherry.target import Backend

_ROOM = 2 << 30  # bytes: the environments of three backends, and a store to begin with
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: ``ok``; ``not made``: an environment that a run would make; ``problem``.
        found: in a few words.
        remedy: for a problem.
    """

    name: str
    status: str
    found: str
    remedy: str | None = None


def doctor(
    *,
    make: bool = False,
    host: Host | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Look at this machine, the plugins and the environments of their tools.

    Without ``make``, environments are resolved (a short look at the package index, once) and not
    made: so what a package index does not have for this Python is found out before a run.

    Args:
        make: make the environments that are not there yet.
        host: the loaded plugins; None: load them.
        progress: told what is being made.

    Returns:
        JSON values: ``ok``, whether there is no problem; ``checks``: ``name``, ``status`` (``ok``,
        ``not made``, ``problem``), ``found``, ``remedy``.
    """
    from wherry.engine.environments import Environments

    checks = [*_machine(), *_home()]
    usable = all(check.status == "ok" for check in checks if check.name in {"uv", "home"})
    if usable:
        checks += _records()
    plugins, host = _plugins(host)
    checks += plugins
    if host is not None and usable:
        environments = Environments(home())
        wanted = [use for backend in host.backends.values() for use in _uses(backend)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            checks += pool.map(lambda use: _environment(use, environments, make, progress), wanted)
    return {
        "ok": all(check.status != "problem" for check in checks),
        "checks": [asdict(check) for check in checks],
    }


def _machine() -> Iterable[Check]:
    libc = " ".join(platform.libc_ver()).strip() or "unknown libc"
    yield Check("python", "ok", f"{platform.python_version()}, {sys.executable}")
    cores = len(os.sched_getaffinity(0))
    yield Check("machine", "ok", f"{platform.system()} {platform.machine()}, {libc}, {cores} cores")
    from wherry.engine.uv import binary

    try:
        path = binary()
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=True, timeout=60
        )
        yield Check("uv", "ok", f"{answer.stdout.strip()}, {path}")
    except EnvironmentError_ as error:
        yield Check("uv", "problem", error.message, error.remedy)
    except (OSError, subprocess.SubprocessError) as error:
        yield Check("uv", "problem", f"it does not run: {error}", "Install the package `uv` again.")


def _home() -> Iterable[Check]:
    from wherry.engine.environments import disk_usage

    folder = home()
    elsewhere = "Set WHERRY_HOME to a folder that you may write."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
        sizes = {
            name: _size(disk_usage([folder / name])) for name in ("store", "environments", "runs")
        }
    except OSError as error:
        yield Check("home", "problem", f"{folder}: {error.strerror or error}", elsewhere)
        return
    yield Check("home", "ok", f"{folder}: {', '.join(f'{n} {size}' for n, size in sizes.items())}")
    if free < _ROOM:
        remedy = "Make room (`wherry cache gc`), or set WHERRY_HOME to a folder on another disk."
        yield Check("disk", "problem", f"{_size(free)} free", remedy)
    else:
        yield Check("disk", "ok", f"{_size(free)} free")


def _records() -> Iterable[Check]:
    from wherry.records.database import Records

    try:
        with Records.open() as records:
            count = len(records.runs())
            yield Check("records", "ok", f"{records.where}: {counted(count, 'run')}")
    except WherryError as error:
        words = f"{error.where}: {error.message}" if error.where else error.message
        yield Check("records", "problem", words, error.remedy)


def _plugins(host: Host | None) -> tuple[list[Check], Host | None]:
    if host is None:
        from wherry.host import Host as HostClass

        try:
            host = HostClass.load()
        except WherryError as error:
            return [Check("plugins", "problem", error.message, error.remedy)], None
    checks = [Check("plugins", "ok", ", ".join(info.name for info in host.plugins))]
    for skipped in host.skipped:
        remedy = "Update the plugin, uninstall it, or leave it out with WHERRY_PLUGINS."
        if skipped.plugin.own:
            remedy = "Install wherry again, with all of its dependencies."
        checks.append(Check(f"plugin {skipped.plugin}", "problem", skipped.cause, remedy))
    return checks, host


@dataclass(frozen=True, slots=True)
class _Use:
    """What a backend needs an environment for, and the alternatives, the best first."""

    name: str
    alternatives: tuple[Requirements, ...]


def _uses(backend: Backend) -> Iterable[_Use]:
    if backend.converter is not None:
        yield _Use(f"{backend.name} converter", (backend.converter,))
    if backend.runtime:
        yield _Use(f"{backend.name} runtime", backend.runtime)


def _environment(
    use: _Use,
    environments: Environments,
    make: bool,
    progress: Callable[[str], None] | None,
) -> Check:
    """The first alternative that fits, as the board ``local`` would take it."""
    from wherry.engine.environments import disk_usage
    from wherry.engine.uv import named

    failures: list[EnvironmentError_] = []
    for requirements in use.alternatives:
        packages = named(requirements)
        try:
            if make:
                environments.ensure(requirements, progress=progress)
            directory = environments.find(requirements)
        except EnvironmentError_ as error:
            failures.append(error)
            continue
        if directory is None:
            return Check(
                use.name, "not made", f"{packages}: a run makes it, or `wherry doctor --make`"
            )
        return Check(use.name, "ok", f"{packages}: {_size(disk_usage([directory]))}, {directory}")
    words = "; ".join(f"{e.where}: {e.message}" if e.where else e.message for e in failures)
    return Check(use.name, "problem", words, failures[-1].remedy)


def _size(size_bytes: int) -> str:
    from rich.filesize import decimal

    return decimal(size_bytes)


@click.command(name="doctor", short_help="Check this machine, the plugins, their environments.")
@click.option("--make", is_flag=True, help="Make the environments that are not there yet.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, make: bool, as_json: bool) -> None:
    """Check this machine, the plugins, and the environments of their converters and runtimes.

    Exit code 1 where something would stop a run; what to do about it stands beside it.
    """
    found = doctor(make=make, progress=lambda text: click.echo(text, err=True))
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        _print(found["checks"])
    if not found["ok"]:
        ctx.exit(WherryError.exit_code)


def _print(checks: list[dict[str, Any]]) -> None:
    from rich.text import Text

    from wherry.console import Console

    console = Console(soft_wrap=True)
    styles = {"ok": "green", "not made": "yellow", "problem": "bold red"}
    for check in checks:
        status = check["status"]
        console.print(
            Text(f"{status:10}", styles[status]), Text(f"{check['name']}: {check['found']}"), sep=""
        )
        if check["remedy"]:
            console.print(Text(" " * 10 + check["remedy"]))
    count = sum(check["status"] == "problem" for check in checks)
    click.echo(counted(count, "problem") if count else "Nothing is wrong.")

"""``wherry devices``: which boards there are, what they are, their runtimes, keys and holders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from wherry.bench import Bench, known_name
from wherry.errors import DeviceError, EnvironmentError_, Interrupted, UsageError, WherryError

if TYPE_CHECKING:
    from wherry.device import BoardInfo, Device
    from wherry.host import Host

_SETUPS = 8  # devices that are set up at the same time: each is sent some 60 MB
_DAY_S = 86_400


def devices_list(host: Host | None = None) -> list[dict[str, Any]]:
    """List the devices of the inventory and ask each for its state.

    Returns:
        JSON values per device: ``name``, ``transport``, ``tags``, ``location`` (where it is
        written), ``state`` (``free``, ``in use``, ``unreachable``), ``detail`` (who uses it, or
        why it cannot be reached).
    """
    bench = Bench.open(host)
    rows = []
    for name, found in bench.each(bench.inventory.devices, _probe).items():
        if isinstance(found, WherryError):
            state, detail = "unreachable", str(found)
        else:
            user = found.facts.get("in_use_by")
            state, detail = ("in use", user) if user else ("free", "")
        spec = bench.inventory.devices[name]
        rows.append(
            {
                "name": name,
                "transport": spec.transport,
                "tags": list(spec.tags),
                "location": bench.inventory.location(name),
                "state": state,
                "detail": detail,
            }
        )
    return rows


def devices_probe(names: Sequence[str] = (), host: Host | None = None) -> dict[str, Any]:
    """Find out what devices are.

    Args:
        names: which; none: all of the inventory.
        host: the loaded plugins; None: load them.

    Returns:
        Per name the fields of `wherry.device.BoardInfo`, or ``error`` alone.
    """
    bench = Bench.open(host)
    return {
        name: {"error": str(found)} if isinstance(found, WherryError) else asdict(found)
        for name, found in bench.each(names or bench.inventory.devices, _probe).items()
    }


def _probe(device: Device) -> BoardInfo:
    return device.probe()


def devices_setup(
    names: Sequence[str] = (),
    *,
    backends: Sequence[str] = (),
    host: Host | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Provide the backends' runtimes on devices ahead of time.

    Args:
        names: which devices; none: all of the inventory.
        backends: which backends; none: all that have a runtime.
        host: the loaded plugins; None: load them.
        progress: told what is being done.

    Returns:
        JSON values per device and backend: ``device``, ``backend``, and ``python`` (the
        interpreter on the board that has the runtime) or ``error``.
    """
    bench = Bench.open(host)
    known = bench.host.backends
    chosen = [known_name(name, known, "backend") for name in backends] or list(known)
    say = progress or (lambda _text: None)

    def provide(device: Device, backend: str) -> dict[str, Any]:
        what = f"{device.name}: {backend}"
        say(what)
        try:
            found = device.provision(known[backend].runtime, lambda text: say(f"{what}: {text}"))
        except Interrupted:
            raise
        except WherryError as error:
            return {"error": str(error)}
        return {"python": found}

    found = bench.each(
        names or bench.inventory.devices,
        lambda device: {backend: provide(device, backend) for backend in chosen},
        bound=_SETUPS,
    )
    return [
        {
            "device": name,
            "backend": backend,
            **({"error": str(answer)} if isinstance(answer, WherryError) else answer[backend]),
        }
        for name, answer in found.items()
        for backend in chosen
    ]


def devices_clean(
    names: Sequence[str] = (), *, unused_days: float = 30, host: Host | None = None
) -> list[dict[str, Any]]:
    """Remove from devices what no run asked for lately: files, environments; needs their lease.

    Args:
        names: which devices; none: all of the inventory.
        unused_days: how long not.
        host: the loaded plugins; None: load them.

    Returns:
        JSON values per device: ``device``, and ``environments`` (how many were removed) and
        ``bytes`` (of files), or ``error``.
    """
    bench = Bench.open(host)
    found = bench.each(
        names or bench.inventory.devices, lambda device: device.clean(unused_days * _DAY_S)
    )
    return [
        {"device": name, "error": str(answer)}
        if isinstance(answer, WherryError)
        else {"device": name, "environments": answer[0], "bytes": answer[1]}
        for name, answer in found.items()
    ]


def devices_trust(
    name: str, *, confirm: Callable[[str, str], bool], host: Host | None = None
) -> list[str]:
    """Accept the host keys of a device, and of the servers on the way to it.

    Args:
        name: of the device.
        confirm: asked with a server and the fingerprint of its key, where that is not known yet.
        host: the loaded plugins; None: load them.

    Returns:
        What was done, a sentence a server.

    Raises:
        UsageError: the device's transport has no host keys.
        DeviceError: a key is another than the known one, or was not accepted.
    """
    bench = Bench.open(host)
    (spec,) = bench.specs([name])
    trust = bench.host.transports[spec.transport].trust
    if trust is None:
        raise UsageError(f"{name} is reached by {spec.transport}, which has no host keys")
    return trust(spec, confirm)


def devices_shell(name: str, host: Host | None = None) -> int:
    """Run the login shell of a device on this terminal; returns its exit status."""
    bench = Bench.open(host)
    (spec,) = bench.specs([name])
    shell = bench.host.transports[spec.transport].shell
    if shell is None:
        raise UsageError(f"{name} is reached by {spec.transport}, which has no shell")
    return shell(spec)


def devices_unlock(
    name: str, *, confirm: Callable[[str], bool] = lambda _holder: True, host: Host | None = None
) -> str | None:
    """End whatever holds a device.

    Args:
        name: of the device.
        confirm: asked with the holder, in words.
        host: the loaded plugins; None: load them.

    Returns:
        Who held it; None: it was free, or ``confirm`` said no.
    """
    bench = Bench.open(host)
    (spec,) = bench.specs([name])
    device = bench.device(spec)
    holder = device.probe().facts.get("in_use_by")
    if holder is None or not confirm(holder):
        return None
    return device.unlock()


@click.group(name="devices", short_help="List, probe and set up boards.")
def command() -> None:
    """Look at the boards: `local`, and those of devices.yaml here and in the config folder."""


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the devices and their state: free, in use (by whom), unreachable (why)."""
    rows = devices_list()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    columns = ("name", "transport", "tags", "state", "detail", "location")
    _table(columns, [{**row, "tags": ", ".join(row["tags"])} for row in rows])


@command.command(name="probe")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def probe_(names: tuple[str, ...], as_json: bool) -> None:
    """Find out what the devices are: all of them, or those named."""
    found = devices_probe(names)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        for name, board in found.items():
            click.echo(name)
            for key, value in {**board, **board.get("facts", {})}.items():
                if key != "facts" and value not in (None, "", {}):
                    click.echo(f"  {key}: {value}")
    lost = [name for name, board in found.items() if "error" in board]
    if lost:
        raise DeviceError(f"could not probe {', '.join(lost)}", remedy="See above for why.")


@command.command(name="setup")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--backend", "backends", multiple=True, help="Only this backend; may be repeated.")
@click.option("--clean", is_flag=True, help="Remove instead what no run asked for lately.")
@click.option(
    "--unused-days", type=click.FloatRange(min=0), default=30, show_default=True, metavar="DAYS"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def setup_(
    names: tuple[str, ...],
    backends: tuple[str, ...],
    clean: bool,
    unused_days: float,
    as_json: bool,
) -> None:
    """Provide the backends' runtimes ahead of time, so that no run waits for them."""
    if clean:
        _clean(names, unused_days, as_json)
        return

    def progress(text: str) -> None:
        click.echo(f"setting up {text}", err=True)

    rows = devices_setup(names, backends=backends, progress=progress)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        _table(
            ("device", "backend", "runtime"),
            [{**row, "runtime": row.get("python") or row["error"]} for row in rows],
        )
    failed = [f"{row['backend']} on {row['device']}" for row in rows if "error" in row]
    if failed:
        raise EnvironmentError_(
            f"could not provide {', '.join(failed)}", remedy="See above for why."
        )


def _clean(names: tuple[str, ...], unused_days: float, as_json: bool) -> None:
    rows = devices_clean(names, unused_days=unused_days)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        for row in rows:
            what = row.get("error") or (
                f"removed {row['environments']} environments and "
                f"{row['bytes'] / 1e6:.1f} MB of files"
            )
            click.echo(f"{row['device']}: {what}")
    failed = [row["device"] for row in rows if "error" in row]
    if failed:
        raise DeviceError(f"could not clean {', '.join(failed)}", remedy="See above for why.")


@command.command(name="trust")
@click.argument("name")
@click.option(
    "--fingerprint",
    "wanted",
    metavar="SHA256:...",
    help="Accept this one without asking, and no other.",
)
def trust_(name: str, wanted: str | None) -> None:
    """Show a board's host key, and accept it for good."""

    def confirm(server: str, fingerprint: str) -> bool:
        if wanted is not None:
            return fingerprint.endswith(f" {wanted}")  # the kind of key stands before it
        click.echo(f"{server} shows the host key {fingerprint}", err=True)
        return click.confirm("Is it the board's own? Accept it?", err=True)

    for line in devices_trust(name, confirm=confirm):
        click.echo(line)


@command.command(name="shell")
@click.argument("name")
@click.pass_context
def shell_(context: click.Context, name: str) -> None:
    """Open the login shell of a board on this terminal."""
    context.exit(devices_shell(name))


@command.command(name="unlock")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def unlock_(name: str, yes: bool) -> None:
    """End the agent that holds a board, if your account there may; what it measures is lost."""

    def confirm(holder: str) -> bool:
        return yes or click.confirm(f"{name} is in use by {holder}. End that?", err=True)

    ended = devices_unlock(name, confirm=confirm)
    click.echo(f"{name}: ended {ended}" if ended else f"{name}: nothing was ended")


def _table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from wherry.console import Console

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(row[column])) for column in columns))
    Console().print(table)

"""``wherry bundle``: the winner of a run as an archive, and the check of such an archive."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wherry.cli.sizes import Size
from wherry.errors import ParityError, UsageError

if TYPE_CHECKING:
    from wherry.host import Host
    from wherry.reports import RunRecord

MOST_BYTES = 8 << 30
"""How much is unpacked of an archive, unless more is allowed."""

_MADE = "make"


def bundle(
    output: str | Path,
    run: str = "last",
    *,
    target: str | None = None,
    best: str | None = None,
    samples: int = 4,
    secret_key: str | Path | None = None,
    password: Callable[[], str] = str,
    host: Host | None = None,
    tell: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Write a result of a run as an archive.

    Args:
        output: the archive, ``.tar.gz`` or ``.zip``.
        run: its id, tag, the beginning of an id, ``last`` or ``last~N``.
        target: which result: its name, or words such as a variant, a backend or ``threads=2``.
        best: of those that hold every gate the best by ``latency``, ``size``, ``memory``,
            ``energy`` or a metric; without it and ``target`` the fastest on the front.
        samples: how many sample inputs.
        secret_key: the file of a key in minisign's form that signs the archive.
        password: asked for where the key is locked with one.
        host: the loaded plugins; None: load them.
        tell: told what could not be had.

    Returns:
        JSON values, as ``--json`` prints them (``docs/bundle.md``).

    Raises:
        UsageError: there is no such run or result, or several results are meant.
        GateFailed: no result holds every gate.
        BundleError: the manifest does not lead to what was measured any more.
        StoreError: a file in the store was changed; it is named.
    """
    from wherry.bundle.choose import Wish
    from wherry.bundle.make import make
    from wherry.bundle.signing import read_secret_key

    record = _record(run)
    key = None if secret_key is None else read_secret_key(Path(secret_key), password)
    return make(
        record, Path(output), Wish(target, best), samples=samples, key=key, host=host, tell=tell
    )


def bundle_verify(
    file: str | Path,
    *,
    device: str = "local",
    public_key: str | None = None,
    most_bytes: int = MOST_BYTES,
    host: Host | None = None,
    tell: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Check an archive, and run it on a device.

    Args:
        file: the archive.
        device: of the inventory.
        public_key: a key in minisign's form, or its file: the signature has to hold.
        most_bytes: how much may be unpacked.
        host: the loaded plugins; None: load them.
        tell: told what is being done.

    Returns:
        JSON values, as ``--json`` prints them (``docs/bundle.md``); ``failed`` says why the network
        does not give what it should, or is None.

    Raises:
        BundleError: it is no bundle, or not as it was made; the file in it is named.
    """
    from wherry.bundle.verify import verify

    return verify(
        Path(file),
        device=device,
        public_key=public_key,
        most_bytes=most_bytes,
        host=host,
        tell=tell,
    )


def bundle_key(file: str | Path, password: str = "") -> dict[str, Any]:
    """Make a pair of keys in minisign's form: ``FILE.key`` and ``FILE.pub``.

    Args:
        file: the beginning of both files' names.
        password: that the secret one is locked with; empty: none.

    Returns:
        JSON values: ``secret``, ``public`` (files), ``id``, ``key`` (the public one).
    """
    from wherry.bundle.signing import make_keys

    secret, public = Path(f"{file}.key"), Path(f"{file}.pub")
    made = make_keys(secret, public, password)
    return {
        "secret": str(secret),
        "public": str(public),
        "id": made.name,
        "key": made.text.splitlines()[1],
    }


def _record(run: str) -> RunRecord:
    from wherry.records.database import Records

    with Records.open() as records:
        return records.load(run)


class _Bundle(click.Group):
    """``wherry bundle RUN`` is ``wherry bundle make RUN``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [_MADE, *args]
        return super().parse_args(ctx, args)


@click.group(name="bundle", cls=_Bundle, short_help="Pack the winner of a run; verify a bundle.")
def command() -> None:
    """Pack a result of a run as an archive that runs without wherry, or verify one.

    `wherry bundle [RUN] -o FILE` is `wherry bundle make [RUN] -o FILE`.
    """


@command.command(name=_MADE, short_help="Pack a result of a run.")
@click.argument("run", required=False, default="last")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The archive: .tar.gz or .zip.",
)
@click.option(
    "--target",
    metavar="WORDS",
    help="A result's name, or words: variant, backend, precision, device, KEY=VALUE.",
)
@click.option(
    "--best",
    metavar="FIGURE",
    help="latency, size, memory, energy or a metric (default: the fastest on the front).",
)
@click.option(
    "--samples",
    type=click.IntRange(1, 1000),
    default=4,
    show_default=True,
    help="How many sample inputs.",
)
@click.option(
    "--sign",
    "secret_key",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="Sign with a key in minisign's form; FILE.minisig is written.",
)
@click.option(
    "--password-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of the key, where nobody can be asked; readable by its owner alone.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def make_(
    run: str,
    output: Path,
    target: str | None,
    best: str | None,
    samples: int,
    secret_key: Path | None,
    password_file: Path | None,
    as_json: bool,
) -> None:
    """Pack a result of RUN (an id, a tag, last, last~1, ...; default: last).

    Unless said, the fastest result on the front that holds every gate; where that is not one
    alone, the choices are listed.
    """
    from wherry.bundle.choose import Wish
    from wherry.bundle.make import make
    from wherry.bundle.signing import read_secret_key
    from wherry.cli.run import progress_display
    from wherry.console import Console
    from wherry.reports.words import one_line

    record, key = _record(run), None
    if secret_key is not None:
        key = read_secret_key(secret_key, lambda: _password(password_file))
    errors = Console(stderr=True)
    made = make(
        record,
        output,
        Wish(target, best),
        samples=samples,
        key=key,
        host=None,
        tell=_teller(errors),
        on_plan=lambda plan: progress_display(plan, errors),
    )
    if as_json:
        click.echo(json.dumps(made, indent=1))
        return
    result = one_line(made["result"])
    click.echo(f"{made['file']}: {result}, {made['files']} files, {made['bytes']} bytes")
    click.echo(f"sha256 {made['sha256']}")
    if made["signature"]:
        click.echo(f"signature {made['signature']}")


@command.command(name="verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--device", default="local", show_default=True, help="Where it is run.")
@click.option(
    "--public-key",
    metavar="KEY",
    help="In minisign's form, or its file: FILE.minisig has to be a signature by it.",
)
@click.option(
    "--max-size",
    type=Size(),
    default=MOST_BYTES,
    metavar="SIZE",
    help="Unpack no more than this (default: 8GiB).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify_(file: Path, device: str, public_key: str | None, max_size: int, as_json: bool) -> None:
    """Check every byte of a bundle, run it on a device, and compare.

    Nothing of the archive is executed but the network: the runner is the installed plugin's. Exit
    codes: 0 it holds; 1 it was changed, or gives something else; 2 wrong usage.
    """
    from wherry.console import Console

    found = bundle_verify(
        file,
        device=device,
        public_key=public_key,
        most_bytes=max_size,
        tell=_teller(Console(stderr=True)),
    )
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        _show(found)
    if found["failed"] is not None:
        raise ParityError(f"the bundle does not give what it should: {found['failed']}")


@command.command(name="key", short_help="Make a pair of keys to sign with.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--no-password", is_flag=True, help="Lock the secret key with none.")
@click.option(
    "--password-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The password, where nobody can be asked; readable by its owner alone.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def key_(file: Path, no_password: bool, password_file: Path | None, as_json: bool) -> None:
    """Make a pair of keys in minisign's form: FILE.key, which signs, and FILE.pub."""
    password = "" if no_password else _password(password_file, confirm=True)
    made = bundle_key(file, password)
    if as_json:
        click.echo(json.dumps(made, indent=1))
    else:
        click.echo(f"{made['secret']} signs: keep it to yourself")
        click.echo(f"{made['public']} verifies: {made['key']}")


def _teller(console: Any) -> Callable[[str], None]:
    def tell(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    return tell


def _password(file: Path | None, *, confirm: bool = False) -> str:
    """From a file, or asked for on the terminal; never from an argument, which others can see."""
    if file is not None:
        from wherry.bundle.signing import read_private

        return read_private(file).rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UsageError(
            "the key's password is wanted, and nobody can be asked",
            remedy="Give it in a file: --password-file FILE.",
        )
    text: str = click.prompt("Password of the key", hide_input=True, confirmation_prompt=confirm)
    return text


def _show(found: dict[str, Any]) -> None:
    from wherry.reports.words import clean, ms_text, one_line

    about, latency = found["device"], found["latency"]
    board = about["model"] or about["cpu"] or about["machine"]
    emulated = " (emulated: the latency means nothing)" if about["emulated"] else ""
    signature = one_line(found["signature"]["comment"] or "")
    lines = [
        f"{found['name']}: {found['result']}",
        f"files      {found['files']}, each as contents.json says",
        f"signature  {found['signature']['state']}" + (f": {signature}" if signature else ""),
        f"runner     {found['runner']}",
        f"device     {about['name']}: {board}{emulated}",
    ]
    for kind, words in (("parity", "the model in fp32"), ("agreement", "the bundle's outputs")):
        parity = found[kind]
        text = (
            "not compared: the bundle has none"
            if parity is None
            else f"{parity['sqnr_db']:.1f} dB, cosine {parity['cosine']:.6f} over "
            f"{parity['samples']} samples"
        )
        lines.append(f"{kind:10} {text}, against {words}")
    was = latency["measured_ms"]
    told = "" if was is None else f"; where it was measured: {ms_text(was)} ms"
    lines.append(f"latency    median {ms_text(latency['median_ms'])} ms, timed briefly{told}")
    for line in lines:  # aligned by spaces, and what comes from the archive may be anything
        click.echo(clean(line).replace("\n", " "))
    click.echo("It holds." if found["failed"] is None else "It does not hold.")

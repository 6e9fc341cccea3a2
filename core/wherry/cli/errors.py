"""How the command line ends: an exit code, a paragraph for the user, a report for our bugs."""

from __future__ import annotations

import errno
import os
import platform
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime

import click

from wherry import __version__
from wherry.errors import BUG_EXIT_CODE, Interrupted, WherryError
from wherry.home import home


def report_errors(call: Callable[[], object], argv: Sequence[str]) -> int:
    """Call click's main and turn whatever it raises into an exit code and a few words on stderr.

    Args:
        call: returns an exit code (click does for ``--help``) or anything else for 0.
        argv: the arguments, for the report of a bug.
    """
    try:
        result = call()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except WherryError as error:
        from wherry.reports.words import clean

        # names of models and nodes may hold what a terminal obeys
        click.echo(f"Error: {clean(error)}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        # click makes an Abort of any EOFError too; one that no prompt has raised is a bug.
        if isinstance(error.__cause__, EOFError):
            return _report_bug(error.__cause__, argv)
        click.echo("Interrupted; what is done is kept.", err=True)
        return Interrupted.exit_code
    except Exception as error:  # noqa: BLE001 -- the last handler: nothing is hidden, all is reported
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            click.echo(f"Error: a disk is full: {error}. Make room there.", err=True)
            return WherryError.exit_code
        return _report_bug(error, argv)


def _report_bug(error: BaseException, argv: Sequence[str]) -> int:
    """Write a report that can be sent as it is, and say where it lies."""
    report = bug_report(error, argv)
    now = datetime.now().astimezone()
    path = home() / "logs" / f"bug-{now:%Y%m%d-%H%M%S}-{os.getpid()}.log"
    what = " ".join(f"{type(error).__name__}: {error}".split())
    click.echo(f"Error: this is a bug of wherry or of a plugin: {mask_text(what)}", err=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report, encoding="utf-8")
        click.echo(f"Please send the report to the authors: {path}", err=True)
    except OSError as problem:
        click.echo(f"The report cannot be written ({problem}), so here it is:\n{report}", err=True)
    return BUG_EXIT_CODE


def bug_report(error: BaseException, argv: Sequence[str]) -> str:
    """What an issue needs, in Markdown, without what looks like a secret."""
    from wherry.installed import installed_plugins

    arguments, secrets = mask_arguments(argv)
    trace = mask_text("".join(traceback.format_exception(error)))
    for secret in secrets:
        trace = trace.replace(secret, MASK)
    plugins = "\n".join(f"- {info}" for info, _ in installed_plugins())
    return (
        f"# A bug in wherry {__version__}\n\n"
        "Please read it through before you send it: what looked like a secret is masked, "
        "but names of files are not.\n\n"
        f"- command: `{shlex.join(['wherry', *arguments])}`\n"
        f"- python: {sys.version}\n"
        f"- platform: {platform.platform()}\n\n"
        f"## Installed plugins\n\n{plugins}\n\n"
        f"## Traceback\n\n```\n{trace}```\n"
    )


MASK = "[masked]"
_SECRET = re.compile(
    r"pass(word|phrase|wd)?\b|token|secret|credential|auth|api[-_]?key", re.IGNORECASE
)
_IN_URL = re.compile(r"(?<=://)([^/@\s:]*):[^/@\s]+@")
_OPAQUE = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*\d)[A-Za-z0-9+_=-]{20,}")


def mask_text(text: str) -> str:
    """Hide passwords in URLs."""
    return _IN_URL.sub(rf"\1:{MASK}@", text)


def mask_arguments(argv: Sequence[str]) -> tuple[list[str], set[str]]:
    """Hide the values of arguments whose name or form says that they are secret.

    Returns:
        The arguments, and the secrets that were found, long enough to be looked for elsewhere.
    """
    masked: list[str] = []
    secrets: set[str] = set()
    secret_follows = False
    for argument in argv:
        name, equals, value = argument.partition("=")
        if equals and (_SECRET.search(name) or _OPAQUE.fullmatch(value)):
            shown, secret = name + equals, value
        elif secret_follows or _OPAQUE.fullmatch(argument):
            shown, secret = "", argument
        else:
            shown, secret = argument, ""
        secret_follows = argument.startswith("-") and not equals and bool(_SECRET.search(argument))
        masked.append(mask_text(shown) + (MASK if secret else ""))
        if len(secret) >= 4:  # shorter ones would blot out half of the traceback
            secrets.add(secret)
    return masked, secrets

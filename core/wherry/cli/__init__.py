"""The command line: a verb is a file of its own, imported when it is asked for."""

from __future__ import annotations

import difflib
import gc
import importlib
import logging
import sys
from collections.abc import Mapping, Sequence

import click

from wherry import __version__
from wherry.cli.errors import report_errors

VERBS: Mapping[str, str] = {
    "init": "Write a manifest for an ONNX file.",
    "plan": "Show what a run would do.",
    "run": "Run a manifest and report.",
    "report": "Show or convert the report of a run.",
    "records": "Export, import, tag, thin and check the records of runs.",
    "compare": "Compare two runs, or a run with a baseline.",
    "debug": "Find the layer that loses the accuracy.",
    "bundle": "Pack the winner of a run; verify a bundle.",
    "devices": "List, probe and set up boards.",
    "serve": "Serve the team's page.",
    "plugins": "List the plugins and what they provide.",
    "doctor": "Check this machine, the plugins, their environments.",
    "cache": "Look into the store and tidy it.",
    "schema": "Print the manifest's JSON Schema.",
}
"""Our verbs in the order of ``--help``, which shows these words and imports none of the files.

A verb's file is ``wherry/cli/<verb>.py`` and defines ``command``.
"""


class _Verbs(click.Group):
    """Finds our own verbs by their files and any other in the plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return _plugin_verbs(ctx).get(cmd_name)
        module = importlib.import_module(f"wherry.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 -- click's signature
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        verb, *rest = args
        command = self.get_command(ctx, verb)
        if command is None:
            near = difflib.get_close_matches(verb, [*VERBS, *_plugin_verbs(ctx)], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"There is no verb {verb!r}, nor does a plugin provide it.{hint}")
        return verb, command, rest


def _plugin_verbs(ctx: click.Context) -> Mapping[str, click.Command]:
    """The verbs of the plugins, which are loaded once an invocation and only for this."""
    key = "wherry.plugin_verbs"
    if key not in ctx.meta:
        from wherry.host import Host

        ctx.meta[key] = Host.load().commands(reserved=VERBS)
    verbs: Mapping[str, click.Command] = ctx.meta[key]
    return verbs


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Plugins may add verbs; `wherry plugins list` shows them.",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Carry a trained network to the boards that it must run on and come back with proof.

    Exit codes: 0 done; 1 something failed, named; 2 wrong usage; 3 a gate did not hold; 70 a bug
    of ours, with a report; 130 interrupted, what is done is kept.
    """


class _Harmless(logging.Formatter):
    """Warnings with names of models, boards and servers in which nothing commands a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        from wherry.reports.words import clean

        return clean(super().format(record))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; ``argv`` is without the program's name."""
    if argv is None:  # the process is ours, and ends with the verb
        # What a verb makes lives until it ends. Python would look through all of it again and
        # again while it grows, which takes a fifth of the time of a start.
        gc.set_threshold(50_000)
    handler = logging.StreamHandler()
    handler.setFormatter(_Harmless("Warning: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    args = list(sys.argv[1:] if argv is None else argv)
    return report_errors(lambda: cli.main(args, prog_name="wherry", standalone_mode=False), args)

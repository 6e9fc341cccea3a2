"""The command line's frame: lazy verbs, plugins' verbs, errors and exit codes, bug reports."""

import importlib
import io
import json
import logging
import subprocess
import sys
import time
import types

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from wherry import __version__, cli
from wherry.cli import VERBS, main
from wherry.cli.errors import MASK, bug_report, mask_arguments
from wherry.cli.plugins import plugins_list
from wherry.cli.run import progress_display
from wherry.console import Console
from wherry.errors import DataError, GateFailed, Interrupted, ManifestError, UsageError
from wherry.hookspecs import hookimpl
from wherry.host import Host


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("WHERRY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def verb(monkeypatch):
    """Make ``wherry doctor`` do what the test says."""

    def put(function):
        module = types.ModuleType("wherry.cli.doctor")
        module.command = click.command(name="doctor")(function)
        monkeypatch.setitem(sys.modules, "wherry.cli.doctor", module)

    return put


@pytest.fixture
def plugin_verbs(monkeypatch):
    """The given commands are what the plugins provide; counts how often they were loaded."""
    loaded = []

    def put(*commands):
        module = types.ModuleType("given")
        module.wherry_commands = hookimpl(lambda: commands)

        def load(**arguments):
            loaded.append(arguments)
            return original(plugins=(), builtins=False, extra=[module])

        original = Host.load
        monkeypatch.setattr(Host, "load", load)
        return loaded

    return put


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


# Start


def test_version():
    done = python("-m", "wherry", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wherry {__version__}\n", "")


def test_help_names_every_verb_and_imports_none():
    script = (
        "import sys; from wherry.cli import main; code = main(['--help']);"
        "heavy = {'numpy', 'onnx', 'pydantic', 'rich', 'pluggy', 'jinja2', 'onnxruntime'};"
        "verbs = {m for m in sys.modules if m.startswith('wherry.cli.')};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "assert verbs == {'wherry.cli.errors'}, verbs; sys.exit(code)"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    for name, words in VERBS.items():
        assert f"  {name:<9}{words}\n" in done.stdout


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_its_file(name):
    module = importlib.import_module(f"wherry.cli.{name}")
    assert isinstance(module.command, click.Command)
    assert module.command.name == name
    assert module.command.short_help == VERBS[name]


def test_the_version_starts_fast():
    """CPU time, which other processes on the machine do not lengthen much; the best of five."""

    def best(*arguments):
        times = []
        for _ in range(5):
            before = time.perf_counter()
            python(*arguments)
            times.append(time.perf_counter() - before)
        return min(times)

    assert best("-m", "wherry", "--version") - best("-c", "pass") < 0.3


def test_no_arguments_show_the_help(capsys):
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


# Verbs


def test_a_verb_of_a_plugin(plugin_verbs, capsys):
    @click.command()
    @click.argument("run_id")
    def publish(run_id):
        click.echo(f"published {run_id}")

    loaded = plugin_verbs(publish)
    assert main(["publish", "r1"]) == 0
    assert capsys.readouterr().out == "published r1\n"
    assert loaded == [{}]


@pytest.mark.parametrize(("typed", "meant"), [("pla", "plan"), ("publsh", "publish")])
def test_an_unknown_verb_gets_the_nearest(typed, meant, plugin_verbs, capsys):
    loaded = plugin_verbs(click.Command("publish"))
    assert main([typed]) == 2
    assert f"There is no verb '{typed}', nor does a plugin provide it. Did you mean '{meant}'?" in (
        capsys.readouterr().err
    )
    assert len(loaded) == 1


def test_a_verb_unlike_any_other(plugin_verbs, capsys):
    plugin_verbs()
    assert main(["xyzzy"]) == 2
    assert capsys.readouterr().err.endswith("nor does a plugin provide it.\n")


def test_our_own_verbs_load_no_plugin(verb, plugin_verbs):
    loaded = plugin_verbs()
    verb(lambda: None)
    assert main(["doctor"]) == 0
    assert not loaded


def test_a_plugin_cannot_take_a_verb_of_ours(verb, plugin_verbs, capsys, caplog):
    plugin_verbs(click.Command("doctor", callback=lambda: click.echo("the plugin's")))
    verb(lambda: click.echo("ours"))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "ours\n"
    assert main(["other"]) == 2
    assert "wherry_commands yielded 'doctor', a verb of wherry's own" in caplog.text


# Errors


def raising(error):
    def function():
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("the set is empty", where="m.yaml:3:1", remedy="Name one with samples."), 1),
        (ManifestError("two variants are called 'a'"), 1),
        (UsageError("--tag and --continue exclude each other"), 2),
        (GateFailed("top1 fell by 0.02, more than 0.01"), 3),
        (Interrupted("stopped; 3 of 7 targets are done"), 130),
    ],
)
def test_an_error_is_a_paragraph_and_an_exit_code(error, code, verb, capsys, home):
    verb(raising(error))
    assert main(["doctor"]) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"Error: {error}\n")
    assert not home.exists()


def test_nothing_in_an_error_commands_the_terminal(verb, capsys):
    verb(raising(DataError("node '\x1b]0;mine\x07\x1b[2J\u202e' has no weights\nin \udce9.onnx")))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().err.replace("\N{REPLACEMENT CHARACTER}", "?")
    assert said == "Error: node '?]0;mine??[2J?' has no weights\nin ?.onnx\n"


def test_nothing_in_a_warning_commands_the_terminal():
    record = logging.makeLogRecord({"msg": "%s has \x1b[2Jsaid so", "args": ("a\x07server",)})
    said = cli._Harmless("Warning: %(message)s").format(record)
    assert said.replace("\N{REPLACEMENT CHARACTER}", "?") == "Warning: a?server has ?[2Jsaid so"


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_tool_says_while_it_works_is_only_text(terminal):
    """Neither markup, of which an end without a beginning is an error, nor a terminal's command."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    step = types.SimpleNamespace(id="convert", title="convert [b]net[/x]")
    with progress_display(types.SimpleNamespace(steps={"convert": step}), console) as on_event:
        for state in ("started", "progress", "done" if not terminal else "progress"):
            text = "[/b] 50 \x1b]0;mine\x07%"
            on_event(types.SimpleNamespace(step=step, state=state, text=text))
    said = console.file.getvalue()
    assert "convert [b]net[/x]: [/b] 50 \N{REPLACEMENT CHARACTER}]0;mine" in said


def test_a_name_in_a_table_is_only_text_and_colours_stay():
    console, table = Console(file=io.StringIO(), force_terminal=True, width=80), Table("device")
    table.add_row(Text("pi\x1b]0;mine\x07\u202e4", style="red"))
    console.print(table)
    said = console.file.getvalue()
    assert "pi?]0;mine" in said.replace("\N{REPLACEMENT CHARACTER}", "?")
    assert "\x1b[31m" in said
    assert not {"\x07", "\u202e"} & {*said}


def test_wrong_usage_of_a_verb(verb, capsys):
    verb(lambda: None)
    assert main(["doctor", "--no-such-option"]) == 2
    err = capsys.readouterr().err
    assert "Usage: wherry doctor" in err
    assert "--no-such-option" in err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt(error, verb, capsys):
    verb(raising(error))
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err.strip() == "Interrupted; what is done is kept."


def test_exit_codes_of_click(verb):
    verb(click.pass_context(lambda context: context.exit(5)))
    assert main(["doctor"]) == 5
    assert main(["doctor", "--help"]) == 0
    verb(lambda: "text")
    assert main(["doctor"]) == 0


def test_a_bug_leaves_a_report(verb, capsys, home):
    verb(raising(ZeroDivisionError("at https://user:hunter2@host/x")))
    assert main(["doctor"]) == 70
    err = capsys.readouterr().err
    (log,) = (home / "logs").glob("bug-*.log")
    assert "ZeroDivisionError" in err
    assert str(log) in err
    assert "Traceback" not in err
    report = log.read_text()
    assert f"# A bug in wherry {__version__}" in report
    assert "- command: `wherry doctor`" in report
    assert sys.version in report
    assert f"- 'builtins' (wherry {__version__})" in report
    assert "Traceback (most recent call last)" in report
    assert "hunter2" not in report + err


def test_a_bug_where_no_report_can_be_written(verb, capsys, home):
    home.write_text("a file, not a folder")
    verb(raising(ZeroDivisionError("x")))
    assert main(["doctor"]) == 70
    err = capsys.readouterr().err
    assert "The report cannot be written" in err
    assert "Traceback (most recent call last)" in err


def test_an_end_of_file_outside_a_prompt_is_a_bug(verb, home):
    verb(raising(EOFError("the tool hung up")))
    assert main(["doctor"]) == 70
    (log,) = (home / "logs").glob("bug-*.log")
    assert "EOFError: the tool hung up" in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "masked"),
    [
        (["run", "m.yaml", "--tag", "nightly"], ["run", "m.yaml", "--tag", "nightly"]),
        (["--set", "devices.pi.password=hunter2"], ["--set", f"devices.pi.password={MASK}"]),
        (["--token", "hunter2", "x"], ["--token", MASK, "x"]),
        (["--api-key=hunter2"], [f"--api-key={MASK}"]),
        (["postgresql://me:hunter2@db/wherry"], [f"postgresql://me:{MASK}@db/wherry"]),
        (["ghp_hunter2Hunter2Hunter2Hunter2"], [MASK]),
        (["--x=ghp_hunter2Hunter2Hunter2Hunter2"], [f"--x={MASK}"]),
        (["a" * 64, "0123456789abcdef" * 4], ["a" * 64, "0123456789abcdef" * 4]),
    ],
)
def test_secrets_are_masked(arguments, masked):
    assert mask_arguments(arguments)[0] == masked


@given(
    st.sampled_from(["--password", "--api-key", "--db-token", "--SECRET"]),
    st.text(min_size=1).filter(lambda value: "=" not in value),
    st.lists(st.sampled_from(["run", "m.yaml", "--tag=x", "-v"])),
)
def test_no_secret_survives(option, secret, others):
    for arguments in ([option, secret, *others], [*others, f"{option}={secret}"]):
        masked, _ = mask_arguments(arguments)
        assert len(masked) == len(arguments)
        assert [word for word in masked if word in others] == others
        assert masked[1] == MASK if arguments[0] == option else masked[-1] == f"{option}={MASK}"


def test_a_secret_argument_is_masked_in_the_traceback_too():
    try:
        raise ValueError("cannot log in with hunter2")
    except ValueError as error:
        report = bug_report(error, ["--password", "hunter2"])
    assert "hunter2" not in report
    assert f"cannot log in with {MASK}" in report


# wherry plugins list


def test_plugins_list(monkeypatch, capsys, caplog):
    caplog.set_level(logging.ERROR)
    monkeypatch.setenv("WHERRY_PLUGINS", "")
    assert main(["plugins", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    listed = {entry["name"]: entry for entry in found["plugins"] + found["skipped"]}
    assert listed["builtins"]["distribution"] == "wherry"
    assert listed["builtins"]["version"] == __version__
    assert {"builtins", "devices", "onnxruntime", "tflite", "ncnn", "compress"} <= set(listed)


def test_plugins_list_says_what_is_provided_and_what_broke(monkeypatch, capsys):
    @hookimpl(wrapper=True)
    def wherry_convert():
        return (yield)

    good, broken = types.ModuleType("good"), types.ModuleType("broken")
    good.wherry_commands = hookimpl(lambda: [click.Command("publish")])
    good.wherry_convert = wherry_convert
    broken.wherry_backends = hookimpl(lambda: ["[bold]no backend"])
    host = Host.load(plugins=(), builtins=False, extra=[good, broken])
    assert plugins_list(host) == {
        "plugins": [
            {
                "name": "good",
                "distribution": None,
                "version": None,
                "module": "good",
                "provides": {"commands": ["publish"]},
                "wraps": ["wherry_convert"],
            }
        ],
        "skipped": [
            {
                "name": "broken",
                "distribution": None,
                "version": None,
                "module": "broken",
                "cause": "wherry_backends yielded a str, not a Backend",
            }
        ],
    }
    monkeypatch.setattr(Host, "load", lambda: host)
    assert main(["plugins", "list"]) == 0
    out = capsys.readouterr().out
    assert "commands: publish" in out
    assert "wraps: wherry_convert" in out
    assert "skipped: broken" in out


def test_the_group_is_the_entry_point():
    assert isinstance(cli.cli, click.Group)

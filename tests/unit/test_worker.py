"""Tools that crash, hang, eat memory, print without end or leave children behind."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from wherry.engine.worker import Limits, run_tool
from wherry.errors import Interrupted, PluginError, ToolError, UnsupportedError

PRELUDE = """\
import ctypes, json, os, signal, subprocess, sys, time
request = json.load(open(sys.argv[1], encoding="utf-8"))
def answer(value):
    with open(sys.argv[2], "w", encoding="utf-8") as stream:
        json.dump(value, stream)
"""


class Bench:
    """A folder with a tool in it, run with the host's own Python."""

    def __init__(self, folder: Path) -> None:
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.log = folder / "logs" / "step.log"
        self.script = folder / "wherry_demo" / "convert.py"
        self.script.parent.mkdir()

    def run(self, body, request=None, *, cancelled=None, progress=None, **limits):
        self.script.write_text(PRELUDE + textwrap.dedent(body), encoding="utf-8")
        return run_tool(
            Path(sys.executable),
            self.script,
            request or {},
            scratch=self.scratch,
            log=self.log,
            limits=Limits(**{"time_s": 60, **limits}),
            cancelled=cancelled,
            **({"progress": progress} if progress else {}),
        )

    def fails(self, body, kind=ToolError, **options):
        with pytest.raises(kind) as caught:
            self.run(body, **options)
        return str(caught.value)

    def logged(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.02)


def test_the_answer_comes_back_and_the_output_is_in_the_log(bench):
    got = bench.run(
        'print("hello"); print("to stderr", file=sys.stderr); answer({"twice": request["n"] * 2})',
        {"n": 21, "text": "ü\u2028"},
    )
    assert got == {"twice": 42}
    assert "hello\nto stderr\n" in bench.logged()
    assert str(bench.script) in bench.logged()


def test_what_a_tool_says_it_is_doing_is_passed_on(bench):
    said = []
    bench.run(
        """\
        print("wherry-progress: one", flush=True)
        sys.stdout.write("wherry-prog"); sys.stdout.flush(); time.sleep(0.3)
        print("ress: t\\x1b[1mwo"); print("not wherry-progress: three", flush=True)
        time.sleep(0.3)
        os.write(1, b"x" * 100_000 + b"wherry-progress: four\\n")
        answer({})""",
        progress=said.append,
    )
    assert said == ["one", "t[1mwo"]
    assert "wherry-progress: one" in bench.logged()


def test_two_tools_share_a_log_and_a_scratch_folder(bench):
    bench.run('print("first"); answer({"n": 1})')
    assert bench.run('print("second"); answer({"n": 2})') == {"n": 2}
    assert bench.logged().index("first") < bench.logged().index("second")


def test_an_old_response_is_never_taken_for_a_new_one(bench):
    bench.run('answer({"n": 1})')
    assert "wrote no response" in bench.fails("pass")


def test_the_surroundings_of_a_tool(bench, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    monkeypatch.setenv("WHERRY_TEST_KEPT", "yes")
    body = """
    answer({"env": dict(os.environ), "cwd": os.getcwd(), "sid": os.getsid(0),
            "stdin": sys.stdin.read()})
    """
    got = bench.run(body, cores=3)
    env = got["env"]
    assert "PYTHONPATH" not in env
    assert "VIRTUAL_ENV" not in env
    assert env["WHERRY_TEST_KEPT"] == "yes"
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert env["OMP_NUM_THREADS"] == env["OPENBLAS_NUM_THREADS"] == "3"
    assert bench.run("answer(dict(os.environ))")["OPENBLAS_NUM_THREADS"] == "1"
    assert env["TMPDIR"] == got["cwd"] == str(bench.scratch)
    assert not got["stdin"]
    assert got["sid"] != os.getsid(0)


def test_a_failing_tool_shows_the_end_of_its_log_and_where_the_rest_is(bench):
    text = bench.fails('print("\\n".join(map(str, range(1000)))); raise SystemExit(3)')
    assert "exit code 3" in text
    assert "wherry_demo/convert.py" in text
    assert "999" in text
    assert "\n    10\n" not in text
    assert str(bench.log) in text


def test_a_response_of_a_tool_that_failed_afterwards_is_not_taken(bench):
    assert "exit code 1" in bench.fails('answer({"n": 1}); raise SystemExit(1)')


def test_an_uncaught_exception_names_itself(bench):
    assert "KeyError: 'absent'" in bench.fails('request["absent"]')


@pytest.mark.parametrize("exit_code", [0, 1])
@pytest.mark.parametrize(("unsupported", "kind"), [(True, UnsupportedError), (False, ToolError)])
def test_a_refusal_is_raised_as_the_tool_worded_it(bench, exit_code, unsupported, kind):
    refusal = {"message": "no Einsum", "where": "node 7", "remedy": "Take it out."}
    refusal |= {"unsupported": unsupported}
    body = f'answer({{"error": request}}); raise SystemExit({exit_code})'
    assert bench.fails(body, kind, request=refusal) == "node 7: no Einsum. Take it out."


@pytest.mark.parametrize("error", ['"just a text"', '{"message": 3}', "[]", "None"])
def test_a_malformed_refusal_is_an_error_too(bench, error):
    assert "error without a message" in bench.fails(f'answer({{"error": {error}}})')


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("ctypes.string_at(0)", "SIGSEGV"),
        ("os.abort()", "SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGFPE)", "SIGFPE"),
    ],
)
def test_a_crash_is_named(bench, body, name):
    assert name in bench.fails(f'answer({{"n": 1}}); {body}')


def test_a_segfault_leaves_the_python_line_in_the_message(bench):
    text = bench.fails("def fold_constants():\n    ctypes.string_at(0)\nfold_constants()")
    assert "in fold_constants" in text


def test_a_hang_ends_at_the_time_limit(bench):
    started = time.monotonic()
    text = bench.fails('print("stuck here", flush=True); time.sleep(1000)', time_s=0.5)
    assert time.monotonic() - started < 10
    assert "time limit of 0.5 s" in text
    assert "stuck here" in text


def test_a_tool_that_closes_its_output_and_hangs_ends_as_well(bench):
    assert "time limit" in bench.fails("os.close(1); os.close(2); time.sleep(1000)", time_s=0.5)


def test_a_tool_that_ignores_signals_ends_as_well(bench):
    body = "[signal.signal(n, signal.SIG_IGN) for n in (15, 2, 1)]; time.sleep(1000)"
    assert "time limit" in bench.fails(body, time_s=0.7)


@pytest.mark.parametrize("how", ["", ", start_new_session=True"])
def test_children_do_not_outlive_their_tool(bench, how):
    got = bench.run(
        f"""
        child = subprocess.Popen(["sleep", "1000"]{how})
        answer({{"pid": child.pid}})
        os._exit(0)
        """
    )
    assert not is_running(got["pid"])


def test_a_daemon_that_left_session_and_parent_does_not_outlive_its_tool(bench):
    got = bench.run(
        """
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(writing, str(os.getpid()).encode())
                time.sleep(1000)
            os._exit(0)
        os.wait()
        answer({"pid": int(os.read(reading, 20))})
        """
    )
    assert not is_running(got["pid"])


def test_children_of_a_stopped_tool_are_stopped_as_well(bench):
    body = """
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    open("pid", "w").write(str(child.pid)); time.sleep(1000)
    """
    bench.fails(body, time_s=1)
    assert not is_running(int((bench.scratch / "pid").read_text()))


def test_a_memory_hog_is_stopped(bench):
    text = bench.fails(
        """
        held = []
        while len(held) < 64:
            held.append(bytearray(b"x") * (16 << 20)); time.sleep(0.02)
        time.sleep(60)
        """,
        memory_bytes=200 << 20,
    )
    assert "memory limit" in text
    assert "200 MiB" in text


def test_memory_counts_over_the_whole_tree(bench):
    body = """
    held = bytearray(b"x") * (60 << 20)
    child = "import time; held = bytearray(b'x') * (90 << 20); time.sleep(60)"
    subprocess.run([sys.executable, "-c", child])
    """
    assert "memory limit" in bench.fails(body, memory_bytes=140 << 20)


def test_pages_that_forks_share_count_once(bench):
    body = """
    held = bytearray(b"x") * (80 << 20)
    for _ in range(4):
        if os.fork() == 0:
            time.sleep(60)
    time.sleep(1); answer({"n": 1})
    """
    assert bench.run(body, memory_bytes=200 << 20) == {"n": 1}


def test_a_long_output_is_cut_in_the_log_and_its_end_is_kept(bench):
    got = bench.run(
        """
        for _ in range(100): sys.stdout.write("x" * 999_999 + "\\n")
        print("the last words"); answer({"n": 1})
        """
    )
    assert got == {"n": 1}
    assert 16 << 20 < bench.log.stat().st_size < 17 << 20
    assert "bytes left out" in bench.logged()
    assert "the last words" in bench.logged()


def test_an_endless_output_ends_the_tool(bench):
    text = bench.fails("while True: print('y' * 10_000)", output_bytes=20 << 20, log_bytes=1 << 20)
    assert "printed more than 20 MiB" in text
    assert bench.log.stat().st_size < 2 << 20


def test_binary_output_and_progress_bars_make_a_readable_message(bench):
    text = bench.fails(
        """
        sys.stdout.buffer.write(b"\\xff\\xfe\\x00 bytes\\n\\x1b[31mred\\x1b[0m\\n")
        sys.stdout.buffer.write(b" 10%\\r 50%\\r100%\\n")
        raise SystemExit(1)
        """
    )
    assert "    red\n    100%\n" in text
    assert "bytes" in text
    assert "\x1b" not in text
    assert "\x00" not in text


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (b'{"half": ', "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"n": NaN}', "NaN"),
        (b'{"n": -Infinity}', "-Infinity"),
        (b"[1]", "a list"),
        (b"null", "null"),
        (b"1" * 5000, "not JSON"),
        (b"[" * 200_000, "not JSON"),
    ],
)
def test_a_response_that_is_no_object(bench, written, found):
    (bench.scratch / "other").write_bytes(written)
    assert found in bench.fails('os.rename("other", sys.argv[2])')


@pytest.mark.parametrize(
    "make",
    ["os.mkfifo(sys.argv[2])", "os.mkdir(sys.argv[2])", "os.symlink('/dev/zero', sys.argv[2])"],
)
def test_a_response_that_is_no_file(bench, make):
    assert "not a plain file" in bench.fails(make)


def test_a_response_that_is_far_too_large(bench):
    assert "larger than" in bench.fails('open(sys.argv[2], "wb").truncate(1 << 40)')


def test_a_cancelled_tool_stops_at_once(bench):
    cancelled = threading.Event()
    timer = threading.Timer(0.5, cancelled.set)
    timer.start()
    started = time.monotonic()
    bench.fails("time.sleep(1000)", Interrupted, cancelled=cancelled)
    assert time.monotonic() - started < 10
    timer.join()


@pytest.mark.parametrize("request_", [{"n": float("nan")}, {"path": Path("x")}, {"set": {1}}])
def test_a_request_that_is_not_json_is_the_plugins_fault(bench, request_):
    bench.fails("answer({})", PluginError, request=request_)


def test_a_path_that_is_not_utf8_reaches_the_tool(bench):
    name = os.fsdecode(b"\xff.onnx")
    assert bench.run('answer({"n": len(os.fsencode(request["path"]))})', {"path": name}) == {"n": 6}


def test_a_missing_interpreter_is_named(bench):
    bench.script.write_text("", encoding="utf-8")
    with pytest.raises(ToolError, match="cannot run /absent/python"):
        run_tool(Path("/absent/python"), bench.script, {}, scratch=bench.scratch, log=bench.log)


def test_a_missing_script_is_the_plugins_fault(bench):
    with pytest.raises(PluginError, match="no tool"):
        run_tool(Path(sys.executable), bench.script, {}, scratch=bench.scratch, log=bench.log)


HOST = """\
import sys
from pathlib import Path
from wherry.engine.worker import run_tool
script, scratch, log = map(Path, sys.argv[1:])
run_tool(Path(sys.executable), script, {}, scratch=scratch, log=log)
"""


@pytest.mark.parametrize("victim", ["host", "supervisor"])
def test_kill_9_leaves_nothing_behind(bench, victim):
    bench.script.write_text(
        PRELUDE
        + "child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        + "open('pids.part', 'w').write(f'{os.getppid()} {os.getpid()} {child.pid}')\n"
        + "os.rename('pids.part', 'pids'); time.sleep(1000)\n",
        encoding="utf-8",
    )
    host = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOST,
            bench.script,
            bench.scratch,
            bench.log,
        ],
        stderr=subprocess.PIPE,
    )
    pids = bench.scratch / "pids"
    with host:
        try:
            wait_until(pids.exists)
            supervisor, tool, child = map(int, pids.read_text().split())
            os.kill(host.pid if victim == "host" else supervisor, signal.SIGKILL)
            wait_until(lambda: not is_running(tool))
            if victim == "host":
                wait_until(lambda: not is_running(child) and not is_running(supervisor))
            else:  # nobody is left who knows of the grandchild
                assert b"supervisor was killed" in host.stderr.read()
                os.kill(child, signal.SIGKILL)
        finally:
            host.kill()


def test_many_tools_at_once(tmp_path):
    answers = {}

    def one(index):
        folder = tmp_path / str(index)
        folder.mkdir()
        answers[index] = Bench(folder).run('answer({"n": request["n"]})', {"n": index})

    threads = [threading.Thread(target=one, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {index: {"n": index} for index in range(8)}

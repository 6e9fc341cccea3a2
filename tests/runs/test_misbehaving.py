"""Tools that misbehave, all in one run beside a healthy one: each fails alone, in words."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from wherry.cli import main

QUICK = "measure: {rounds: 1, duration_s: 0.05, warmup_s: 0.02, warmup_runs: 5}\n"
HEAD = """
wherry: 1
model: {path: net.onnx}
data: {evaluation: {source: npz, path: data.npz}}
metrics: [cosine]
"""
MOODS: dict[str, dict[str, tuple[str, ...]]] = {
    "convert": {
        "segfault": ("convert.py: the tool crashed (SIGSEGV)", "about to fall", "in segfault"),
        "hang": ("stopped at its time limit of 10 s", "waiting for a licence"),
        "hog": ("stopped at its memory limit", "of 256 MiB"),
        "half": ("the tool's response is not JSON", "Unterminated string"),
        "fails": ("failed with exit code 1", "ValueError: axis 3 is out of bounds"),
    },
    "hook": {
        "raises": ("wherry_convert of the plugin 'moody' (wherry-moody 1.0) raised KeyError",),
        "exits": ("SystemExit: 0",),
        "nothing": ("returned nothing, not an Artifact",),
        "loses": ("mapped the outputs ['a'], the model has ['a', 'b']",),
        "elsewhere": ("the backend moody made its artifact outside of context.output",),
        "changes": ("the backend moody changed or removed the artifact's 'program.json'",),
        "links": ("the step left 'files/passwd', which is no plain file",),
    },
    "wrong": {
        "swapped": ("parity: output", "2 of 2 outputs fail", "an order"),
        "transposed": ("parity: output 'a'", "a layout, an order"),
        "scaled": ("parity: output 'b' has 40.0 dB SQNR", "60 dB", "In fp32 nothing but rounding"),
    },
    "run": {
        "segfault at load": ("the runner crashed with SIGSEGV (command 'load')", "in load"),
        "hang": ("the runner gave no answer within 6 s and was ended",),
        "raises": ("RuntimeError: kernel launch failed (error 719)",),
        "nan": ("parity: output 'b'", "In fp32 nothing but rounding may differ"),
        "shape": ("output 'b' is [1, 4, 4] in the runtime's form, the runtime gave [1, 3, 4]",),
        "loses": ("get_outputs() gave no 'b', only ['a']",),
        "late segfault": ("the runner crashed with SIGSEGV (command 'time')",),
        "late hang": ("the runner gave no answer within", "(command 'time')"),
        "late shape": ("the runtime gave [1, 3, 4] (command 'infer')",),
    },
}
REFUSALS = {
    "convert": {"refuses": "node matmul: moody has no MatMul of this size. Take another backend."},
    "hook": {"preflight": "does not support MatMul (1 node, first 'matmul')"},
}
FAILING = [(option, mood) for option, moods in MOODS.items() for mood in moods]


class Run:
    """A finished ``wherry run`` and all that it left."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.home = Path(environment["WHERRY_HOME"])
        out = folder / "out.json"
        command = [sys.executable, "-m", "wherry", "run", "m.yaml", "--jobs", "6", "--json", out]
        self.done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=folder, env=environment
        )
        assert out.exists(), self.done.stderr
        self.report = json.loads(out.read_text())

    def result(self, text: str) -> dict:
        (found,) = [r for r in self.report["results"] if r["name"].endswith(text)]
        return found


@pytest.fixture(scope="module")
def run(moody_folder, moody_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Everything at once: a healthy target, and one for each mood."""
    folder = moody_folder(tmp_path_factory.mktemp("misbehaving"))
    moods = {option: [*names, *REFUSALS.get(option, ())] for option, names in MOODS.items()}
    targets = [
        f"  - {{backend: moody, moody: {{{option}: {json.dumps(names)}}}}}\n"
        for option, names in moods.items()
    ]
    (folder / "m.yaml").write_text(
        HEAD
        + "targets:\n  - {backend: moody}\n  - {backend: moody, moody: {convert: chatter}}\n"
        + "".join(targets)
        + "  - {backend: homeless}\n"
        + "gates:\n  - {metric: cosine, min: 0.9999, where: {backend: moody}}\n"
        + "limits: {time_s: 10, memory_mb: 256}\n"
        + QUICK
    )
    (folder / "devices.yaml").write_text("devices:\n  local: {local: {limit_s: 6}}\n")
    environment = {
        **os.environ,
        "PYTHONPATH": str(moody_site),
        "WHERRY_PLUGINS": "wherry-moody",
        "WHERRY_HOME": str(folder / "home"),
        "WHERRY_CONFIG": str(folder / "config"),
        "UV_OFFLINE": "1",
    }
    return Run(folder, environment)


@pytest.mark.timeout(300)
def test_the_healthy_ones_are_measured(run: Run) -> None:
    for name in ("moody fp32 on local", "(convert=chatter)"):
        result = run.result(name)
        assert result["status"] == "ok", result["error"]
        assert result["metrics"]["cosine"] == pytest.approx(1.0)
        assert result["latency"]["samples"] >= 10


@pytest.mark.parametrize(("option", "mood"), FAILING)
def test_each_bad_one_fails_alone_and_says_what_happened(run: Run, option: str, mood: str) -> None:
    result = run.result(f"({option}={mood})")
    assert result["status"] == "failed"
    assert [words for words in MOODS[option][mood] if words not in result["error"]] == []
    assert result["latency"] is None
    assert result["name"] in run.done.stdout


@pytest.mark.parametrize("option", REFUSALS)
def test_a_refusal_is_skipped_and_not_failed(run: Run, option: str) -> None:
    ((mood, words),) = REFUSALS[option].items()
    result = run.result(f"({option}={mood})")
    assert result["status"] == "skipped"
    assert words in result["error"]
    assert f"skipped convert original for moody fp32 ({option}={mood}): " in run.done.stderr


def test_an_environment_that_cannot_be_made_fails_its_own_backend(run: Run) -> None:
    result = run.result("homeless fp32 on local")
    assert result["status"] == "failed"
    assert "the environment of wherry-no-such-package==1.0 cannot be resolved" in result["error"]


def test_the_exit_code_and_the_summary(run: Run) -> None:
    failed = len(FAILING) + 1
    total = failed + len(REFUSALS) + 2
    assert run.done.returncode == 1
    assert len(run.report["results"]) == total
    last = run.done.stderr.splitlines()[-1]
    assert last.startswith(f"Error: {failed} of {total} targets failed: ")
    assert "bug" not in last
    assert not list((run.home / "logs").glob("bug-*"))


def test_a_gate_does_not_pass_on_a_row_that_failed(run: Run) -> None:
    (gate,) = run.report["gates"]
    assert gate["passed"] is False
    assert gate["value"] is None
    assert "was not measured" in gate["reason"]
    assert "\n" not in gate["reason"]


def test_logs_are_kept_where_the_errors_say(run: Run) -> None:
    named = {
        result["name"]: Path(path)
        for result in run.report["results"]
        if result["error"]
        for path in re.findall(r"(?:whole log:|traceback is in) (\S+\.log)", result["error"])
    }
    assert len(named) == len(MOODS["convert"]) + 3  # a hook that raises, one that exits; homeless
    for name, path in named.items():
        assert path.is_file(), name
    (segfault,) = [path for name, path in named.items() if "convert=segfault" in name]
    assert "Segmentation fault" in segfault.read_text()
    (raised,) = [path for name, path in named.items() if "hook=raises" in name]
    assert "Traceback" in raised.read_text()
    sizes = [path.stat().st_size for path in run.home.glob("runs/*/logs/*")]
    assert max(sizes) < 20 << 20, "of a hundred megabytes of chatter the log keeps an end"


def test_nothing_of_a_failure_is_in_the_store(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [json.loads(p.read_text()) for p in run.home.glob("store/convert/*/*/entry.json")]
    made = sorted(entry["parts"]["options"]["convert"] for entry in entries)
    assert made == ["chatter", "well"]
    assert all(entry["parts"]["options"]["hook"] == "well" for entry in entries)
    assert all(entry["parts"]["options"]["wrong"] == "nothing" for entry in entries)
    assert not list(run.home.glob("store/.tmp/*"))
    assert not list(run.home.glob("runs/*/scratch"))
    assert not list(run.home.rglob("*.part"))
    monkeypatch.setenv("WHERRY_HOME", str(run.home))
    assert main(["cache", "verify"]) == 0


def test_no_process_is_left(run: Run) -> None:
    assert processes(run.home) == []


def processes(home: Path) -> list[str]:
    """Command lines that name a home or the moody backend."""
    lines = (" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    return [line for line in lines if str(home) in line]


# One thing at a time


def test_values_that_are_not_finite_are_counted_and_told_again(moody: Path) -> None:
    Path("m.yaml").write_text(
        HEAD + "targets: [{backend: moody, moody: {run: late nan}}]\n" + QUICK
    )
    results = []
    for out in ("first.json", "again.json"):
        assert main(["run", "m.yaml", "--quiet", "--json", out]) == 0
        results += json.loads(Path(out).read_text())["results"]
    first, again = results
    assert again["cached"]
    assert first["metrics"]["cosine"] == again["metrics"]["cosine"] == -1
    assert "24 of 24 samples gave NaN or infinity, unlike the original" in first["warnings"]
    assert first["warnings"] == again["warnings"]


def test_an_original_that_gives_nan_fails_what_is_compared_with_it(moody: Path, capsys) -> None:
    with np.load("data.npz") as arrays:
        x = arrays["x"].copy()
    x[20] = 1e30
    np.savez("data.npz", x=x)
    Path("m.yaml").write_text(HEAD + "targets: [{backend: moody}]\n" + QUICK)
    assert main(["run", "m.yaml"]) == 1
    out, err = capsys.readouterr()
    assert "output 'b' of the model itself, in fp32, is NaN for sample 20" in out
    assert "failed: original, moody fp32 on local: m.yaml:3:1: " in out
    assert "skipped measure 1 target on local: it needs `run the original in fp32`" in err


def test_a_metric_that_does_not_fit_is_named_with_its_line(moody: Path, capsys) -> None:
    with np.load("data.npz") as arrays:
        np.savez("data.npz", x=arrays["x"], labels=np.zeros((24, 4), np.int64))
    Path("m.yaml").write_text(
        HEAD.replace("cosine", "top5") + "targets: [{backend: moody}]\n" + QUICK
    )
    assert main(["run", "m.yaml"]) == 1
    out = capsys.readouterr().out
    assert "failed: original, moody fp32 on local: m.yaml:5:1: metric top5: the output has 4" in out
    assert out.rstrip().endswith("Leave this metric out, or name the right output.")


def test_doctor_says_why_an_environment_cannot_be_made(
    moody: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    assert main(["doctor"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "homeless" in line]
    assert line.startswith("problem ")
    assert "wherry-no-such-package==1.0 cannot be resolved" in line


@pytest.mark.parametrize(
    ("option", "mood"), [("convert", "hang"), ("run", "hang"), ("run", "late hang")]
)
def test_ctrl_c_ends_a_run_whose_tool_hangs(
    moody: Path, wherry_home: Path, option: str, mood: str
) -> None:
    Path("m.yaml").write_text(
        f"{HEAD}targets: [{{backend: moody, moody: {{{option}: {mood}}}}}]\n{QUICK}"
    )
    mark = moody / "hangs"
    process = subprocess.Popen(
        [sys.executable, "-m", "wherry", "run", "m.yaml", "--json", "out.json"],
        env={**os.environ, "MOODY_HANGS": str(mark)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not mark.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert processes(wherry_home)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert text.splitlines()[-1].startswith("Error: the run was stopped; what is done is kept.")
    assert processes(wherry_home) == []
    assert not Path("out.json").exists()
    assert main(["cache", "verify"]) == 0

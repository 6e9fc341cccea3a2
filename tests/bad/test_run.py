"""Bad models and data through ``wherry plan`` and ``wherry run``: words, exit codes, no debris."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wherry import errors
from wherry.cli import main
from wherry.cli.plan import plan
from wherry.engine.local import run_steps
from wherry.execute import prepare
from wherry.host import Host

STAGES = {"plan", "run"}

pytestmark = pytest.mark.usefixtures("wherry_home")


@pytest.fixture(autouse=True)
def _own_plugins_alone(monkeypatch):
    monkeypatch.setenv("WHERRY_PLUGINS", "")


@pytest.fixture(scope="session")
def host():
    return Host.load(plugins=())


def check_words(case, error: errors.WherryError) -> None:
    """The class, the place and the remedy; places in the data are places in the manifest."""
    assert type(error).__name__ == case.error
    place = re.escape(case.where) if case.where else r"manifest\.yaml:\d+:\d+"
    assert re.search(f"{place}$", error.where), error
    assert [words for words in case.says if words not in str(error)] == []
    assert error.remedy
    assert "\n" not in str(error)


def check_nothing_half_done(folder: Path, home: Path) -> None:
    """The step that failed and those behind it left nothing."""
    assert main(["cache", "verify"]) == 0
    assert [path for path in folder.rglob("*") if path.suffix == ".part"] == []
    kinds = {path.name for path in (home / "store").glob("[a-z]*")}
    assert kinds <= {"model"}
    assert not list(home.glob("runs/*/scratch"))
    assert not list(home.glob("store/.tmp/*"))


def test_plan_shows_what_is_wrong_with_a_model_and_reads_no_data(case, host, wherry_home, capsys):
    code = main(["plan", "manifest.yaml"])
    out, err = capsys.readouterr()
    assert not list(wherry_home.glob("[!e]*")), "all that is there are the tests' environments"
    if case.stage == "run":
        assert code == 0
        return
    assert code == 1
    assert out == ""
    (line,) = [line for line in err.splitlines() if not line.startswith("Warning: ")]
    with pytest.raises(errors.WherryError) as caught:
        plan("manifest.yaml")
    assert line == f"Error: {caught.value}"
    check_words(case, caught.value)


def test_the_first_step_fails_and_the_others_do_not_run(case, host):
    outcomes = run_steps(prepare(Path("manifest.yaml"), host=host).services)
    failed = "model" if case.stage == "plan" else "data:evaluation"
    check_words(case, outcomes[failed].error)
    after = [outcome for name, outcome in outcomes.items() if name not in {"model", failed}]
    assert all(outcome.error is outcomes[failed].error for outcome in after)
    assert all(outcome.seconds == 0 for outcome in after)


def test_run_says_it_once_and_leaves_nothing_half_done(case, wherry_home, tmp_path, capsys):
    code = main(["run", "manifest.yaml", "--json", "out.json", "--html", "out.html"])
    out, err = capsys.readouterr()
    assert code == 1
    assert "Traceback" not in out + err
    result = check_report(Path("out.json"), failed="model" if case.stage == "plan" else "data")
    error = result["error"]
    assert all(words in error for words in case.says)
    assert out.count(error) == 1
    (step,) = [line for line in err.splitlines() if line.startswith("failed ")]
    headline = step.partition(": ")[2]
    assert error.startswith(headline)
    assert err.count(headline) == 1
    (failed,) = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert failed == f"failed: {result['name']}: {error}"
    (last,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert "1 of 1 target failed" in last
    assert err.splitlines()[-1] == last
    assert Path("out.html").read_text().rstrip().endswith("</html>")
    check_nothing_half_done(tmp_path, wherry_home)


def check_report(path: Path, *, failed: str) -> dict:
    """It is whole, and says failed: the only result, and the step of that kind."""
    report = json.loads(path.read_text())
    states = {step["kind"]: step["state"] for step in report["steps"]}
    before = {"model": "done"} if failed == "data" else {}
    assert {kind for kind, state in states.items() if state != "skipped"} == {failed, *before}
    assert states[failed] == "failed"
    (result,) = report["results"]
    assert result["status"] == "failed"
    assert result["artifact"] is None
    assert result["latency"] is None
    return result


@pytest.mark.parametrize("name", ["truncated-model", "labels-out-of-range"])
def test_the_same_as_a_user_starts_it(name, lay_out, wherry_home, tmp_path):
    case = lay_out(name)
    command = [sys.executable, "-m", "wherry", "run", "manifest.yaml", "--quiet"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Warning: ")]
    assert len(lines) == 1
    assert lines[0].startswith("Error: 1 of 1 target failed")
    assert all(words in lines[0] for words in case.says)
    check_nothing_half_done(tmp_path, wherry_home)

"""The server's pages in a real Chromium: what a team sees and does, and nothing else happens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import page_records
import pytest
from chromium import serious
from record_makers import record_of, result_of
from served import TOKEN, days, timed

from wherry.engine.local import Event
from wherry.filelock import hold
from wherry.plan import Step
from wherry.records.database import Records
from wherry.records.progress import KEPT, ProgressFile
from wherry.records.requests import RUNNING

pytestmark = pytest.mark.browser

STEPS = [
    Step("model", "model", "read the model"),
    Step("convert", "convert", "convert to <b>tflite</b>", needs=("model",)),
    Step("profile:pi4", "profile", "measure on pi4", needs=("convert",), device="pi4"),
]
RUN, BEFORE = "20261114-040500-000e", "20261113-040500-000d"
PLACES = (
    "/",
    f"/runs/{RUN}",
    "/targets",
    f"/compare?base={BEFORE}&new={RUN}",
    "/boards",
    "/sign-in",
)


@pytest.fixture(scope="module")
def served(library_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over a fortnight of runs, in a process of its own; gives its address."""
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    folder = tmp_path_factory.mktemp("served")
    token = folder / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with Records.open(f"sqlite:///{library_home}/records.db") as records:
        for day, digest in (1, "11" * 32), (2, "22" * 32):  # a model that was trained anew
            old = {"started": f"2026-10-0{day}T00:00:00+00:00", "model": {"digest": digest}}
            result = result_of("slim", "ncnn", ms=float(day))
            records.save(record_of(result, run_id=f"2026100{day}-000000-abcd", **old))
        days(records, 14, tag="nightly")
        hostile = page_records.hostile()
        records.save(hostile)
    environment = {
        **{name: text for name, text in os.environ.items() if name != "WHERRY_RECORDS"},
        "WHERRY_HOME": str(library_home),
        "WHERRY_CONFIG": str(folder),
    }
    command = [sys.executable, "-m", "wherry", "serve", "--port=0", f"--token-file={token}"]
    process = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert " at http://127.0.0.1:" in line
        yield line.split()[4].rstrip("/")
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stdout.close()


@pytest.fixture
def target(served, opened) -> str:
    page = opened().visit(served, "/targets")
    return page.get_by_role("link", name="original, onnxruntime fp32 on pi4").get_attribute("href")


def test_the_pages_render_and_lead_to_each_other(opened, served):
    page = opened().visit(served)
    assert page.locator("tbody tr").count() == 17
    page.get_by_role("link", name="20261114").first.click()
    page.wait_for_selector("#pareto-chart svg")
    page.get_by_role("link", name="Compare with the run before").click()
    page.get_by_role("heading", name="Figure by figure").wait_for()
    assert page.get_by_text("+7.7 %").first.is_visible()
    page.get_by_role("link", name="Targets").click()
    page.get_by_role("link", name="original, onnxruntime fp32 on pi4").click()
    page.wait_for_selector("#trend svg path")
    page.locator("select[name=metric]").select_option("top1")
    page.get_by_role("button", name="Show").click()
    page.wait_for_selector("#trend svg path")
    assert "metric=top1" in page.url
    page.get_by_role("link", name="Boards").click()
    page.get_by_role("heading", name="pi4").wait_for()


def test_a_point_of_the_trend_opens_its_run(opened, served, target):
    page = opened().visit(served, target)
    page.wait_for_selector("#trend svg path")
    page.locator("#trend svg g.mark-symbol path").first.click(force=True)
    page.wait_for_url("**/runs/20261101-040500-0001")


def test_a_point_whose_model_is_another_looks_other(opened, served):
    page = opened().visit(served, "/targets")
    page.get_by_role("link", name="slim, ncnn fp32 on pi4").click()
    page.wait_for_selector("#trend svg path")
    points = page.locator("#trend svg g.mark-symbol path")
    shapes = [points.nth(place).get_attribute("d") for place in range(points.count())]
    assert ["A" in shape for shape in shapes] == [True, False]  # arcs: a circle, and a diamond
    assert page.locator("#trend svg g.mark-line path").count() == 1
    assert page.get_by_text("another model", exact=True).count() == 1


def test_runs_are_filtered_and_compared_by_keyboard(opened, served):
    page = opened().visit(served)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.get_by_label("Tag", exact=True).focus()
    page.keyboard.type("nightly")
    page.keyboard.press("Enter")
    page.wait_for_url("**tag=nightly**")
    assert page.locator("tbody tr").count() == 14
    page.get_by_label("20261105-040500-0005 as the base").focus()
    page.keyboard.press("Space")
    page.get_by_label("20261110-040500-000a as the new run").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    page.wait_for_url("**/compare?**")
    assert page.get_by_text("+100.0 %").first.is_visible()


def test_a_run_in_progress_appears_goes_on_and_ends_in_its_report(opened, served, library_home):
    run_id = "20261201-040500-abcd"
    directory = library_home / "runs" / run_id
    directory.mkdir(parents=True)
    page = opened().visit(served)
    assert not page.get_by_text("In progress").count()
    with hold(directory / RUNNING, remove=True), ProgressFile(directory) as writer:
        plan = SimpleNamespace(steps={step.id: step for step in STEPS})
        writer.begin(plan, run_id, tag=None, manifest="/nets/live.yaml")
        page.get_by_text("0 of 3 steps").wait_for()
        link = page.get_by_role("link", name=run_id)
        link.focus()
        writer.step(Event(STEPS[0], "started"))
        writer.step(Event(STEPS[0], "done"))
        page.get_by_text("1 of 3 steps").wait_for()
        assert page.evaluate("document.activeElement.textContent") == run_id, "the focus stays"
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="live.yaml").wait_for()
        assert page.get_by_text("convert to <b>tflite</b>").is_visible()
        writer.step(Event(STEPS[1], "cached"))
        writer.step(Event(STEPS[2], "started"))
        writer.step(Event(STEPS[2], "progress", "round 1 of 3"))
        page.get_by_text("round 1 of 3").wait_for()
        assert page.get_by_text("it measures on pi4").is_visible()
        with Records.open(f"sqlite:///{library_home}/records.db") as records:
            record = record_of(
                result_of(pareto=True), run_id=run_id, started="2026-12-01T04:05:00+00:00"
            )
            records.save(timed(record))
        writer.end(KEPT)
    page.wait_for_selector("#pareto-chart svg")
    with Records.open(f"sqlite:///{library_home}/records.db") as records:
        records.delete([run_id])


def test_who_signs_in_tags_a_run_and_deletes_it_only_when_sure(opened, served, library_home):
    with Records.open(f"sqlite:///{library_home}/records.db") as records:
        records.save(record_of(result_of(), run_id="20261101-000000-dead"))
    page = opened().visit(served, "/sign-in")
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Sign out").wait_for()
    page.goto(f"{served}/runs/20261101-000000-dead")
    page.get_by_label("Tag").fill("<i>best</i>")
    page.get_by_role("button", name="Set the tag").click()
    page.get_by_text("The run has the tag <i>best</i> now.").wait_for()
    page.get_by_role("button", name="Delete the run").click()
    page.wait_for_timeout(200)
    assert page.url.endswith("dead"), "the browser asks for the tick first"
    page.get_by_label("for good").check()
    page.get_by_role("button", name="Delete the run").click()
    page.get_by_text("20261101-000000-dead is deleted").wait_for()
    page.goto(f"{served}/boards")
    page.get_by_role("button", name="Probe local").click()
    page.get_by_text("local was probed.").wait_for(timeout=60_000)
    assert page.locator("section", has_text="Probe local").get_by_text("free").is_visible()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("link", name="Sign in").wait_for()


@pytest.mark.parametrize("look", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, served, target, look):
    one = opened(color_scheme=look)
    found = []
    for place in (*PLACES, target):
        page = one.visit(served, place)
        if place in {f"/runs/{RUN}", target}:
            page.wait_for_selector(".chart svg path")
        found += [(place, *each) for each in serious(page)]
    assert found == []


def test_a_phone_never_scrolls_sideways(opened, served, target):
    one = opened(390, 844, has_touch=True)
    hostile = page_records.hostile().values["run_id"]
    for place in (*PLACES, target, f"/compare?base={hostile}&new={hostile}"):
        page = one.visit(served, place)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, place


def test_hostile_names_do_no_harm(opened, served):
    run_id = page_records.hostile().values["run_id"]
    one = opened()
    for place in (
        "/",
        f"/runs/{run_id}",
        "/targets",
        f"/compare?base={run_id}&new={run_id}",
        "/boards",
    ):
        page = one.visit(served, place)
        page.wait_for_timeout(300)
        assert page.evaluate("window.harmed") is None, place
        assert page.evaluate("document.images.length") == 0, place
    page = one.visit(served, "/targets")
    page.get_by_role("link", name="<script>window.harmed").first.click()
    page.wait_for_selector("#trend")
    assert page.evaluate("window.harmed") is None


def test_without_scripts_all_but_live_and_charts_is_there(opened, served, target):
    one = opened(java_script_enabled=False)
    page = one.visit(served, target)
    assert page.locator("tbody tr").count() == 14
    page = one.visit(served)
    page.get_by_role("button", name="Compare base with new").click()
    page.get_by_role("heading", name="Figure by figure").wait_for()
    page = one.visit(served, "/sign-in")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Sign out").click()

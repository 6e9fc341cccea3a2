"""Chromium for tests: pages in which nothing may go wrong, and what a run's report has to show.

``browser`` and ``opened`` are fixtures; a conftest imports them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright import sync_api

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def started() -> Iterator[sync_api.Browser]:
    """Chromium, one for all pages."""
    playwright_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed"
    )
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (Debian: chromium)")
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []  # root has no sandbox to enter
    with playwright_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


class Opened:
    """A page that is open, and what went wrong in it."""

    def __init__(self, page: sync_api.Page) -> None:
        self.page = page
        self.own = "file:"
        self.wrong: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.route("**/*", self._route)

    def _said(self, message: sync_api.ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.wrong.append(f"console: {message.text}")

    def _route(self, route: sync_api.Route) -> None:
        if route.request.url.startswith(self.own):
            route.continue_()
        else:
            self.wrong.append(f"request: {route.request.url}")
            route.abort()

    def load(self, file: Path, *, charts: bool = True) -> sync_api.Page:
        self.page.goto(file.as_uri())
        if charts:
            self.page.wait_for_selector("#pareto-chart svg")
        return self.page

    def visit(self, server: str, place: str = "/") -> sync_api.Page:
        """A page of a server; nothing may be asked of another."""
        self.own = server
        self.page.goto(server + place)
        return self.page


def opener(browser: sync_api.Browser) -> Iterator[Callable[..., Opened]]:
    """Opens a page in a context of its own; at the end nothing may have gone wrong in it."""
    contexts: list[sync_api.BrowserContext] = []
    pages: list[Opened] = []

    def make(width: int = 1400, height: int = 900, **options) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(30_000)
        contexts.append(context)
        pages.append(Opened(context.new_page()))
        return pages[-1]

    yield make
    for context in contexts:
        context.close()
    assert [wrong for page in pages for wrong in page.wrong] == []


browser = pytest.fixture(scope="session", name="browser")(started)
opened = pytest.fixture(name="opened")(opener)


def settled(page: sync_api.Page) -> None:
    """Waits for what the page does after the event: a reset empties its fields only then."""
    page.evaluate("() => new Promise((done) => setTimeout(done))")


def serious(page: sync_api.Page, **options: Any) -> list[tuple[str, str]]:
    """What axe finds on a page that is serious or critical: the rule, and where."""
    axe_api = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe_api.Axe().run(page, options={"resultTypes": ["violations"], **options}).response
    return [
        (each["id"], each["nodes"][0]["html"][:200])
        for each in found["violations"]
        if each["impact"] in {"serious", "critical"}
    ]


def look_at_report(
    opened: Callable[..., Opened], file: Path, report: dict[str, Any], shots: Path | None = None
) -> None:
    """What every report of a run on one device has to show, by the run's JSON.

    The picture marks the front that the run marked, filters by mouse and keyboard leave what they
    should, axe finds nothing serious in light and dark, and a phone does not scroll sideways. That
    nothing is asked for or goes wrong is ``opened``'s to see.

    Args:
        opened: The fixture.
        file: The HTML.
        report: The JSON of the same run.
        shots: A folder that gets pictures of the page as on a desk and on a phone.
    """
    results = report["results"]
    page = opened().load(file)
    front = json.loads(page.locator("#pareto-chart").get_attribute("data-front") or "null")
    assert front == [i for i, r in enumerate(results) if r["pareto"]] != []

    def shown() -> list[int]:
        rows = page.locator("#results tbody tr:visible")
        found: list[int] = rows.evaluate_all("all => all.map((row) => Number(row.dataset.i))")
        return found

    assert shown() == list(range(len(results)))
    for facet in ("backend", "precision", "variant"):
        values = {str(r.get(facet) or r["target"][facet]) for r in results}
        if len(values) == 1:
            continue  # nothing to choose
        for value in sorted(values):
            page.locator(f'[data-facet="{facet}"] summary').click()
            named = re.compile(rf"^{re.escape(value)}\W+\d+\W*$")  # with its count
            box = page.locator(f'[data-facet="{facet}"]').get_by_role("checkbox", name=named)
            box.check()
            wanted = [
                i for i, r in enumerate(results) if value in (r.get(facet), r["target"].get(facet))
            ]
            assert shown() == wanted, (facet, value)
            page.get_by_role("button", name="Reset").click()
            settled(page)
    page.get_by_label("Find in the results").fill(results[-1]["target"]["backend"])
    assert len(results) - 1 in shown()
    page.get_by_label("Find in the results").fill("")
    page.get_by_label("Front only").check()
    assert shown() == front
    page.get_by_label("Front only").uncheck()
    if shots:
        page.screenshot(path=shots / "desk.png", full_page=True)
    page.evaluate(
        "document.querySelectorAll('details.card').forEach((one) => { one.open = true; })"
    )
    assert serious(page) == []
    dark = opened(color_scheme="dark").load(file)
    assert serious(dark, runOnly=["color-contrast"]) == []
    phone = opened(390, 844, has_touch=True).load(file)
    if shots:
        phone.screenshot(path=shots / "phone.png", full_page=True)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390

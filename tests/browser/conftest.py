"""Chromium, one for all tests of pages; a request for anything but the page fails the test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wherry.reports import RunRecord

if TYPE_CHECKING:
    from playwright import sync_api

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def browser() -> Iterator[sync_api.Browser]:
    playwright_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed"
    )
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (Debian: chromium)")
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []  # root has no sandbox to enter
    with playwright_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@pytest.fixture(scope="session")
def library_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the charts' library is bundled once for all pages."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def file_of(library_home: Path, tmp_path_factory: pytest.TempPathFactory):
    """Renders a record of `page_records` by its name, once; gives the file."""
    import page_records

    from wherry.reports import html
    from wherry.reports.page import charts

    pytest.importorskip("vl_convert", reason="the extra report is not installed")
    folder = tmp_path_factory.mktemp("pages")

    def make(name: str) -> Path:
        path = folder / f"{name}.html"
        if not path.exists():
            record: RunRecord = getattr(page_records, name)()
            path.write_text(html.render(record), encoding="utf-8")
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHERRY_HOME", str(library_home))
        charts.library.cache_clear()
        assert charts.library() is not None
        yield make
    charts.library.cache_clear()


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


@pytest.fixture
def opened(browser: sync_api.Browser) -> Iterator[Callable[..., Opened]]:
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

"""Pages of records that were made up, each rendered once; Chromium is of ``chromium.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from wherry.reports import RunRecord


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

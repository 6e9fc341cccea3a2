"""The docs: every link within the project leads somewhere, every verb is in the README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wherry.cli import VERBS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    for link in links:
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_readme_names_every_verb() -> None:
    readme = (ROOT / "README.md").read_text()
    assert {verb for verb in VERBS if f"`{verb}" not in readme} == set()

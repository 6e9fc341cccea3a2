"""The README's picture, of a report: ``python tests/browser/picture.py REPORT.html OUT.png``."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, ROWS = 1180, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    chromium = shutil.which("chromium")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": WIDTH, "height": 1000}, color_scheme="light")
        page.goto(arguments.report.resolve().as_uri())
        page.wait_for_selector("#pareto-chart svg")
        top = page.locator("#figures").bounding_box()
        row = page.locator("#results tbody tr").nth(ROWS - 1).bounding_box()
        assert top is not None and row is not None
        height = row["y"] + row["height"] - top["y"]
        clip = {"x": 0, "y": top["y"] - 8, "width": WIDTH, "height": height + 8}
        page.screenshot(path=arguments.out, clip=clip, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()

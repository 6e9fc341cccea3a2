"""What a report has to show, of a real one: ``look.py REPORT.html REPORT.json FOLDER``.

The two files are of one run (``wherry report RUN --html ... --json ...``) on one device. FOLDER
gets pictures of the page as on a desk and on a phone. What is wrong ends it with a traceback.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import chromium


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("json", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    report = json.loads(arguments.json.read_text(encoding="utf-8"))
    with (
        contextmanager(chromium.started)() as browser,
        contextmanager(chromium.opener)(browser) as opened,
    ):
        chromium.look_at_report(opened, arguments.report.resolve(), report, arguments.folder)
    sys.stdout.write(f"all is there; pictures in {arguments.folder}\n")


if __name__ == "__main__":
    main()

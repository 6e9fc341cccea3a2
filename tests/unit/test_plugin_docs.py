"""The code in docs/plugins.md is the code of the files that it names."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "plugins.md").read_text()
QUOTED = re.findall(r"^<!-- from (\S+) -->\n```python\n(.*?)^```$", TEXT, re.M | re.S)


@pytest.mark.parametrize(("path", "code"), QUOTED, ids=[code.splitlines()[0] for _, code in QUOTED])
def test_quoted_code_stands_in_its_file(path, code):
    assert code in (ROOT / path).read_text()


def test_enough_is_quoted():
    assert len(QUOTED) >= 10
    assert {Path(path).name for path, _ in QUOTED} >= {"plugin.py", "convert.py", "runner.py"}


def test_the_entry_point_is_the_real_one():
    (block,) = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.M | re.S)
    project = (ROOT / "tests/distributions/wherry-plainnumpy/pyproject.toml").read_text()
    entries = tomllib.loads(project)["project"]["entry-points"]
    assert tomllib.loads(block)["project"]["entry-points"] == entries

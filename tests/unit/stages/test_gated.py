"""Whole runs whose gates compare with a file, the last run, and fp32."""

from __future__ import annotations

import pytest

from wherry.errors import ManifestError
from wherry.execute import execute
from wherry.records.database import Records
from wherry.records.snapshot import render

GATES = """
gates:
  - {metric: latency.median_ms, max_increase: 5%, against: ci.baseline.json}
  - {metric: size_bytes, max_increase: 0, against: last}
  - {metric: latency.median_ms, min_speedup: 0.001}
"""


@pytest.fixture
def gated(lab):
    """A lab whose manifest has five rounds and the gates above."""
    lab.text = lab.MANIFEST.replace("rounds: 2", "rounds: 5") + GATES
    return lab


def test_what_a_file_or_a_tag_lacks_is_said_before_anything_is_run(gated) -> None:
    tagged = "  - {metric: size_bytes, max_increase: 0, against: 'tag:release'}\n"
    gated.text += tagged
    for reach in (True, False):  # as `run` and as `plan` lay it out
        with pytest.raises(ManifestError) as caught:
            gated.prepare(reach=reach)
        first, second = str(caught.value).splitlines()
        line = gated.text.splitlines().index("gates:") + 2
        assert first.startswith(f"{gated.manifest}:{line}:"), first
        assert "there is nothing to compare with: " in first
        assert "ci.baseline.json: the baseline cannot be used: it cannot be read: No such" in first
        assert "`wherry report RUN --output NAME.baseline.json`" in first
        assert "there is nothing to compare with: no other run has the tag 'release'" in second
        assert "`--set 'gates=[]'`" in second
    (gated.folder / "ci.baseline.json").write_text("{}")
    with pytest.raises(ManifestError, match="it is no baseline of wherry's"):
        gated.prepare()
    assert gated.entries() == {}, "nothing was made"
    with Records.open() as records:
        assert records.runs() == []
    record = execute(gated.prepare("gates=[]"), tag="release")
    (gated.folder / "ci.baseline.json").write_text(render(record))
    gated.prepare().services.release()


def test_gates_fail_without_an_earlier_run_and_hold_with_one(gated) -> None:
    with_file = gated.text
    gated.text = "".join(li for li in with_file.splitlines(keepends=True) if "ci.base" not in li)
    first = gated.run()
    gated.text = with_file
    assert gated.statuses(first) == ["ok"] * 4
    last, fp32 = first["gates"]
    assert [gate["passed"] for gate in first["gates"]] == [False, True], first["gates"]
    assert "there is no earlier run of" in last["reason"]
    assert fp32["base"] > 0

    with Records.open() as records:
        (gated.folder / "ci.baseline.json").write_text(render(records.load()))
    second = gated.run()
    assert [gate["passed"] for gate in second["gates"]] == [True] * 3, second["gates"]
    assert second["results"][0]["measured_in"] == first["run_id"]
    assert second["gates"][0]["base"] == second["gates"][0]["value"]
    line = gated.text.splitlines().index("gates:") + 2
    assert second["gates"][0]["location"].endswith(f"wherry.yaml:{line}:5")

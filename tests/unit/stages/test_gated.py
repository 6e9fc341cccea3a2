"""Whole runs whose gates compare with a file, the last run, and fp32."""

from __future__ import annotations

import pytest

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


def test_gates_fail_without_a_baseline_and_hold_with_one(gated) -> None:
    first = gated.run()
    assert gated.statuses(first) == ["ok"] * 4
    file, last, fp32 = first["gates"]
    assert [gate["passed"] for gate in first["gates"]] == [False, False, True], first["gates"]
    assert "`wherry report RUN --output NAME.baseline.json`" in file["reason"]
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

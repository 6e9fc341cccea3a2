"""Fixed clocks and runs without pause: what the profile stage does with them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from wherry.device import Stabilised
from wherry.errors import DeviceLostError, ManifestError

SUSTAINED = {"duration_s": 30.0, "ratio": 1.5, "throttled_s": None, "throttled_by": None}
SUSTAINED["points"] = [
    {
        "time_s": 30.0,
        "runs": 9,
        "median_ms": 1.0,
        "p90_ms": 1.5,
        "temperature_c": 50.0,
        "frequency_khz": None,
        "power_w": None,
    }
]


@pytest.fixture
def clocks(lab, monkeypatch):
    """The board's clocks; ``clocks.log`` is what became of them and what was measured meanwhile."""

    clocks = SimpleNamespace(log=[], cannot=[], cannot_restore=[])

    @contextmanager
    def stabilise(power_mode):
        stabilised = Stabilised(("governor of policy0: performance",), list(clocks.cannot))
        clocks.log.append(("fixed", power_mode))
        try:
            yield stabilised
        finally:
            clocks.log.append(("restored", len(lab.bench.profiled)))
        stabilised.problems.extend(clocks.cannot_restore)

    monkeypatch.setattr(lab.bench, "stabilise", stabilise, raising=False)
    return clocks


def test_the_clocks_are_fixed_while_a_board_is_measured(lab, clocks) -> None:
    values = lab.run("measure.stabilise=true", "measure.power_mode=2")
    assert clocks.log == [("fixed", 2), ("restored", 8)]
    assert (values["measure"]["stabilise"], values["measure"]["power_mode"]) == (True, 2)
    for result in values["results"]:
        assert result["extra"]["stabilised"] == ["governor of policy0: performance"]
        assert not any("governor" in text for text in result["warnings"])


def test_fixed_clocks_are_in_the_key(lab, clocks) -> None:
    lab.run()
    assert clocks.log == []
    lab.run("measure.stabilise=true")
    assert lab.made["measure"] == 4
    lab.run("measure.stabilise=true")
    assert lab.made == {} and len(clocks.log) == 2


def test_what_could_not_be_fixed_is_told_again_from_the_store(lab, clocks) -> None:
    clocks.cannot = ["The governor of policy0 could not be set: Permission denied."]
    for _ in range(2):
        values = lab.run("measure.stabilise=true")
        for result in values["results"]:
            assert result["warnings"].count(clocks.cannot[0]) == 1


def test_what_could_not_be_given_back_is_told(lab, clocks) -> None:
    clocks.cannot_restore = ["policy0/scaling_governor could not be set back to ondemand."]
    values = lab.run("measure.stabilise=true")
    assert all(clocks.cannot_restore[0] in r["warnings"] for r in values["results"])


def test_a_board_that_comes_back_has_its_clocks_fixed_anew(lab, clocks, monkeypatch) -> None:
    monkeypatch.setattr("wherry.stages.retry.PAUSES_S", (0.0,))
    lab.bench.broken_at, lab.bench.breaks = 3, DeviceLostError("the link is down")
    values = lab.run("measure.stabilise=true")
    assert lab.statuses(values) == ["ok"] * 4
    assert [what for what, _ in clocks.log] == ["fixed", "restored"] * 2


# Without pause


def give_series(lab) -> None:
    """The third round of two is the run without pause."""

    def spoil(measurement):
        _, number = lab.bench.profiled[-1]
        return replace(measurement, sustained=SUSTAINED) if number == 2 else measurement

    lab.bench.spoil = spoil


def test_a_run_without_pause_is_one_round_more_of_which_the_series_is_kept(lab) -> None:
    give_series(lab)
    values = lab.run("measure.sustained=30", jobs=1)
    assert sorted(number for _, number in lab.bench.profiled) == [0] * 4 + [1] * 4 + [2] * 4
    assert [number for _, number in lab.bench.profiled][-4:] == [2] * 4, "it comes last"
    for result in values["results"]:
        assert result["sustained"] == SUSTAINED
        assert (result["latency"]["rounds"], result["latency"]["samples"]) == (2, 40)
    again = lab.run("measure.sustained=30", jobs=1)
    assert lab.made == {} and again["results"][0]["sustained"] == SUSTAINED
    assert lab.run(jobs=1)["results"][0]["sustained"] is None


def test_a_run_without_pause_that_broke_is_made_up_for_alone(lab) -> None:
    give_series(lab)
    lab.bench.broken_at = 12
    assert lab.statuses(lab.run("measure.sustained=30", jobs=1)).count("failed") == 1
    lab.bench.profiled.clear()
    values = lab.run("measure.sustained=30", jobs=1)
    assert [number for _, number in lab.bench.profiled] == [2]
    assert all(result["sustained"] == SUSTAINED for result in values["results"])


def test_what_cannot_run_without_pause_is_told(lab) -> None:
    values = lab.run("measure.sustained=30")
    assert lab.statuses(values) == ["ok"] * 4
    for result in values["results"]:
        assert result["sustained"] is None
        assert "What timed it cannot run without pause." in result["warnings"]


def test_a_power_mode_needs_fixed_clocks(lab) -> None:
    with pytest.raises(ManifestError, match="power_mode needs stabilise: true"):
        lab.run("measure.power_mode=2")

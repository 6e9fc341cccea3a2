"""Energy of an inference from counters and rails."""

from __future__ import annotations

import numpy as np
import pytest

from wherry.measurement import Measurement, Sensors, merge
from wherry_devices.energy import energy, main_power

TOTAL_NS = np.array([9_000_000, 10_000_000, 11_000_000], np.uint64)


def readings(*values):
    return [Sensors(10.0 + 0.5 * index, value) for index, value in enumerate(values)]


def test_a_counter_is_read_over_the_measured_runs_alone():
    series = [{"energy_j.package-0": joules} for joules in (0.0, 100.0, 102.0, 105.0)]
    found = energy(readings(*series), TOTAL_NS)
    assert (found.method, found.source) == ("counter", "package-0")
    assert found.power_w == pytest.approx(5.0)  # 5 J in the second after the warm-up
    assert found.mj == pytest.approx(50.0)


def test_all_packages_count_and_their_parts_do_not():
    names = {"package-0": 1, "package-1": 2, "package-0.core": 50, "psys": 90, "dram": 7}
    series = [{f"energy_j.{n}": k * t for n, k in names.items()} for t in (0, 1, 2, 3)]
    found = energy(readings(*series), TOTAL_NS)
    assert found.source == "package-0 + package-1" and found.power_w == pytest.approx(6.0)


def test_a_rail_is_averaged_over_the_measured_runs():
    series = [{"power_w.VDD_IN": w, "power_w.VDD_SOC": 1.0} for w in (1.0, 4.0, 6.0, 8.0)]
    found = energy(readings(*series), TOTAL_NS)
    assert (found.method, found.source, found.power_w) == ("rail", "VDD_IN", 6.0)
    assert found.mj == pytest.approx(60.0)


def test_a_counter_that_stands_still_is_none_and_the_rail_is_taken():
    series = [{"energy_j.package-0": 7.0, "power_w.ina219.1": 2.0}] * 3
    assert energy(readings(*series), TOTAL_NS).source == "ina219.1"


@pytest.mark.parametrize(
    "series",
    [
        [{}, {}, {}],
        [{"energy_j.package-0": 1.0}, {"energy_j.package-0": 2.0}],  # one reading while measuring
        [{}, {"power_w.VDD_IN": 1.0}, {}],  # it fell silent
        [{"power_w.a": 1.0, "power_w.b": 1.0}] * 3,  # which of them is the board?
        [{"power_w.VDD_IN": 0.0}] * 3,
        [],
    ],
    ids=str,
)
def test_what_the_board_does_not_tell_is_no_number(series):
    assert energy(readings(*series), TOTAL_NS) is None


@pytest.mark.parametrize(
    ("rails", "expected"),
    [
        ({"VDD_IN": 5.0, "VDD_SOC": 1.0, "VDD_CPU_GPU_CV": 2.0}, ("VDD_IN", 5.0)),
        ({"POM_5V_IN": 2.0, "POM_5V_GPU": 0.1, "POM_5V_CPU": 0.3}, ("POM_5V_IN", 2.0)),
        (
            {"VDD_GPU_SOC": 3.0, "VDD_CPU_CV": 1.0, "VIN_SYS_5V0": 4.0, "VDDQ_VDD2_1V8AO": 1.0},
            ("VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 8.0),
        ),
        ({"amdgpu.PPT": 30.0}, None),
        ({"pmic.VDD_CORE": 1.7}, None),
        ({"pmic.VDD_CORE": 1.7, "ina219.1": 4.0}, ("ina219.1", 4.0)),
        ({}, None),
    ],
    ids=str,
)
def test_the_rails_that_stand_for_the_board(rails, expected):
    assert main_power(rails) == expected


def round_of(runs, energy_mj):
    times = np.full(runs, 1000, np.uint64)
    return Measurement(times, times, (runs,), (1.0,), (1.0,), (1,), (True,), energy_mj=energy_mj)


def test_rounds_are_weighted_by_their_runs():
    assert merge([round_of(1, 10.0), round_of(3, 20.0)]).energy_mj == pytest.approx(17.5)
    assert merge([round_of(1, 10.0), round_of(3, None)]).energy_mj is None

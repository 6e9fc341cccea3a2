"""Sensors read from fake trees of /sys and /proc, and what the host makes of readings."""

from __future__ import annotations

import pytest

from wherry.measurement import Sensors
from wherry_devices.agent import probe, sensors
from wherry_devices.disturbances import disturbances
from wherry_devices.probe import board_info


def grow(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


PI = {
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48312\n",
    "sys/class/thermal/thermal_zone1/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "50000\n",
    "sys/class/thermal/thermal_zone2/type": "broken\n",
    "sys/class/thermal/thermal_zone10/temp": "-1500\n",
    "sys/class/thermal/cooling_device0/type": "fan\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1500000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1800000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "<unknown>\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    "proc/loadavg": "0.52 0.40 0.30 1/100 4242\n",
    "proc/meminfo": "MemTotal:        3884000 kB\nMemAvailable:    3000000 kB\n",
    "proc/stat": "cpu  100 0 50 1000 5 0 10 40 7 7\ncpu0 1 2 3\n",
    "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\ncpu MHz\t: 9\n",
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n',
}


def test_a_raspberry_pi(tmp_path):
    values = sensors.read(grow(tmp_path, PI))["values"]
    own = values.pop("cpu_own_s")
    assert own > 0
    assert values == {
        "temperature_c.cpu-thermal": 48.312,
        "temperature_c.cpu-thermal-2": 50.0,
        "temperature_c.thermal_zone10": -1.5,
        "frequency_khz.policy0": 1500000,
        "frequency_max_khz.policy0": 1800000,
        "governor.policy0": "ondemand",
        "throttled": 0x50005,
        "load_1m": 0.52,
        "memory_available_bytes": 3_000_000 * 1024,
        "cpu_busy_s": pytest.approx(2.0),
    }


def test_a_virtual_machine_and_throttle_counters(tmp_path):
    root = grow(
        tmp_path,
        {
            "proc/cpuinfo": "cpu MHz\t\t: 2596.138\n\ncpu MHz\t\t: 3100.5\n",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
            "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4\n",
            "sys/devices/system/cpu/cpuidle/current_driver": "none\n",
        },
    )
    values = sensors.read(root)["values"]
    assert values["frequency_khz.cpu"] == 3_100_500
    assert values["throttle_count.cpu"] == 7


def test_a_board_that_tells_nothing(tmp_path):
    reading = sensors.read(tmp_path)
    assert set(reading["values"]) == {"cpu_own_s"}
    assert reading["time_s"] > 0


def test_this_machine_is_read():
    values = sensors.read()["values"]
    assert values["memory_available_bytes"] > 0 and values["cpu_busy_s"] > 0


def test_probe_of_a_raspberry_pi(tmp_path):
    facts = probe.board_facts(tmp_path, grow(tmp_path, PI))
    info = board_info(facts)
    assert info.model == "Raspberry Pi 4 Model B Rev 1.4"
    assert info.cpu == "1x 0x41/0xd08"
    assert info.system == "Debian GNU/Linux 12 (bookworm)"
    assert info.memory_bytes == 3884000 * 1024
    assert info.facts["os_version"] == "12"
    other = {**facts, "memory_bytes": facts["memory_bytes"] - 5_000_000, "hostname": "other"}
    assert board_info(other).fingerprint == info.fingerprint
    assert board_info({**facts, "kernel": "7"}).fingerprint != info.fingerprint
    fewer = {**facts["facts"], "cores_usable": 0}
    assert board_info({**facts, "facts": fewer}).fingerprint != info.fingerprint


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "emulated"),
    [
        ("x86_64", "vendor_id\t: GenuineIntel\nmodel name\t: Xeon\nflags\t: hypervisor\n", False),
        ("x86_64", "model name\t: QEMU Virtual CPU version 2.5+\n", True),
        ("aarch64", "vendor_id\t: AuthenticAMD\nmodel name\t: EPYC\n", True),
        ("aarch64", "CPU implementer\t: 0x41\nCPU part\t: 0xd08\n", False),
    ],
)
def test_emulated_processors_are_seen(tmp_path, monkeypatch, machine, cpuinfo, emulated):
    monkeypatch.setattr(probe.platform, "machine", lambda: machine)
    root = grow(tmp_path, {"proc/cpuinfo": cpuinfo})
    assert probe.board_facts(tmp_path, root)["emulated"] is emulated


def test_qemu_user_is_seen_by_what_a_child_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(probe.os, "readlink", lambda _: "/usr/bin/qemu-aarch64-static")
    assert probe.board_facts(tmp_path, tmp_path)["emulated"] is True


def readings(*values):
    return [Sensors(float(index), value) for index, value in enumerate(values)]


QUIET = {"frequency_khz.policy0": 1800000, "temperature_c.cpu": 50.0, "throttled": 0xF0000}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([QUIET, QUIET, QUIET, QUIET], None),
        ([{}, {}, {}], None),
        ([{"frequency_khz.policy0": 600000}, QUIET, QUIET], None),  # it rises while warming up
        (
            [QUIET, QUIET, {"frequency_khz.policy0": 1200000}, QUIET],
            "The clock moved between 1200 and 1800 MHz.",
        ),
        ([QUIET, QUIET, {"frequency_khz.policy0": 1750000}, QUIET], None),
        (  # an idle little core does as it likes
            [QUIET, {**QUIET, "frequency_khz.policy4": 600000}, QUIET],
            None,
        ),
        (
            [QUIET, QUIET, {"temperature_c.cpu": 61.0}],
            "The temperature of cpu moved from 50 to 61 °C.",
        ),
        (
            [QUIET, {"throttled": 0x5}, QUIET],
            "The board reported that it was under-voltage and throttled.",
        ),
        (
            [{"throttle_count.cpu": 3}, {"throttle_count.cpu": 3}, {"throttle_count.cpu": 5}],
            "The processor was throttled 2 times.",
        ),
        (  # it came and went between two readings: the sticky bits tell
            [{"throttled": 0x10000}, {"throttled": 0x10000}, {"throttled": 0x50000}],
            "The board reported that it was throttled.",
        ),
        (
            [{"under_voltage": 0}, {"under_voltage": 1}, {"under_voltage": 0}],
            "The board reported that it was under-voltage.",
        ),
        (
            [{"throttle_count.oc3": 37}, {"throttle_count.oc3": 39}, {"throttle_count.oc3": 40}],
            "The board was throttled 3 times for its peak current (oc3).",
        ),
        (
            [{"throttle_count.new": 0}, {"throttle_count.new": 1}],
            "The board was throttled 1 times (new).",
        ),
        (
            [{"cooling.cpufreq-cpu0": 0}, {"cooling.cpufreq-cpu0": 2, "cooling.gpu": 0}, {}],
            "The board's cooling slowed it down (cpufreq-cpu0).",
        ),
        (
            [{}, *({"frequency_khz.gpu": f, "gpu_load_percent": 90} for f in (900000, 612000))],
            "The GPU's clock moved between 612 and 900 MHz.",
        ),
        (  # nobody uses it
            [{}, *({"frequency_khz.gpu": f, "gpu_load_percent": 0} for f in (900000, 612000))],
            None,
        ),
        (  # the GPU's clock is no core's
            [
                {},
                {"frequency_khz.policy0": 600000},
                {"frequency_khz.policy0": 600000, "frequency_khz.gpu": 900000},
            ],
            None,
        ),
        (
            [{}, {"cpu_busy_s": 10.0, "cpu_own_s": 1.0}, {"cpu_busy_s": 12.5, "cpu_own_s": 2.0}],
            "Other processes kept 1.5 of 4 cores busy.",
        ),
        (
            [{}, {"cpu_busy_s": 10.0, "cpu_own_s": 1.0}, {"cpu_busy_s": 11.1, "cpu_own_s": 2.0}],
            None,
        ),
    ],
)
def test_disturbances_are_named(values, sentence):
    assert disturbances(readings(*values), 4) == ((sentence,) if sentence else ())

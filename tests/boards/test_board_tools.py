"""What the boards' own tools print, as their documentation shows it, and what is made of it."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_devices.agent import commands, sensors

PMIC = """\
   3V3_SYS_A current(1)=0.14638950A
  VDD_CORE_A current(7)=1.95567000A
   3V3_SYS_V volt(9)=3.30910500V
  VDD_CORE_V volt(15)=0.87247780V
     EXT5V_V volt(24)=4.98480000V
      BATT_V volt(25)=nanV
"""
SHOW = """\
SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano
Online CPUs: 0-5
cpu0: Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1510400 CurrentFreq=1510400
GPU MinFreq=306000000 MaxFreq=624750000 CurrentFreq=306000000
EMC MinFreq=204000000 MaxFreq=2133000000 CurrentFreq=2133000000 FreqOverride=0
FAN Dynamic Speed control=active hwmon0_pwm1=69
NV Power Mode: 15W
"""
ORIN = (
    "11-24-2026 10:15:32 RAM 2467/7471MB (lfb 2x4MB) SWAP 0/994MB (cached 0MB) "
    "CPU [2%@729,1%@729,off,off] EMC_FREQ 0%@2133 GR3D_FREQ 12%@[305] "
    "cpu@45.5C soc2@44.3C gpu@-256C VDD_IN 4983mW/4990mW VDD_CPU_GPU_CV 480mW/477mW"
)
NANO = (
    "RAM 1180/3956MB (lfb 4x4MB) IRAM 0/252kB(lfb 252kB) CPU [1%@102,5%@102] EMC_FREQ 0% "
    "GR3D_FREQ 0% PLL@26C CPU@28.5C iwlwifi@31C POM_5V_IN 1690/1684 POM_5V_GPU 0/0"
)


def test_flags_and_temperature_of_a_raspberry_pi():
    assert commands.throttled("throttled=0x50005\n") == {"throttled": 0x50005}
    assert commands.temperature("temp=48.3'C\n") == {"temperature_c.soc": 48.3}
    for text in ("", "VCHI initialization failed\n", "throttled=\n", "throttled=0xg\n"):
        assert commands.throttled(text) == commands.temperature(text) == {}


def test_rails_of_a_raspberry_pi_5():
    assert commands.pmic(PMIC) == {
        "power_w.pmic.3V3_SYS": pytest.approx(0.4844, abs=1e-4),
        "power_w.pmic.VDD_CORE": pytest.approx(1.7063, abs=1e-4),
    }
    assert commands.pmic('error=1 error_msg="Command not registered"\n') == {}
    assert commands.pmic(" BAD_A current(1)=3.0V\n BAD_V volt(1)=3.0V\n") == {}


def test_power_mode_of_a_jetson():
    assert commands.power_mode("NV Power Mode: MAXN_SUPER\n2\n") == ("MAXN_SUPER", 2)
    assert commands.power_mode("NV Fan Mode:quiet\nNV Power Mode: 15W\n0\n") == ("15W", 0)
    assert commands.power_mode("NVPM ERROR: Error opening /var/lib/nvpmodel/status\n") is None


def test_clocks_of_a_jetson():
    assert commands.clocks(SHOW) == {
        "clock_range_khz.gpu": "306000-624750",
        "clock_range_khz.emc": "204000-2133000",
        "frequency_khz_of.emc": 2133000,
    }
    assert commands.clocks("Error: please run as root\n") == {}


def test_tegrastats_with_units_and_without():
    assert commands.stats(ORIN) == {
        "power_w.VDD_IN": 4.983,
        "power_w.VDD_CPU_GPU_CV": 0.48,
        "temperature_c.cpu": 45.5,
        "temperature_c.soc2": 44.3,
        "gpu_load_percent": 12,
    }
    assert commands.stats(NANO) == {
        "power_w.POM_5V_IN": 1.69,
        "power_w.POM_5V_GPU": 0.0,
        "temperature_c.PLL": 26.0,
        "temperature_c.CPU": 28.5,
        "temperature_c.iwlwifi": 31.0,
        "gpu_load_percent": 0,
    }


PARSERS = [commands.throttled, commands.temperature, commands.pmic, commands.clocks, commands.stats]


@given(st.sampled_from(PARSERS), st.text() | st.text("=0123456789.xA'CmW/@VDD_IN \nfreq%"))
def test_any_text_gives_finite_values_or_none(parse, text):
    for name, value in parse(text).items():
        assert isinstance(name, str)
        assert isinstance(value, str) or math.isfinite(value)


@given(st.text() | st.text("NV Power Mode:\n0123456789"))
def test_any_text_gives_a_power_mode_or_none(text):
    found = commands.power_mode(text)
    assert found is None or (found[0].strip() and 0 <= found[1] < 1000)


RAIL = st.from_regex(r"V[A-Z0-9_]{1,12}", fullmatch=True)
WATTS = st.integers(0, 100_000)


@given(st.dictionaries(RAIL, WATTS, max_size=6), st.sampled_from(["mW", ""]))
def test_rails_of_tegrastats_come_back(rails, unit):
    line = " ".join(f"{rail} {power}{unit}/{power + 1}{unit}" for rail, power in rails.items())
    expected = {f"power_w.{rail}": power / 1000 for rail, power in rails.items()}
    assert commands.stats(f"RAM 1/2MB {line} cpu") == expected


@given(st.dictionaries(RAIL, st.tuples(st.floats(0, 10), st.floats(0, 6)), max_size=6))
def test_rails_of_the_pmic_come_back(rails):
    lines = [
        f"  {rail}_A current({i})={amps:.8f}A" for i, (rail, (amps, _)) in enumerate(rails.items())
    ]
    lines += [
        f"  {rail}_V volt({i})={volts:.8f}V" for i, (rail, (_, volts)) in enumerate(rails.items())
    ]
    found = commands.pmic("\n".join(lines))
    assert found == {
        f"power_w.pmic.{rail}": pytest.approx(amps * volts, abs=1e-5)
        for rail, (amps, volts) in rails.items()
    }


def script(root, name, text):
    path = root / "usr/bin" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_the_tools_are_asked_for_what_no_file_tells(tmp_path):
    script(tmp_path, "vcgencmd", """
case "$1" in
  get_throttled) echo "throttled=0x4" ;;
  measure_temp) echo "temp=61.0'C" ;;
  *) echo 'error=1 error_msg="Command not registered"'; exit 255 ;;
esac""")  # fmt: skip
    values = sensors.read(tmp_path)["values"]
    assert (values["throttled"], values["temperature_c.soc"]) == (4, 61.0)
    assert commands.ask(tmp_path, {"throttled": 0, "temperature_c.cpu": 50.0}) == {}
    assert "throttled" not in sensors.Reader(tmp_path).read()["values"]


def test_a_jetsons_tools(tmp_path):
    script(tmp_path, "nvpmodel", "echo 'NV Power Mode: 15W'; echo 0")
    script(tmp_path, "jetson_clocks", f"cat <<'END'\n{SHOW}END")
    script(tmp_path, "tegrastats", f"echo '{ORIN}'; exec sleep 60")
    begun = time.monotonic()
    found = commands.ask(tmp_path, {"temperature_c.cpu": 44.0})
    assert time.monotonic() - begun < 30
    assert found["power_mode"] == "15W (0)" and found["power_w.VDD_IN"] == 4.983
    assert found["clock_range_khz.gpu"] == "306000-624750"
    assert "temperature_c.cpu" not in found  # a file told it
    assert "gpu_load_percent" not in commands.ask(tmp_path, {"power_w.VDD_IN": 5.0})


def test_a_tool_that_fails_or_hangs_is_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "LIMIT_S", 0.2)
    monkeypatch.setattr(commands.run, "__defaults__", (b"", 0.2))
    script(tmp_path, "vcgencmd", "exec sleep 60")
    script(tmp_path, "nvpmodel", "echo 'NVPM ERROR: no'; exit 1")
    script(tmp_path, "jetson_clocks", "exit 1")
    script(tmp_path, "tegrastats", "exec sleep 60")
    assert commands.ask(tmp_path, {}) == {}
    (tmp_path / "usr/bin/tegrastats").write_text("not a program")
    (tmp_path / "usr/bin/vcgencmd").chmod(0o644)
    assert commands.ask(tmp_path, {}) == {}


def test_a_tool_that_is_not_there_is_told_from_one_that_fails(tmp_path):
    assert commands.tool(tmp_path, "vcgencmd") is None
    status, said = commands.run([str(tmp_path / "nothing")])
    assert status == -1 and "No such file" in said

"""Rails, counters and alarms on trees of files as Jetsons, Raspberry Pis and x86 have them.

Written after the documentation of NVIDIA, of Raspberry Pi and of Linux, not taken from hardware.
"""

from __future__ import annotations

from wherry_devices.agent import sensors
from wherry_devices.agent.power import Counter

INA3221 = {  # of an Orin NX: the sum of the shunts has a label too, and is no rail
    "name": "ina3221\n",
    "in1_label": "VDD_IN\n",
    "in1_input": "4984\n",
    "curr1_input": "1856\n",
    "in2_label": "VDD_CPU_GPU_CV\n",
    "in2_input": "4976\n",
    "curr2_input": "400\n",
    "in3_label": "NC\n",
    "in3_input": "0\n",
    "curr3_input": "0\n",
    "in4_input": "9280\n",
    "curr4_input": "2256\n",
    "in7_label": "sum of shunt voltages\n",
    "in7_input": "12000\n",
}
ORIN = {
    **{f"sys/class/hwmon/hwmon1/{name}": text for name, text in INA3221.items()},
    "sys/class/hwmon/hwmon3/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon3/oc1_throt_en": "1\n",
    "sys/class/hwmon/hwmon3/oc2_event_cnt": "15\n",
    "sys/class/hwmon/hwmon3/oc2_throt_en": "0\n",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "37\n",
    "sys/class/hwmon/hwmon3/oc3_throt_en": "1\n",
    "sys/class/hwmon/hwmon4/name": "pwmfan\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "49468\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "48000\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
    "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "sys/class/thermal/cooling_device2/type": "devfreq-17000000.gpu\n",
    "sys/class/thermal/cooling_device2/cur_state": "3\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/device/load": "421\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1190400\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
}
X86 = {
    "sys/class/powercap/intel-rapl/enabled": "1\n",
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "5000000\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "2000000\n",
    "sys/class/powercap/intel-rapl:1/name": "psys\n",
    "sys/class/powercap/intel-rapl:1/energy_uj": "9000000\n",
    "sys/class/powercap/intel-rapl-mmio:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl-mmio:0/energy_uj": "5000000\n",
    "sys/class/hwmon/hwmon0/name": "power_meter\n",
    "sys/class/hwmon/hwmon0/power1_input": "61500000\n",
    "sys/class/hwmon/hwmon1/name": "a_pmic\n",
    "sys/class/hwmon/hwmon1/in1_label": "vdd\n",
    "sys/class/hwmon/hwmon1/in1_input": "1200\n",
    "sys/class/hwmon/hwmon1/curr1_label": "vdd\n",
    "sys/class/hwmon/hwmon1/curr1_input": "500\n",
    "sys/class/hwmon/hwmon1/in2_label": "vin\n",
    "sys/class/hwmon/hwmon1/in2_input": "12000\n",
    "sys/class/hwmon/hwmon1/curr2_label": "another\n",
    "sys/class/hwmon/hwmon1/curr2_input": "500\n",
}


def grow(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def values_of(root):
    values = sensors.Reader(root).read()["values"]
    del values["cpu_own_s"]
    return values


def test_a_jetson_orin(tmp_path):
    values = values_of(grow(tmp_path, ORIN))
    assert values == {
        "power_w.VDD_IN": 4.984 * 1.856,
        "power_w.VDD_CPU_GPU_CV": 4.976 * 0.4,
        "temperature_c.cpu-thermal": 49.468,
        "temperature_c.gpu-thermal": 48.0,
        "frequency_khz.policy0": 1190400,
        "frequency_max_khz.policy0": 1510400,
        "governor.policy0": "schedutil",
        "frequency_khz.gpu": 306000,
        "gpu_load_percent": 42.1,
        "throttle_count.oc1": 0,
        "throttle_count.oc3": 37,  # oc2 throttles nothing
        "cooling.cpufreq-cpu0": 0,
        "cooling.devfreq-17000000.gpu": 3,
    }


def test_a_jetson_of_the_4_9_kernel(tmp_path):
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    files = {
        f"{folder}/rail_name_0": "POM_5V_IN\n",
        f"{folder}/in_power0_input": "2123\n",
        f"{folder}/rail_name_1": "NC\n",
        f"{folder}/in_power1_input": "0\n",
        "sys/bus/i2c/drivers/ina3221x/bind": "",
    }
    assert values_of(grow(tmp_path, files)) == {"power_w.POM_5V_IN": 2.123}


def test_counters_and_meters_of_x86(tmp_path):
    assert values_of(grow(tmp_path, X86)) == {
        "energy_j.package-0": 5.0,
        "energy_j.package-0.core": 2.0,
        "energy_j.psys": 9.0,
        "power_w.power_meter.1": 61.5,
        "power_w.vdd": 0.6,
    }


def test_a_counter_that_begins_anew_goes_on(tmp_path):
    reader = sensors.Reader(grow(tmp_path, X86))
    file = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    found = []
    for count in (262143000000, 1000000, 2000000):
        file.write_text(f"{count}\n")
        found.append(reader.read()["values"]["energy_j.package-0"])
    assert found == [262143.0, 262143.32885 + 1, 262143.32885 + 2]


def test_a_counter_of_an_unknown_end_grows_no_further_than_it_says():
    counter = Counter(1.0, 0.0)
    assert [counter(text) for text in ("5", "3", "4")] == [5.0, 3.0, 4.0]


def test_rails_of_one_name_are_told_apart(tmp_path):
    files = {}
    for number in (0, 1):
        files[f"sys/class/hwmon/hwmon{number}/name"] = "ina219"
        files[f"sys/class/hwmon/hwmon{number}/power1_input"] = f"{number + 1}000000"
    values = values_of(grow(tmp_path, files))
    assert values == {"power_w.ina219.1": 1.0, "power_w.ina219.1-2": 2.0}


def test_an_under_voltage_alarm_of_a_raspberry_pi(tmp_path):
    files = {
        "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
        "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1\n",
    }
    assert values_of(grow(tmp_path, files)) == {"under_voltage": 1}


def test_cooling_of_one_kind_is_summed(tmp_path):
    files = {}
    for number, state in enumerate((0, 2, 1)):
        files[f"sys/class/thermal/cooling_device{number}/type"] = "Processor"
        files[f"sys/class/thermal/cooling_device{number}/cur_state"] = str(state)
    assert values_of(grow(tmp_path, files)) == {"cooling.Processor": 3}


def test_a_sensor_that_goes_away_is_absent_from_then_on(tmp_path):
    reader = sensors.Reader(grow(tmp_path, ORIN))
    (tmp_path / "sys/class/hwmon/hwmon1/curr1_input").write_text("\n")
    (tmp_path / "sys/class/devfreq/17000000.gpu/cur_freq").unlink()
    values = reader.read()["values"]
    assert "power_w.VDD_IN" not in values and "frequency_khz.gpu" not in values
    assert values["power_w.VDD_CPU_GPU_CV"] > 0

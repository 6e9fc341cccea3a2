"""What each board gets of the built-in runtimes, resolved by a real pip from a recorded index."""

from __future__ import annotations

from pathlib import Path

import pytest
from wheel_folder import put_wheel, use_only, wheels_of

import wherry_ncnn.plugin
import wherry_onnxruntime.plugin
import wherry_tflite.plugin
from wherry.errors import UnfitError
from wherry_devices.provision import Provisioner, platform_of

pytestmark = pytest.mark.index  # once, for pip's own environment

RECORDED = Path(__file__).with_name("recorded_index.txt")
ORT = wherry_onnxruntime.plugin.RUNTIMES
NCNN = wherry_ncnn.plugin.RUNTIMES
TFLITE = wherry_tflite.plugin.RUNTIMES
NUMPY = ()  # of a runner that needs nothing else


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """The recorded index as a folder."""
    folder = tmp_path_factory.mktemp("index")
    for line in RECORDED.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            file, _, python = line.partition(" ")
            put_wheel(folder, file, python=python)
    return folder


class Services:
    """`wherry.device.DeviceServices` with the wheels of the recorded index."""

    def __init__(self, home, shared):
        self.made = wheels_of(home, shared)

    def wheels_lock(self, requirements, platform):
        return self.made.lock(requirements, platform).sha256


@pytest.fixture
def pins(index, tmp_path, wherry_home, monkeypatch):
    """What a board gets: ``pins(alternatives, board)``, name to version."""
    services = Services(tmp_path / "home", wherry_home)
    use_only(index, monkeypatch)

    def choose(alternatives, facts):
        requirements, locked = Provisioner(services)._choose(facts, alternatives)
        lock = services.made.lock(requirements, platform_of(facts))
        assert lock.sha256 == locked
        return dict(line.split()[0].split("==") for line in lock.text.splitlines())

    return choose


def board(machine, python, glibc, numpy=None, implementation="CPython"):
    """What a probe tells that decides."""
    facts = {"implementation": implementation, "python_machine": machine, "numpy": numpy}
    return {
        "python": python,
        "python_executable": "/usr/bin/python3",
        "glibc": glibc,
        "facts": {**facts, "libstdc++": True},
    }


XAVIER = board("aarch64", "3.8.10", "2.31")  # Ubuntu 20.04, JetPack 5
BULLSEYE = board("aarch64", "3.9.2", "2.31")
ORIN = board("aarch64", "3.10.12", "2.35")  # Ubuntu 22.04, JetPack 6
BOOKWORM = board("aarch64", "3.11.2", "2.36")
TRIXIE = board("aarch64", "3.13.5", "2.41")
NEW_PYTHON_ON_BIONIC = board("aarch64", "3.11.9", "2.27")
PI32 = board("armv7l", "3.11.2", "2.36", numpy="1.24.2")
PI32_OLD = board("armv7l", "3.9.2", "2.31", numpy="1.19.5")
PC = board("x86_64", "3.14.0", "2.41")


@pytest.mark.parametrize(
    ("alternatives", "facts", "expected"),
    [
        (ORT, XAVIER, {"numpy": "1.24.4", "onnxruntime": "1.19.2"}),
        (NCNN, XAVIER, {"numpy": "1.24.4", "ncnn": "1.0.20260526"}),
        (TFLITE, XAVIER, {"numpy": "1.24.4", "tflite_runtime": "2.13.0"}),
        (NUMPY, XAVIER, {"numpy": "1.24.4"}),
        (ORT, BULLSEYE, {"numpy": "1.24.4", "onnxruntime": "1.19.2"}),
        (TFLITE, BULLSEYE, {"numpy": "2.0.2", "ai_edge_litert": "2.1.0"}),
        (ORT, ORIN, {"numpy": "2.2.6", "onnxruntime": "1.23.2"}),
        (NCNN, ORIN, {"numpy": "2.2.6", "ncnn": "1.0.20261020"}),
        (TFLITE, ORIN, {"numpy": "2.2.6", "ai_edge_litert": "2.3.0"}),
        (ORT, BOOKWORM, {"numpy": "2.4.6", "onnxruntime": "1.32.0"}),
        (ORT, TRIXIE, {"numpy": "2.4.6", "onnxruntime": "1.32.0"}),
        (NCNN, TRIXIE, {"numpy": "2.4.6", "ncnn": "1.0.20261020"}),
        (TFLITE, TRIXIE, {"numpy": "2.4.6", "ai_edge_litert": "2.3.0"}),
        # onnxruntime 1.32.0 asks for glibc 2.28
        (ORT, NEW_PYTHON_ON_BIONIC, {"numpy": "2.2.6", "onnxruntime": "1.23.2"}),
        # numpy is the board's own
        (NCNN, PI32, {"ncnn": "1.0.20261020"}),
        (TFLITE, PI32, {"tflite_runtime": "2.14.0"}),
        (NUMPY, PI32, {}),
        (NCNN, PI32_OLD, {"ncnn": "1.0.20261020"}),
        (TFLITE, PI32_OLD, {"tflite_runtime": "2.13.0"}),
        (ORT, PC, {"numpy": "2.4.6", "onnxruntime": "1.32.0"}),
    ],
)
def test_a_board_gets(pins, alternatives, facts, expected):
    assert pins(alternatives, facts) == expected


@pytest.mark.parametrize("facts", [PI32, PI32_OLD])
def test_what_has_no_wheels_for_32_bit_arm_is_told(pins, facts):
    with pytest.raises(UnfitError) as caught:
        pins(ORT, facts)
    python, glibc = facts["python"], facts["glibc"]
    assert f"has no wheel for Python {python}, glibc {glibc}, armv7l" in caught.value.message


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (board("aarch64", "3.11.2", None), "has no wheels for a board without glibc"),
        (board("aarch64", "3.10.14", "2.36", implementation="PyPy"), "the board's Python is PyPy"),
        (board("aarch64", "3.7.3", "2.28"), "needs Python"),
        (board("aarch64", "3.11.2", "2.16"), "has no wheel for Python 3.11.2, glibc 2.16"),
        (board("armv7l", "3.11.2", "2.36"), "has no numpy"),
    ],
    ids=["musl", "PyPy", "Python 3.7", "old glibc", "no numpy"],
)
def test_a_board_that_gets_nothing_is_told_why(pins, facts, told):
    with pytest.raises(UnfitError, match=told):
        pins(NCNN, facts)

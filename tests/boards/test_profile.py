"""The default of ``wherry_profile``, end to end with a fake runner, dataset and metrics."""

from __future__ import annotations

import dataclasses
import platform

import numpy as np
import pytest

from wherry.artifact import Binding
from wherry.dataset import Dataset, Sample
from wherry.errors import DataError
from wherry.measurement import Measurement, MeasureSettings
from wherry_devices import plugin

SETTINGS = MeasureSettings(warmup_s=0.02, warmup_runs=2, duration_s=0.1, min_runs=5, max_runs=5000)


class Digits(Dataset):
    """Sample i is a picture full of i, and so is its label."""

    name = "digits"

    def __init__(self, count, key=""):
        self.count, self.key, self.read = count, key, []

    @property
    def digest(self):
        return "0" * 64

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        self.read.append(index)
        return Sample({self.key: np.full((4, 4), index, np.uint8)}, index)


@dataclasses.dataclass
class Right:
    """How often output, reference and label say the same."""

    seen: list = dataclasses.field(default_factory=list)

    def update(self, outputs, reference, label):
        (output,) = outputs.values()
        assert output.shape == (1, 1, 4, 4)
        self.seen.append(float(output.max()) == float(reference["y"]) == 2 * label)

    def result(self):
        return sum(self.seen) / len(self.seen)


@dataclasses.dataclass
class Context:
    """What `wherry.context.ProfileContext` gives the hook that is under test."""

    backend: object
    round: int
    metrics: dict
    settings: MeasureSettings = SETTINGS
    sustained_s: float = 0.0
    layers: bool = False
    said: list = dataclasses.field(default_factory=list)

    def reference(self, index):
        return {"y": np.float32(2 * index)}

    def preprocess(self):
        return {"x": {"scale": 1.0}}

    def progress(self, text):
        self.said.append(text)


@pytest.fixture
def profile(bench):
    taken = Binding("x", "in0", "float32", (1, 1, 4, 4))
    artifact = bench.artifact([taken], [dataclasses.replace(taken, onnx="y", runtime="out0")])

    def run(dataset, round_number=0, metrics=None, **options):
        context = Context(bench.backend, round_number, metrics or {})
        with bench.device().session() as session:
            return plugin.wherry_profile(
                artifact, bench.target(**options), dataset, session, context
            )

    return run


def test_the_first_round_times_and_scores(profile, tmp_path):
    metric, dataset = Right(), Digits(200)
    measured = profile(dataset, metrics={"right": metric}, sleep_s=0.001, ballast_mb=20)
    assert measured.metrics == {"right": 1.0}
    assert measured.evaluated == 200 == len(metric.seen)
    assert dataset.read == [0, *range(200)]
    assert measured.round_sizes == (len(measured.infer_ns),) == (len(measured.total_ns),)
    assert np.median(measured.infer_ns) > 1e6
    assert measured.peak_memory_bytes >= 20 << 20
    assert len(measured.load_ms) == len(measured.first_ms) == len(measured.steady) == 1
    assert measured.timed_by == "agent" and not measured.emulated
    assert measured.clean == (not measured.disturbances)
    assert measured.extra == {"runtime": {"numpy": np.__version__}}
    measured.save(tmp_path)
    assert Measurement.load(tmp_path).sensors == measured.sensors


def test_later_rounds_only_time(profile):
    dataset = Digits(200, key="x")
    measured = profile(dataset, round_number=1)
    assert dataset.read == [0]
    assert measured.metrics == {} and measured.evaluated == 0
    assert measured.peak_memory_bytes is None


def test_without_a_dataset_zeros_are_timed(profile):
    measured = profile(None)
    assert len(measured.infer_ns) >= 5 and measured.evaluated == 0


def test_a_dataset_that_does_not_name_one_of_several_inputs(profile, bench):
    taken = [Binding(name, name, "float32", (1, 2)) for name in ("a", "b")]
    artifact = bench.artifact(taken, [dataclasses.replace(taken[0], onnx="y")])
    context = Context(bench.backend, 0, {})
    with (
        bench.device().session() as session,
        pytest.raises(DataError, match="several: a, b"),
    ):
        plugin.wherry_profile(artifact, bench.target(), Digits(3), session, context)


def test_the_transport_reaches_this_machine(bench):
    transports = {transport.name: transport.host for transport in plugin.wherry_transports()}
    assert transports == {"local": True, "ssh": False}
    assert bench.device().probe().hostname == platform.node()

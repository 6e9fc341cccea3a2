"""Times of layers: the agent asks the runner, and the host gets them, under the lease alone."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from wherry.artifact import Binding, Layer
from wherry.errors import DeviceError, ToolError
from wherry.measurement import Measurement, MeasureSettings
from wherry_devices import plugin
from wherry_devices.agent.layers import LEAST_RUNS, MOST_RUNS, time_layers

INPUTS = {"x": np.ones((1, 3, 4), np.float32)}


class Machine:
    """A clock that a runner moves, whose layers are as many as it is told."""

    def __init__(self, run_ms: float) -> None:
        self.now, self.run_ms, self.asked = 0, run_ms, 0

    def clock(self) -> int:
        return self.now

    def set_inputs(self, inputs) -> None:
        assert inputs == {"x": 1}

    def run(self) -> None:
        self.now += int(self.run_ms * 1e6)

    def get_outputs(self):
        return {}

    def time_layers(self, inputs, runs):
        self.asked = runs
        return {"b": [2] * runs, "a": np.arange(runs)}


@pytest.mark.parametrize(
    ("run_ms", "runs"), [(0.001, MOST_RUNS), (0.0, MOST_RUNS), (20, 30), (500, LEAST_RUNS)]
)
def test_so_many_inferences_as_the_time_holds(run_ms, runs) -> None:
    machine = Machine(run_ms)
    found = time_layers(machine, {"x": 1}, 0.6, machine.clock)
    assert machine.asked == runs
    assert list(found) == ["b", "a"], "in the runner's order"
    assert list(found["a"]) == list(range(runs))


def test_an_artifact_of_very_many_layers_is_loaded(bench) -> None:
    """Its description is larger than a frame's header may be."""
    layers = tuple(
        Layer(f"layer{index}", "CONV_2D", (f"/features/{index}/" + "long" * 40,))
        for index in range(8000)
    )
    artifact = dataclasses.replace(bench.artifact(), layers=layers)
    assert len(json.dumps(artifact.to_json())) > 1 << 20
    with (
        bench.device().session() as session,
        session.host(artifact, bench.target(), bench.backend, {}) as hosted,
    ):
        (outputs,) = hosted.infer([INPUTS])
    assert np.array_equal(outputs["y"], 2 * INPUTS["x"])


def test_the_host_gets_them(bench) -> None:
    with (
        bench.device().session() as session,
        session.host(bench.artifact(), bench.target(), bench.backend, {}) as hosted,
    ):
        found = hosted.time_layers(INPUTS, 0.05)
        assert list(found) == ["multiply", "copy"]
        assert found["copy"].dtype == np.uint64 and set(found["copy"]) == {1000}
        assert LEAST_RUNS <= len(found["multiply"]) == len(found["copy"]) <= MOST_RUNS
        (output,) = hosted.infer([INPUTS])  # it goes on as before
        assert np.array_equal(output["y"], 2 * INPUTS["x"])


def test_a_runner_that_does_not_time_layers(bench, tmp_path) -> None:
    text = bench.backend.runner.read_text()
    plain = tmp_path / "runner.py"
    plain.write_text(text.replace("def time_layers", "def another"))
    backend = dataclasses.replace(bench.backend, runner=plain)
    with (
        bench.device().session() as session,
        session.host(bench.artifact(), bench.target(), backend, {}) as hosted,
    ):
        assert hosted.time_layers(INPUTS, 0.05) is None
        assert len(list(hosted.infer([INPUTS]))) == 1


@pytest.mark.parametrize(
    ("behaviour", "what"),
    [
        ("layers of too few", r"layer 'half' has \d+ times of \d+ inferences"),
        ("layers back in time", "layer 'half' took less than no time"),
        ("layers that fail", "no profile today"),
    ],
)
def test_a_runner_that_answers_wrongly_is_named(bench, behaviour, what) -> None:
    target = bench.target(behaviour=behaviour)
    with (
        bench.device().session() as session,
        pytest.raises(ToolError, match=what),
        session.host(bench.artifact(), target, bench.backend, {}) as hosted,
    ):
        hosted.time_layers(INPUTS, 0.05)


def test_nothing_is_timed_without_the_lease(bench) -> None:
    with (
        bench.device().session(lease=False) as session,
        session.host(bench.artifact(), bench.target(), bench.backend, {}) as hosted,
        pytest.raises(DeviceError, match="without the lease"),
    ):
        hosted.time_layers(INPUTS, 0.05)


@dataclasses.dataclass
class Context:
    """What the profile hook is given for the layers."""

    backend: object
    settings: MeasureSettings
    sustained_s: float = 0.0
    layers: bool = True
    said: list = dataclasses.field(default_factory=list)

    def progress(self, text) -> None:
        self.said.append(text)


def test_a_measurement_has_the_medians_and_their_sums(bench, tmp_path) -> None:
    taken = Binding("x", "in0", "float32", (1, 1, 4, 4))
    artifact = bench.artifact([taken], [dataclasses.replace(taken, onnx="y", runtime="out0")])
    context = Context(bench.backend, MeasureSettings(duration_s=0.05))
    with bench.device().session() as session:
        measured = plugin.wherry_profile(artifact, bench.target(), None, session, context)
    assert context.said == ["timing layers"]
    runs = measured.layer_runs
    assert runs == len(measured.infer_ns) >= LEAST_RUNS
    assert list(measured.infer_ns) == [4000 + run for run in range(runs)]
    assert measured.layers == {"multiply": (3000 + (runs - 1) / 2) / 1e6, "copy": 0.001}
    measured.save(tmp_path)
    assert Measurement.load(tmp_path).layers == measured.layers

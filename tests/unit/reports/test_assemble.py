"""From the outcomes of steps to the report's JSON."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from wherry.artifact import Artifact, Binding
from wherry.calibration import Calibration
from wherry.device import BoardInfo
from wherry.engine.local import StepOutcome
from wherry.errors import ModelError, ToolError, UnsupportedError
from wherry.installed import PluginInfo
from wherry.keep import Operator
from wherry.manifest.sections import DataSection, MetricSection
from wherry.measurement import Measurement, MeasureSettings, Sensors
from wherry.metrics import MetricKind
from wherry.model import TensorSpec
from wherry.parity import OutputParity, Parity
from wherry.plan import Row, Step
from wherry.records.assemble import assemble, latency
from wherry.records.requests import Request
from wherry.stages.context import StageResult
from wherry.stages.convert import Converted
from wherry.stages.profile import Profiled
from wherry.target import RuntimeOptions, Target

BOARD = BoardInfo("ab" * 32, "bench", "aarch64", "Debian 12", "6.6", "3.11.2", "/usr/bin/python3",
                  "2.36", "Cortex-A72", 4, 8 << 30, facts={"nothing": math.nan})  # fmt: skip


def measurement(ms: float = 1.0, **changes) -> Measurement:
    """Thirty samples in three rounds around ``ms``; the interval is within 1 % of it."""
    infer = (np.linspace(0.995, 1.005, 30) * ms * 1e6).astype(np.uint64)
    values = {
        "infer_ns": infer,
        "total_ns": infer + np.uint64(1000),
        "round_sizes": (10, 10, 10),
        "load_ms": (30.0, 10.0, 20.0),
        "first_ms": (3.0, 1.0, 2.0),
        "warmup_runs": (5, 5, 5),
        "steady": (True, True, True),
        "metrics": {"top1": 0.98},
        "peak_memory_bytes": 5_000_000,
        "sensors": (Sensors(1.5, {"load_1m": 0.5, "governor.policy0": "performance"}),),
        "evaluated": 100,
        "extra": {"runtime": {"ncnn": "1.0"}},
        **changes,
    }
    return Measurement(**values)


class Run:
    """A run of made-up outcomes: `row` adds a line, `record` assembles."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[Row] = []
        self.outcomes: dict[str, StepOutcome] = {}
        self.profiled: dict[int, Profiled] = {}
        self.boards = {"pi4": BOARD}
        self.metrics = (MetricSection("top1"), MetricSection("mae", "boxes"))
        model = SimpleNamespace(
            digest="cd" * 32,
            opset=17,
            inputs=(TensorSpec("input", "float32", (1, 4)),),
            outputs=(TensorSpec("logits", "float32", (1, 2)),),
            path=folder / "net.onnx",
        )
        model.path.write_bytes(b"12345")
        self.end("model", model)

    def end(self, step, value=None, *, error=None, needs=(), warnings=(), cached=False) -> str:
        result = StageResult(value, cached, tuple(warnings)) if error is None else None
        kind = step.partition(":")[0]
        what = Step(step, kind, f"do {step}", tuple(needs))
        self.outcomes[step] = StepOutcome(what, result, error, 0.1234)
        return step

    def artifact(self, size: int = 100) -> Artifact:
        folder = self.folder / f"artifact-{len(self.rows)}"
        folder.mkdir()
        (folder / "net.bin").write_bytes(bytes(size))
        ends = (Binding("input", "in0", "float32", (1, 4)),)
        return Artifact.from_directory(
            folder, backend="ncnn", precision="fp32", format="ncnn", inputs=ends, outputs=ends,
            provenance={"tool": "pnnx", "loss": math.inf},
        )  # fmt: skip

    def row(self, variant="original", backend="ncnn", precision="fp32", device="pi4", *,
            measured=None, options=None, size=100, converted=True, calibration=None,
            **profiled) -> Row:  # fmt: skip
        """A line whose conversion worked unless ``converted`` is an error."""
        index = len(self.rows)
        step = f"convert:{index}"
        if converted is True:
            parity = Parity(70.0, 0.999, {"logits": OutputParity(70.0, 0.999, 0.1, True)}, 8)
            value = Converted(self.artifact(size), parity)
            self.end(step, value, needs=("model",), warnings=("from the converter",))
            self.profiled[index] = Profiled(measured, **profiled)
        else:
            self.end(step, error=converted, needs=("model",))
        target = Target(backend, precision, device, options or RuntimeOptions())
        before = ["model"]
        if calibration is not None:
            before.append(self.end(f"calibrate:{index}", calibration, needs=("model",)))
        row = Row(index, variant, target, (*before, step, f"profile:{device}"))
        self.rows.append(row)
        return row

    def record(self):
        for device in {row.target.device for row in self.rows}:
            step = f"profile:{device}"
            if step not in self.outcomes:
                needs = tuple(row.steps[-2] for row in self.rows)
                self.end(step, self.profiled, needs=needs, cached=True)
        manifest = SimpleNamespace(
            path=Path("/projects/m.yaml"),
            text="wherry: 1\n",
            measure=MeasureSettings(),
            metrics=self.metrics,
            data={
                "evaluation": DataSection("evaluation", "digits", None, (None, None), "m.yaml:3:1"),
                "training": DataSection("training", "digits", None, (None, None), "m.yaml:4:1"),
            },
        )
        kinds = (
            MetricKind("top1", "", "higher", lambda _: None),
            MetricKind("mae", "", "lower", lambda _: None, unit="m"),
        )
        services = SimpleNamespace(
            plan=SimpleNamespace(rows=tuple(self.rows), manifest=manifest),
            manifest=manifest,
            boards=self.boards,
            turns=None,
            host=SimpleNamespace(
                metrics={kind.name: kind for kind in kinds},
                owner=lambda kind, name: f"the plugin of {name}",
                code=lambda plugin: f"digest of {plugin}",
                plugins=(PluginInfo("ncnn", "wherry", "0.1.0", "wherry_ncnn.plugin"),),
            ),
        )
        return assemble(
            services,
            self.outcomes,
            run_id="20261124-040500-3f9a",
            request=Request("/projects/m.yaml", "", ("seed=1",), {"tags:arm": "pi4"}, "nightly"),
            started=datetime(2026, 11, 24, 4, 5, tzinfo=UTC),
            finished=datetime(2026, 11, 24, 4, 6, tzinfo=UTC),
        )

    def results(self) -> list[dict]:
        return list(self.record().values["results"])


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_a_whole_run_is_what_the_schema_says(run, undeclared):
    run.end("data:evaluation", type("D", (list,), {"digest": "ef" * 32})([1, 2, 3]))
    run.end("reference", SimpleNamespace(metrics={"top1": 0.99, "mae.boxes": math.nan}))
    run.row(measured=measurement(2.0), warnings=("from the board",))
    run.row(precision="fp16", measured=measurement(1.0), cached=True)
    run.row("slim", error=ToolError("the board was lost"))
    run.row("slim", precision="int8", converted=UnsupportedError("no GRU"))
    record = run.record()
    values = record.values
    assert undeclared(values) == []
    json.dumps(values, allow_nan=False)
    assert values["started"] == "2026-11-24T04:05:00+00:00"
    assert values["devices"]["pi4"]["cpu"] == "Cortex-A72"
    assert values["devices"]["pi4"]["facts"] == {"nothing": None}
    assert values["model"]["size_bytes"] == 5
    assert values["model"]["inputs"] == [{"name": "input", "dtype": "float32", "shape": [1, 4]}]
    assert values["data"] == {"evaluation": {"source": "digits", "samples": 3, "digest": "ef" * 32}}
    definitions = [metric.pop("definition") for metric in values["metrics"]]
    assert len(set(definitions)) == 2
    assert values["metrics"] == [
        {"name": "top1", "better": "higher", "unit": "", "against": "original"},
        {"name": "mae.boxes", "better": "lower", "unit": "m", "against": "original"},
    ]
    assert values["reference"]["metrics"] == {"top1": 0.99, "mae.boxes": None}
    assert values["gates"] == []
    assert record.manifest == "wherry: 1\n"

    first, second, lost, skipped = values["results"]
    assert first["name"] == "original, ncnn fp32 on pi4"
    assert first["target"]["options"] == {"threads": 1, "keep_fp32": []}
    assert first["metrics"] == {"top1": 0.98}
    assert first["parity"] == {"sqnr_db": 70.0, "cosine": 0.999}
    assert (first["size_bytes"], first["peak_memory_bytes"]) == (100, 5_000_000)
    assert first["warnings"] == ["from the converter", "from the board"]
    assert first["provenance"] == {"tool": "pnnx", "loss": None}
    assert first["extra"] == {"runtime": {"ncnn": "1.0"}}
    assert first["sensors"][0]["values"]["governor.policy0"] == "performance"
    assert (first["cached"], second["cached"]) == (False, True)
    assert (lost["status"], lost["error"]) == ("failed", "the board was lost")
    assert lost["latency"] is None
    assert lost["size_bytes"] == 100, "an artifact was made"
    assert (skipped["status"], skipped["error"]) == ("skipped", "no GRU")
    assert skipped["size_bytes"] is None
    assert [len(samples) for samples in record.samples] == [2, 2, 0, 0]
    assert len(record.samples[0]["infer_ns"]) == 30


def test_latency_is_the_inference_and_the_rounds_middle():
    found = latency(measurement(2.0, steady=(True, False, True)), seed=0)
    assert found["median_ms"] == pytest.approx(2.0)
    assert found["with_copies_ms"] == pytest.approx(2.001)
    low, high = found["ci95_ms"]
    assert 1.99 <= low <= 2.0 <= high <= 2.01
    assert (found["load_ms"], found["first_ms"]) == (20.0, 2.0)
    assert (found["samples"], found["rounds"], found["steady"]) == (30, 3, False)
    assert (found["p90_ms"], found["p99_ms"]) == (None, None)


def test_the_speed_up_is_against_the_same_in_fp32(run):
    four = RuntimeOptions(threads=4)
    run.row(measured=measurement(2.0))
    run.row(measured=measurement(1.0), options=four)
    run.row(precision="fp16", measured=measurement(0.5))
    run.row(precision="fp16", measured=measurement(0.8), options=four)
    run.row("slim", precision="fp16", measured=measurement(0.1))  # no fp32 of it
    run.row(backend="tflite", precision="fp16", measured=measurement(0.1))
    run.row(precision="int8", measured=measurement(0.1, timed_by="another clock"))
    ups = [result["speedup_vs_fp32"] for result in run.results()]
    assert ups[:4] == pytest.approx([1.0, 1.0, 4.0, 1.25])
    assert ups[4:] == [None, None, None]


def test_the_speed_up_against_the_original_is_on_the_same_target(run):
    four = RuntimeOptions(threads=4)
    run.row(measured=measurement(2.0))
    run.row("slim", measured=measurement(1.0))
    run.row("slim", measured=measurement(1.0), options=four)  # no original there
    run.row(precision="int8", measured=measurement(1.5))
    run.row("slim", precision="int8", measured=measurement(0.5))
    run.row("slim", precision="fp16", measured=measurement(0.5))
    run.row("slim", backend="tflite", measured=measurement(0.5))
    run.row("thin", measured=measurement(0.5, timed_by="another clock"))
    results = run.results()
    ups = [result["speedup_vs_original"] for result in results]
    assert ups == [*map(pytest.approx, (1.0, 2.0)), None, *map(pytest.approx, (1.0, 3.0)),
                   None, None, None]  # fmt: skip
    assert results[1]["speedup_vs_fp32"] == 1.0, "which says nothing of what pruning brought"


def test_what_is_slower_than_fp32_beyond_the_noise_is_said(run):
    run.row(measured=measurement(1.0))
    run.row(precision="fp16", measured=measurement(1.001))
    run.row(precision="int8", measured=measurement(1.3))
    fp32, fp16, int8 = run.results()
    assert fp32["warnings"] == fp16["warnings"] == ["from the converter"]
    assert fp16["speedup_vs_fp32"] < 1
    assert int8["warnings"][-1] == "int8 is slower than fp32 here (x0.77)"


def fronts(run) -> list[bool]:
    return [result["pareto"] for result in run.results()]


def test_the_front_has_the_fast_and_the_right(run):
    for ms, top1 in ((1.0, 0.90), (2.0, 0.95), (3.0, 0.94), (4.0, 0.99), (4.0, 0.99), (5.0, 0.99)):
        run.row(measured=measurement(ms, metrics={"top1": top1}))
    assert fronts(run) == [True, True, False, True, True, False]


def test_where_less_is_better_the_front_has_the_least(run):
    run.metrics = (MetricSection("mae", "boxes"),)
    for ms, mae in ((1.0, 0.5), (2.0, 0.1), (3.0, 0.3)):
        run.row(measured=measurement(ms, metrics={"mae.boxes": mae}))
    assert fronts(run) == [True, True, False]


def test_without_metrics_the_front_has_the_small(run):
    run.metrics = ()
    for ms, size in ((1.0, 500), (2.0, 100), (3.0, 300)):
        run.row(measured=measurement(ms, metrics={}), size=size)
    assert fronts(run) == [True, True, False]


def test_unlike_is_never_ranked_together(run):
    run.boards["orin"] = BOARD
    run.row(measured=measurement(1.0, metrics={"top1": 0.9}))
    run.row(device="orin", measured=measurement(9.0, metrics={"top1": 0.1}))
    run.row(measured=measurement(9.0, metrics={"top1": 0.1}, timed_by="another clock"))
    run.row(measured=measurement(9.0, metrics={"top1": 0.1}))
    run.row(measured=measurement(0.1, metrics={}))  # its metric is missing
    assert fronts(run) == [True, True, True, False, False]


def test_on_an_emulated_board_nothing_is_ranked(run):
    run.row(measured=measurement(1.0, emulated=True))
    run.row(precision="fp16", measured=measurement(9.0, emulated=True))
    for result in run.results():
        assert (result["pareto"], result["speedup_vs_fp32"]) == (False, None)
        assert result["warnings"] == ["from the converter"]
        assert result["latency"]["emulated"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_no_number_is_left_out_and_said(run, value):
    run.row(measured=measurement(1.0, metrics={"top1": value, "mae.boxes": 1.0}))
    run.row(measured=measurement(2.0, metrics={"top1": 0.5}))
    first, second = run.results()
    assert first["metrics"] == {"mae.boxes": 1.0}
    assert first["warnings"][-1] == f"The metric top1 is {value}: it is left out."
    assert (first["pareto"], second["pareto"]) == (False, True)


def test_the_first_error_on_the_way_is_the_reason(run, undeclared):
    broken = ModelError("not an ONNX file")
    run.end("model", error=broken)
    run.row(converted=broken)
    run.end("profile:pi4", {}, needs=("convert:0",))
    run.boards.clear()
    record = run.record()
    assert undeclared(record.values) == []
    (result,) = record.values["results"]
    assert (result["status"], result["error"]) == ("failed", "not an ONNX file")
    assert record.values["model"] is None
    assert {s["id"]: (s["state"], s["error"]) for s in record.values["steps"]} == {
        "model": ("failed", "not an ONNX file"),
        "convert:0": ("skipped", "not an ONNX file"),
        "profile:pi4": ("done", None),
    }


def test_a_step_that_failed_itself_has_failed(run):
    run.row(converted=ToolError("crashed"))
    steps = {step["id"]: step["state"] for step in run.record().values["steps"]}
    assert steps == {"model": "done", "convert:0": "failed", "profile:pi4": "cached"}


def test_a_board_that_was_lost_is_the_reason_of_all_its_rows(run):
    run.row(measured=None)
    run.row("slim", measured=None)
    run.end("profile:pi4", error=ToolError("it is taken"), needs=("convert:0", "convert:1"))
    assert {(r["status"], r["error"]) for r in run.results()} == {("failed", "it is taken")}


def test_what_no_step_explains_is_called_a_bug(run):
    run.row(measured=None)
    run.profiled.clear()
    (result,) = run.results()
    assert result["status"] == "failed"
    assert "this is a bug of wherry" in result["error"]


def test_an_int8_says_how_it_was_calibrated_and_is_compared_with_the_plain_fp32(run):
    """Nodes that stay in fp32 do not make it another kind of target."""
    run.row(measured=measurement())
    mixed = RuntimeOptions(keep_fp32=("conv1", Operator(op="Softmax")))
    slow = measurement(infer_ns=np.arange(30, dtype=np.uint64) + 4_000_000)
    calibration = Calibration("entropy", 200, {"x": (0.0, 1.0)})
    run.row(precision="int8", options=mixed, measured=slow, calibration=calibration)
    fp32, int8 = run.results()
    assert fp32["calibration"] is None
    assert int8["calibration"] == {"method": "entropy", "samples": 200}
    assert int8["target"]["options"]["keep_fp32"] == ["conv1", {"op": "Softmax"}]
    assert int8["speedup_vs_fp32"] < 1
    assert any("int8 is slower than fp32 here" in text for text in int8["warnings"])

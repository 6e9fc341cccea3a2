"""ONNX Runtime's plugin in int8: what becomes of names, of models with Q/DQ, and of the guard."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from wherry.artifact import Artifact
from wherry.errors import UnsupportedError
from wherry.host import Host
from wherry.model import Model
from wherry.quantize.given import METHOD
from wherry.target import Target
from wherry.testing.workshop import Workshop
from wherry_onnxruntime import plugin, runner

(BACKEND,) = plugin.wherry_backends()

SMALL = """<ir_version: 8, opset_import: ["" : 17]>
small (float[1,2,6,5] image) => (float[1,3] logits)
    <float[4,2,3,3] w0, float[4] b0, float[4] scale, float[4] shift, float[4] mean, float[4] var,
     float[4,4,1,1] w1, float[4] b1, float[3,4] w2, float[3] b2>
{
    c0 = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (image, w0, b0)
    n0 = BatchNormalization (c0, scale, shift, mean, var)
    r0 = Relu (n0)
    c1 = Conv <kernel_shape = [1,1]> (r0, w1, b1)
    a = Add (c1, r0)
    h = HardSwish (a)
    p = GlobalAveragePool (h)
    f = Flatten (p)
    logits = Gemm <transB = 1> (f, w2, b2)
}"""

QUANTISED = """<ir_version: 8, opset_import: ["" : 17]>
given (float[1,2,4,4] image) => (float[1,3,4,4] out)
    <float s = {0.02}, uint8 z = {128}, float r = {0.05}, int8[3,2,1,1] k, float[3] ks, int8[3] kz>
{
    q = QuantizeLinear (image, s, z)
    d = DequantizeLinear (q, s, z)
    w = DequantizeLinear <axis = 0> (k, ks, kz)
    c = Conv <kernel_shape = [1,1]> (d, w)
    u = QuantizeLinear (c, r, z)
    v = DequantizeLinear (u, r, z)
    out = Tanh (v)
}"""


class Case:
    """A model in a folder, and what this backend makes of it."""

    def __init__(self, text: str, folder: Path) -> None:
        self.folder = folder
        proto = onnx.parser.parse_model(text)
        random = np.random.default_rng(5)
        for weight in proto.graph.value_info:
            kind = onnx.helper.tensor_dtype_to_np_dtype(weight.type.tensor_type.elem_type)
            shape = [axis.dim_value for axis in weight.type.tensor_type.shape.dim]
            values = (
                random.uniform(0.5, 1, shape) if len(shape) == 1 else random.normal(0, 1, shape)
            )
            if kind == np.int8:
                values = np.zeros(shape) if len(shape) == 1 else random.integers(-9, 9, shape)
            proto.graph.initializer.append(
                numpy_helper.from_array(values.astype(kind), weight.name)
            )
        del proto.graph.value_info[:]
        for node in proto.graph.node:
            node.name = f"/{node.output[0]}"
        onnx.save(proto, folder / "given.onnx")
        self.model = Model.load(folder / "given.onnx").with_static_shapes({}, folder)
        spec = self.model.inputs[0]
        self.samples = [
            {spec.name: random.normal(0, 1, spec.static_shape).astype(np.float32)} for _ in range(4)
        ]
        self.workshop = Workshop(Host.load(), folder)
        self._made: dict[str, Artifact] = {}

    def convert(self, precision: str = "int8", **options) -> Artifact:
        """Once for each target."""
        target = Target("onnxruntime", precision, "local", BACKEND.options(**options))
        if target.id not in self._made:
            made = self.workshop.convert(self.model, target, self.samples)
            self._made[target.id] = made
        return self._made[target.id]

    def exposed(self, artifact: Artifact) -> Artifact:
        assert BACKEND.expose is not None
        return BACKEND.expose(artifact, self.model, self.workshop._context())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Case(SMALL, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return Case(QUANTISED, tmp_path_factory.mktemp("given"))


def loaded(artifact: Artifact, **options):
    values = BACKEND.options(**options).model_dump(mode="json")
    return runner.load(str(artifact.directory), artifact.to_json(), values)


def outputs(artifact: Artifact, sample, **options) -> dict[str, np.ndarray]:
    """By ONNX names, dequantised as the agent does it."""
    one = loaded(artifact, **options)
    one.set_inputs(sample)
    one.run()
    arrays = one.get_outputs()
    return {
        binding.onnx: arrays[binding.runtime]
        if binding.scale is None
        else (arrays[binding.runtime].astype(np.float32) - binding.zero_point)
        * np.float32(binding.scale)
        for binding in artifact.outputs
    }


def reference(model: Model, sample, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The values of a model's tensors."""
    proto = model.proto()
    own = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in own)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return dict(zip(names, session.run(list(names), sample), strict=True))


# --- layers --------------------------------------------------------------------------------------


def test_layers_of_int8_are_in_the_models_names(small):
    found = small.convert().layers
    assert [(layer.type, layer.nodes, dict(layer.outputs)) for layer in found] == [
        ("QuantizeLinear", (), {}),
        ("QLinearConv", ("/c0", "/n0", "/r0"), {"r0": "r0/quantized"}),
        ("QLinearConv", ("/c1",), {"c1": "c1/quantized"}),
        ("QLinearAdd", ("/a",), {"a": "a/quantized"}),
        ("DequantizeLinear", (), {}),
        ("HardSigmoid", (), {}),  # ONNX Runtime has no HardSwish
        ("Mul", ("/h",), {"h": "h"}),
        ("GlobalAveragePool", ("/p",), {"p": "p"}),
        ("Flatten", ("/f",), {"f": "f"}),
        ("QuantizeLinear", (), {}),
        ("QGemm", ("/logits",), {"logits": "logits/quantized"}),
        ("DequantizeLinear", (), {}),
    ]
    precisions = {layer.type: layer.precision for layer in found}
    assert precisions["QLinearConv"] == precisions["QGemm"] == "int8"
    assert precisions["Mul"] == precisions["Flatten"] == "fp32"


def test_layers_of_fp32_say_what_is_fused(small):
    found = [layer for layer in small.convert("fp32").layers if "/c0" in layer.nodes]
    assert [(layer.type, layer.nodes, dict(layer.outputs)) for layer in found] == [
        ("FusedConv", ("/c0", "/n0", "/r0"), {"r0": "r0"})
    ]


def test_layers_of_fp16(small):
    artifact = small.convert("fp16")
    found = {node: layer for layer in artifact.layers for node in layer.nodes}
    assert found.keys() >= {"/c0", "/r0", "/a", "/p", "/logits"}
    assert found["/c1"].precision == "fp16"


# --- exposing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 100), ("fp16", 40), ("int8", 20)])
def test_exposed_tensors_stand_for_the_models(small, precision, least_db):
    artifact = small.convert(precision)
    exposed = small.exposed(artifact)
    named = {name for layer in artifact.layers for name in layer.outputs} | {"logits"}
    assert [binding.onnx for binding in exposed.outputs[:1]] == ["logits"]
    assert {binding.onnx for binding in exposed.outputs} == named
    sample = small.samples[0]
    values, wanted = outputs(exposed, sample), reference(small.model, sample, sorted(named))
    for binding in exposed.outputs:
        signal, noise = wanted[binding.onnx], values[binding.onnx] - wanted[binding.onnx]
        assert noise.shape == binding.shape
        assert (signal**2).sum() > 10 ** (least_db / 10) * (noise**2).sum(), binding.onnx
    if precision == "int8":  # whole numbers: what is exposed is what the kernels give
        same = outputs(artifact, sample)["logits"]
        np.testing.assert_array_equal(values["logits"], same)
        assert {b.onnx: b.dtype for b in exposed.outputs}["r0"] == "uint8"


# --- times of layers -----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_times_come_by_the_artifacts_layers(small, precision):
    artifact = small.convert(precision)
    times = loaded(artifact).time_layers(small.samples[0], 5)
    assert all(len(runs) == 5 and min(runs) >= 0 for runs in times.values())
    timed = {node for layer in artifact.layers if layer.name in times for node in layer.nodes}
    # In fp32 ONNX Runtime has kernels of its own layout, which do more at once.
    assert timed >= {"/c0", "/c1", "/p", "/logits"} | ({"/h"} if precision == "int8" else set())
    assert sum(map(sum, times.values())) > 0


def test_times_of_any_rewrite_are_told_by_name():
    layers = [
        {"name": "/c", "type": "Conv", "nodes": ["/c", "/r"], "outputs": {"r": "r/quantized"}},
        {"name": "/p", "type": "Pool", "nodes": ["/p"], "outputs": {"p": "p"}},
        {"name": "deq_token_7", "type": "Dequant", "nodes": [], "outputs": {}},
        {"name": "Mul/h", "type": "Mul", "nodes": ["/h"], "outputs": {"h": "h"}},
    ]
    names = [
        "/c", "/r", "r_nchwc", "/c_token_3", "r/quantized/QuantizeLinear", "p",
        "InsertedPrecisionFreeCast_/p", "deq_token_7", "ReorderInput_token_1",
    ]  # fmt: skip
    events = [{"cat": "Session", "name": "model_run", "ts": start} for start in (0, 100, 200)]
    events += [
        {"cat": "Node", "name": f"{name}_kernel_time", "ts": start + 1 + place, "dur": 2 + place}
        for start in (0, 100, 200)
        for place, name in enumerate(names)
    ]
    events += [
        {"cat": "Node", "name": "Mul_27_kernel_time", "args": {"op_name": "Mul"}, "ts": start + 50,
         "dur": 1}
        for start in (0, 100, 200)
    ]  # fmt: skip
    events.append({"cat": "Node", "name": "/c_fence_before", "ts": 110, "dur": 99})
    assert runner.layer_times(events, layers, 2) == {
        "/c": [20_000, 20_000],  # microseconds 2 to 6
        "/p": [15_000, 15_000],
        "deq_token_7": [9_000, 9_000],
        "Mul/h": [1_000, 1_000],
        "ReorderInput": [10_000, 10_000],
    }


@pytest.mark.parametrize("alone", [False, True])
def test_a_fused_convolution_has_its_own_time_and_not_its_activation(alone):
    layers = [
        {"name": "/c", "type": "Conv", "nodes": ["/c"], "outputs": {"c": "c"}},
        {"name": "/r", "type": "Relu", "nodes": ["/r"], "outputs": {"r": "r"}},
    ]
    names = [("r_nchwc", "Conv"), *([("/c", "Conv")] if alone else [])]
    events = [{"cat": "Session", "name": "model_run", "ts": 0}] + [
        {"cat": "Node", "name": f"{name}_kernel_time", "ts": 1, "dur": 5, "args": {"op_name": kind}}
        for name, kind in names
    ]
    expected = {"/c": [5_000], "/r": [5_000]} if alone else {"/c": [5_000]}
    assert runner.layer_times(events, layers, 1) == expected


@pytest.mark.parametrize(("kernels", "owners"), [(2, {"/c", "/d"}), (3, {"QLinearConv"})])
def test_kernels_without_a_name_are_matched_in_their_order_or_not_at_all(kernels, owners):
    """ONNX Runtime 1.19 names convolutions in another layout after their operator alone."""
    layers = [
        {"name": name, "type": "QLinearConv", "nodes": [name], "outputs": {}}
        for name in ("/c", "/d")
    ]
    events = [{"cat": "Session", "name": "model_run", "ts": 0}] + [
        {"cat": "Node", "name": f"QLinearConv{more}_kernel_time", "ts": 1 + place, "dur": 5 + place,
         "args": {"op_name": "QLinearConv"}}
        for place, more in enumerate(("", "_token_3", "_token_6")[:kernels])
    ]  # fmt: skip
    times = runner.layer_times(events, layers, 1)
    assert times.keys() == owners
    assert sum(map(sum, times.values())) == sum(range(5, 5 + kernels)) * 1000


# --- mixed precision -----------------------------------------------------------------------------


def test_kept_nodes_stay_in_fp32(small):
    artifact = small.convert(keep_fp32=["/c1"])
    found = {node: layer for layer in artifact.layers for node in layer.nodes}
    assert found["/c1"].precision == "fp32"
    assert found["/logits"].precision == "int8"
    sample = small.samples[0]
    wanted = reference(small.model, sample, ["c1"])["c1"]
    values = outputs(small.exposed(artifact), sample)
    np.testing.assert_allclose(values["c1"], wanted, atol=0.2)


UPSAMPLING = """<ir_version: 8, opset_import: ["" : 17]>
up (float[1,2,4,4] image) => (float[1,3,8,8] out)
    <float[4,2,1,1] w0, float[4,4,2,2] w1, float[3,4,1,1] w2>
{
    c = Conv (image, w0)
    t = ConvTranspose <strides = [2,2]> (c, w1)
    out = Conv (t, w2)
}"""


@pytest.mark.parametrize(("unwanted", "expected"), [(runner.UNWANTED, False), ([], True)])
def test_onnx_runtime_quantises_no_weights_of_its_own(tmp_path, monkeypatch, unwanted, expected):
    """It has a rule for float weights between Q/DQ, which nobody asked for."""
    case = Case(UPSAMPLING, tmp_path)
    artifact = case.convert()
    monkeypatch.setattr(runner, "UNWANTED", unwanted)
    kernels = loaded(artifact).time_layers(case.samples[0], 1)
    assert any("_weight_dq" in name for name in kernels) is expected


def test_fp16_keeps_nodes_too(small):
    artifact = small.convert("fp16", keep_fp32=["/c1"])
    proto = onnx.load(artifact.directory / "model.onnx")
    stored = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert stored["w1"] == onnx.TensorProto.FLOAT
    assert stored["w0"] == onnx.TensorProto.FLOAT16


# --- weights alone -------------------------------------------------------------------------------


def test_weights_alone_need_no_calibration(small):
    target = Target("onnxruntime", "int8", "local", BACKEND.options(quantize="weights"))
    assert not BACKEND.needs_calibration(target)
    artifact = small.convert(quantize="weights")
    sample = small.samples[0]
    wanted = reference(small.model, sample, ["logits"])["logits"]
    np.testing.assert_allclose(outputs(artifact, sample)["logits"], wanted, rtol=0.05, atol=0.02)
    names = loaded(artifact).time_layers(sample, 1)
    assert not any("Dequantize" in name for name in names)  # once, when it is loaded


# --- models that come with Q/DQ ------------------------------------------------------------------


@pytest.mark.parametrize("opset", [7, 9])
def test_models_from_before_8_bit_operators(tmp_path, opset):
    text = SMALL.replace(": 17", f": {opset}").replace("HardSwish (a)", "Tanh (a)")
    case = Case(text, tmp_path)
    artifact = case.convert()
    assert "QLinearConv" in {layer.type for layer in artifact.layers}
    (wanted,) = reference(case.model, case.samples[0], ["logits"]).values()
    (found,) = outputs(artifact, case.samples[0]).values()
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("opset", "body", "words"),
    [
        (9, "y = Slice <starts = [0], ends = [1]> (x)", "Slice of opset 9 in int8"),
        (6, "y = Relu (x)", r"every operator \(opset 6\)"),
    ],
)
def test_what_opset_10_would_change_is_refused(tmp_path, opset, body, words):
    text = f"""<ir_version: 3, opset_import: ["" : {opset}]>
    old (float[1,2] x) => (float[1,2] y) {{ {body} }}"""
    case = Case(text, tmp_path)
    (found,) = plugin.preflight(case.model, Target("onnxruntime", "int8", "local"))
    assert re.match(words, found.op_type) and "opset 10 or newer" in found.remedy
    assert not plugin.preflight(case.model, Target("onnxruntime", "fp32", "local"))


def test_a_given_model_is_kept_byte_for_byte(given):
    artifact = given.convert()
    made = (artifact.directory / "model.onnx").read_bytes()
    assert made == given.model.path.read_bytes()
    assert artifact.provenance["quantized"] == "given"
    found = {node: layer for layer in artifact.layers for node in layer.nodes}
    assert (found["/c"].type, found["/c"].precision) == ("QLinearConv", "int8")
    exposed = given.exposed(artifact)
    values = outputs(exposed, given.samples[0])
    wanted = reference(given.model, given.samples[0], ["v", "out"])
    np.testing.assert_allclose(values["v"], wanted["v"], atol=0.051)
    np.testing.assert_allclose(values["out"], wanted["out"], atol=0.06)


def test_operators_that_compute_in_whole_numbers_are_kept_too(tmp_path):
    case = Case(
        """<ir_version: 8, opset_import: ["" : 17]>
        whole (float[2,3] x) => (float[2,4] y) <int8[3,4] k>
        {
            q, s, z = DynamicQuantizeLinear (x)
            m = MatMulInteger (q, k, z)
            f = Cast <to = 1> (m)
            y = Mul (f, s)
        }""",
        tmp_path,
    )
    artifact = case.convert()
    made = (artifact.directory / "model.onnx").read_bytes()
    assert made == case.model.path.read_bytes()
    wanted = reference(case.model, case.samples[0], ["y"])["y"]
    np.testing.assert_allclose(outputs(artifact, case.samples[0])["y"], wanted, rtol=1e-5)


def test_its_ranges_are_its_own(given):
    target = Target("onnxruntime", "int8", "local", BACKEND.options())
    workshop = given.workshop
    dataset = []  # is not looked at
    found = plugin.wherry_calibrate(given.model, dataset, target, workshop._context())
    assert found.method == METHOD
    assert found.ranges["image"] == pytest.approx((-2.56, 2.54))
    assert found.ranges["c"] == pytest.approx((-6.4, 6.35))


@pytest.mark.parametrize("options", [{"keep_fp32": ["/c"]}, {"quantize": "weights"}])
def test_what_would_change_it_is_refused(given, options):
    with pytest.raises(UnsupportedError, match="quantised already and runs as it is"):
        given.convert(**options)


# --- the guard against saturation ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "avx2 fma", True),
        ("AMD64", "avx2 avx_vnni", False),
        ("x86_64", "avx512f avx512_vnni", False),
        ("x86_64", None, True),
        ("aarch64", "asimd", False),
    ],
)
def test_whether_fast_kernels_saturate(monkeypatch, tmp_path, machine, flags, expected):
    monkeypatch.setattr(runner.platform, "machine", lambda: machine)
    monkeypatch.setattr(runner, "_CPU_INFO", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {flags} sse\n")
    assert runner.saturates() is expected


@pytest.mark.parametrize(("exact", "expected"), [(True, "UINT8"), (False, "INT8")])
def test_the_guard_makes_unsigned_weights(small, monkeypatch, tmp_path, exact, expected):
    """That is how ONNX Runtime takes other kernels: nothing else of a session shows it."""
    if not runner.saturates() and runner.platform.machine() != "x86_64":
        pytest.skip("ONNX Runtime rewrites weights on x86 alone")
    monkeypatch.setattr(runner, "saturates", lambda: True)
    artifact = small.convert()
    options = BACKEND.options(exact_int8=exact).model_dump(mode="json")
    settings = runner._settings(json.loads(json.dumps(artifact.to_json())), options)
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(artifact.directory / "model.onnx", settings)
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    kinds = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "QLinearConv"]
    assert {kinds[node.input[3]] for node in convolutions} == {expected}

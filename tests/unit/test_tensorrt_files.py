"""TensorRT's ONNX files: Q/DQ as NVIDIA's parser wants them, types, ports, shapes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from wherry.errors import UnsupportedError
from wherry.host import Host
from wherry.model import Model
from wherry.quantize.form import ONNXRUNTIME, TENSORRT
from wherry.quantize.qdq import half_scales, insert_qdq
from wherry.reference import Reference, open_session, run_session
from wherry.target import Target
from wherry.testing.networks import build, samples
from wherry.testing.workshop import Workshop
from wherry_tensorrt import make, operators
from wherry_tensorrt.graphs import set_ports, write_hard_swish
from wherry_tensorrt.make import unlike_nvidia
from wherry_tensorrt.plugin import InputShapes, TensorrtOptions, stand_in
from wherry_tensorrt.retype import retype

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def network(nodes, weights, outputs=("y",), inputs=None, opset: int = 17) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        inputs or [helper.make_tensor_value_info("x", FLOAT, [1, 4, 6, 6])],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(proto)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def residual(opset: int = 17) -> onnx.ModelProto:
    """A block with a skip connection, an activation, a pool."""
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="conv0"),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], name="conv1"),
        helper.make_node("Add", ["r0", "c1"], ["a"], name="add"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], name="gemm", transB=1),
    ]
    given = {
        "w0": weights(4, 4, 1, 1),
        "b0": weights(4),
        "w1": weights(4, 4, 1, 1, seed=1),
        "w2": weights(3, 4, seed=2),
        "b2": weights(3, seed=3),
    }
    return network(nodes, given, opset=opset)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workshop = Workshop(Host.load(), folder)

    def model(self, proto: onnx.ModelProto) -> Model:
        onnx.save(proto, self.folder / "given.onnx")
        (self.folder / "static").mkdir(exist_ok=True)
        return Model.load(self.folder / "given.onnx").with_static_shapes({}, self.folder / "static")

    def convert(self, model: Model, precision: str, **options):
        target = Target("tensorrt", precision, "local", TensorrtOptions(**options))
        return self.workshop.convert(model, target, samples(model, 4))


@pytest.fixture
def bench(tmp_path, wherry_home) -> Bench:
    return Bench(tmp_path)


def load(artifact, name: str = "model.onnx") -> onnx.ModelProto:
    return onnx.load(artifact.directory / name)


def recipe(artifact) -> dict:
    return json.loads((artifact.directory / "recipe.json").read_text())


def outputs(path: Path, feeds, *, exact: bool = False):
    """Node by node; or with ONNX Runtime's 8-bit kernels, those that cannot overflow."""
    if not exact:
        return run_session(
            open_session(str(path), threads=1, where="", as_written=True), feeds, where=""
        )
    config = onnxruntime.SessionOptions()
    config.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), config, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def sqnr(values: np.ndarray, wanted: np.ndarray) -> float:
    noise = np.sum((values - wanted) ** 2, dtype=np.float64)
    return float(10 * np.log10(np.sum(wanted**2, dtype=np.float64) / max(noise, 1e-30)))


# --- Q/DQ ----------------------------------------------------------------------------------------


def check_nvidias(proto: onnx.ModelProto) -> None:
    """Invariants of Q/DQ that NVIDIA's parser takes."""
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    pairs = [n for n in proto.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert pairs
    for node in pairs:
        assert node.domain == ""
        assert len(node.input) == 3
        scale, zero = constants[node.input[1]], constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert np.array_equal(scale.astype(np.float16).astype(scale.dtype), scale)
        assert (scale > 0).all()
    for node in proto.graph.node:
        if node.op_type in {"Conv", "Gemm"} and len(node.input) > 2:
            assert node.input[2] in constants, "biases stay float"
    assert unlike_nvidia(proto) == ""


def test_int8_files(bench):
    """Q/DQ of two types: float32 in opset 17, and float16 in one in which they know it."""
    model = bench.model(residual())
    artifact = bench.convert(model, "int8")
    plain, typed = load(artifact), load(artifact, "typed.onnx")
    for proto, kind, opset in ((plain, FLOAT, 17), (typed, HALF, 19)):
        check_nvidias(proto)
        assert proto.opset_import[0].version == opset
        kinds = {t.data_type for t in proto.graph.initializer}
        assert kinds == {kind, TensorProto.INT8}
        onnx.checker.check_model(proto, full_check=True)
    (feeds,) = samples(model, 1)
    wanted = Reference(model).run(feeds)["y"]
    own = outputs(artifact.directory / "model.onnx", feeds)["y"]
    exact = outputs(artifact.directory / "model.onnx", feeds, exact=True)["y"]
    half = outputs(artifact.directory / "typed.onnx", feeds)["y"]
    assert sqnr(own, wanted) > 25
    assert sqnr(exact, own) > 60, "whole sums are exact"
    assert sqnr(half, own) > 25
    assert recipe(artifact)["quantised"] == "explicit"
    assert stand_in(artifact) == artifact.directory / "model.onnx"


def test_the_result_of_a_convolution_that_is_added_stays_float(bench):
    """The residual rule: of the two inputs of the Add only the other one is quantised."""
    proto = load(bench.convert(bench.model(residual()), "int8"))
    (add,) = (node for node in proto.graph.node if node.op_type == "Add")
    makers = {name: node.op_type for node in proto.graph.node for name in node.output}
    assert sorted(makers[name] for name in add.input) == ["Conv", "DequantizeLinear"]


def test_nodes_kept_in_fp32(bench):
    """No Q/DQ before or behind them, and float32 where types stand in the file."""
    artifact = bench.convert(bench.model(residual()), "int8", keep_fp32=("conv1",))
    for name in ("model.onnx", "typed.onnx"):
        proto = load(artifact, name)
        makers = {each: node.op_type for node in proto.graph.node for each in node.output}
        readers = [n.op_type for n in proto.graph.node for each in n.input if each == "c1"]
        (conv,) = (node for node in proto.graph.node if node.name == "conv1")
        assert all(makers.get(each) != "DequantizeLinear" for each in conv.input)
        assert "QuantizeLinear" not in readers
    stored = {t.name: t.data_type for t in proto.graph.initializer}
    assert stored[conv.input[1]] == FLOAT
    assert recipe(artifact)["keep"] == ["conv1"]
    layers = {layer.name: layer.precision for layer in artifact.layers}
    assert layers["conv1"] == "fp32"
    assert layers["conv0"] == "int8"


def test_implicit_int8_has_ranges_and_no_qdq(bench):
    artifact = bench.convert(bench.model(residual()), "int8", int8="implicit")
    assert not {"QuantizeLinear", "DequantizeLinear"} & {
        n.op_type for n in load(artifact).graph.node
    }
    assert not (artifact.directory / "typed.onnx").exists()
    ranges = json.loads((artifact.directory / "ranges.json").read_text())
    assert {"x", "c0", "r0", "c1", "a"} <= ranges.keys()
    assert stand_in(artifact) is None


def test_a_model_with_nvidias_qdq_is_kept(bench):
    given = load(bench.convert(bench.model(residual()), "int8"))
    artifact = bench.convert(bench.model(given), "int8")
    assert artifact.provenance["quantised"] == "as given"
    assert load(artifact).graph.node == given.graph.node
    check_nvidias(load(artifact, "typed.onnx"))


def test_other_qdq_is_written_anew_with_its_ranges(bench):
    model = bench.model(residual())
    target = Target("tensorrt", "int8", "local", TensorrtOptions())
    calibration = bench.workshop.calibrate(model, target, _Dataset(samples(model, 4)))
    foreign = insert_qdq(model.proto(), calibration, ONNXRUNTIME).proto
    assert "int32" in unlike_nvidia(foreign)
    artifact = bench.convert(bench.model(foreign), "int8")
    assert "anew" in artifact.provenance["quantised"]
    check_nvidias(load(artifact))
    (feeds,) = samples(model, 1)
    own = outputs(artifact.directory / "model.onnx", feeds)["y"]
    assert sqnr(own, Reference(model).run(feeds)["y"]) > 20


class _Dataset(list):
    def __getitem__(self, index):
        from wherry.dataset import Sample

        return Sample(super().__getitem__(index))

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    digest = "0"
    name = "samples"


@given(st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=20))
def test_half_scales(values):
    scales = np.asarray(values, np.float32)
    found = half_scales(scales)
    assert np.array_equal(found.astype(np.float16).astype(np.float32), found)
    assert (found >= np.minimum(scales, np.float32(65504))).all()
    fits = (scales > 2e-4) & (scales < 60000)
    assert (found[fits] <= scales[fits] * (1 + 2**-9)).all()


def test_form_is_nvidias():
    assert TENSORRT.symmetric
    assert TENSORRT.residual
    assert not TENSORRT.whole_bias
    assert TENSORRT.half_scales


# --- types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("half", "least"), [("float16", 50)])
def test_types_in_the_file(half, least, tmp_path):
    proto = residual()
    made = retype(proto, half).proto
    onnx.checker.check_model(made, full_check=True)
    assert made.graph.input == proto.graph.input
    assert [v.type.tensor_type.elem_type for v in made.graph.output] == [FLOAT]
    assert {t.data_type for t in made.graph.initializer} == {HALF}
    onnx.save(made, tmp_path / "half.onnx")
    onnx.save(proto, tmp_path / "float.onnx")
    feeds = {"x": weights(1, 4, 6, 6, seed=9)}
    ours, wanted = (outputs(tmp_path / f"{n}.onnx", feeds)["y"] for n in ("half", "float"))
    assert sqnr(ours, wanted) > least


def test_bfloat16_is_rounded_to_the_nearest():
    values = np.array([[1.0, 1.00390625, 1.01171875, -3.1415927, 1e38, np.inf]], np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="m")
    shape = [helper.make_tensor_value_info("x", FLOAT, [1, 1])]
    made = retype(network([node], {"w": values}, inputs=shape), "bfloat16").proto
    (stored,) = made.graph.initializer
    assert stored.data_type == TensorProto.BFLOAT16
    bits = np.frombuffer(stored.raw_data, "<u2").astype("<u4") << 16
    assert bits.view("<f4").tolist()[:3] == [1.0, 1.0, 1.015625]
    assert np.allclose(bits.view("<f4"), values[0], rtol=2**-8)


def test_between_nodes_in_float32_nothing_is_cast(tmp_path):
    made = retype(residual(), "float16", frozenset({"conv0", "relu0", "conv1"})).proto
    casts = [node for node in made.graph.node if node.op_type == "Cast"]
    assert [(c.input[0], helper.get_attribute_value(c.attribute[0])) for c in casts] == [
        ("r0", HALF), ("c1", HALF), ("y/float16", FLOAT),
    ]  # fmt: skip


def test_constants_beyond_float16(tmp_path):
    """A bound becomes the greatest; where the value counts, the node stays in float32."""
    nodes = [
        helper.make_node("Mul", ["x", "big"], ["m"], name="mul"),
        helper.make_node("Clip", ["m", "", "most"], ["y"], name="clip"),
    ]
    given = {"big": np.float32(1e5), "most": np.float32(1e9)}
    made = retype(network(nodes, given), "float16")
    assert made.kept == ["mul"]
    assert made.clamped == ["most"]
    assert retype(network(nodes, given), "bfloat16").kept == []


def test_what_counts_in_float32_stays_so():
    """Scales of Resize, types that an attribute says, graphs inside of nodes."""
    inner = helper.make_graph(
        [helper.make_node("Relu", ["r"], ["inside"], name="inner")],
        "then",
        [],
        [helper.make_tensor_value_info("inside", FLOAT, None)],
    )
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["r"], name="resize"),
        helper.make_node("If", ["yes"], ["y"], name="if", then_branch=inner, else_branch=inner),
    ]
    given = {"scales": np.array([1, 1, 2, 2], np.float32), "yes": np.array(True)}
    made = retype(network(nodes, given), "float16").proto
    stored = {t.name: t.data_type for t in made.graph.initializer}
    assert stored["scales"] == FLOAT
    onnx.checker.check_model(made, full_check=True)
    feeds = {"x": weights(1, 4, 6, 6)}
    session = open_session(made.SerializeToString(), threads=1, where="", as_written=True)
    assert run_session(session, feeds, where="")["y"].shape == (1, 4, 12, 12)


# --- ports ---------------------------------------------------------------------------------------

ODD = st.sampled_from(["x", "in:0", "a,b", "a/b", "'q'", "image.1"])


@settings(max_examples=20, deadline=None)
@given(ODD, st.sampled_from([TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, FLOAT]))
def test_ports_are_plain(name, kind):
    nodes = [
        helper.make_node("Cast", [name], ["c"], name="cast", to=FLOAT),
        helper.make_node("Add", ["c", "c"], ["out:0"], name="add"),
        helper.make_node("ArgMax", ["c"], ["index"], name="argmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, kind, [1, 3])],
        [
            helper.make_tensor_value_info("out:0", FLOAT, [1, 3]),
            helper.make_tensor_value_info("index", TensorProto.INT64, [1, 1]),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (port,), (out, index) = set_ports(proto)
    onnx.checker.check_model(proto, full_check=True)
    assert (port.onnx, out.onnx, index.onnx) == (name, "out:0", "index")
    assert port.dtype == ("float32" if kind == FLOAT else "int32")
    assert index.dtype == "int32"
    assert not set(port.runtime + out.runtime) & set(":,'/")
    feeds = {port.runtime: np.array([[0, 1, 1]], port.dtype)}
    session = open_session(proto.SerializeToString(), threads=1, where="", as_written=True)
    found = run_session(session, feeds, where="")
    assert found[out.runtime].tolist() == [[0, 2, 2]]
    assert found["index"].tolist() == [[1]]
    assert found["index"].dtype == np.int32


def test_hard_swish_in_old_words():
    nodes = [helper.make_node("HardSwish", ["x"], ["y"], name="swish")]
    proto = network(nodes, {})
    feeds = {"x": weights(1, 4, 6, 6) * 10}
    before = open_session(proto.SerializeToString(), threads=1, where="", as_written=True)
    wanted = run_session(before, feeds, where="")["y"]
    assert write_hard_swish(proto) == {"swish/HardSigmoid": "swish"}
    assert [node.op_type for node in proto.graph.node] == ["HardSigmoid", "Mul"]
    after = open_session(proto.SerializeToString(), threads=1, where="", as_written=True)
    assert np.allclose(run_session(after, feeds, where="")["y"], wanted, atol=1e-6)


# --- shapes, operators, opsets -------------------------------------------------------------------


def test_open_axes(bench):
    shapes = [{"input": "x", "min": (1, 4, 6, 6), "max": (8, 4, 12, 6)}]
    artifact = bench.convert(bench.model(residual()), "fp32", shapes=shapes)
    path = artifact.directory / "model.onnx"
    for shape in ((1, 4, 6, 6), (5, 4, 9, 6)):
        assert outputs(path, {"x": np.zeros(shape, np.float32)})["y"].shape == (shape[0], 3)
    assert recipe(artifact)["shapes"] == {
        "x": {"min": [1, 4, 6, 6], "opt": [1, 4, 6, 6], "max": [8, 4, 12, 6]}
    }


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"input": "z", "min": (1,), "max": (2,)}, "the model has x"),
        ({"input": "x", "min": (2, 4, 6, 6), "max": (8, 4, 6, 6)}, "is not between"),
        ({"input": "x", "min": (1, 4), "max": (1, 4)}, "is not between"),
        ({"input": "x", "min": (1, 2, 6, 6), "max": (1, 4, 6, 6)}, "does not run at the min"),
    ],
)
def test_shapes_that_cannot_be(bench, shapes, words):
    with pytest.raises(UnsupportedError, match=words):
        bench.convert(bench.model(residual()), "fp32", shapes=[shapes])


def test_shapes_out_of_order():
    with pytest.raises(ValueError, match="has to be no more than"):
        InputShapes(input="x", min=(3,), max=(2,))


@pytest.mark.parametrize(("opset", "written"), [(11, 13), (13, 13), (17, 17), (21, 17)])
def test_opsets(bench, opset, written):
    """All that 8.5 knows: newer ones are lowered, and int8 wants an axis."""
    artifact = bench.convert(bench.model(residual(opset)), "int8")
    assert load(artifact).opset_import[0].version == written
    assert 19 <= load(artifact, "typed.onnx").opset_import[0].version <= 20


def test_a_newer_opset_in_which_a_node_is_written_otherwise(bench, monkeypatch):
    """ReduceMean's axes became an input; where nothing can be done, there is no file with types."""
    conv = helper.make_node("Conv", ["x", "w"], ["c"], name="conv")
    mean = helper.make_node("ReduceMean", ["c"], ["y"], name="mean", axes=[2, 3])
    model = bench.model(network([conv, mean], {"w": weights(4, 4, 1, 1)}))
    artifact = bench.convert(model, "int8")
    typed = load(artifact, "typed.onnx")
    assert typed.opset_import[0].version == 19
    assert {"conv", "mean"} <= {node.name for node in typed.graph.node}
    check_nvidias(typed)

    def cannot(_):
        raise RuntimeError("no adapter")

    monkeypatch.setattr(make, "_converted", cannot)
    artifact = bench.convert(model, "int8")
    assert recipe(artifact)["typed"] == ""
    assert not (artifact.directory / "typed.onnx").exists()
    check_nvidias(load(artifact))
    logs = [path.read_text() for path in bench.folder.glob("*/log")]
    assert any("there is no file for TensorRT 11" in text for text in logs)


def test_preflight_names_the_first_node(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Det", ["r"], ["y"], name="det"),
    ]
    onnx.save(network(nodes, {}), tmp_path / "m.onnx")
    (found,) = operators.preflight(Model.load(tmp_path / "m.onnx"))
    assert (found.op_type, found.count, found.node) == ("Det", 1, "det")
    assert found.remedy.endswith(".")


def test_preflight_names_forms(tmp_path):
    scales = np.array([1, 1, 0.5, 0.5], np.float32)
    nodes = [
        helper.make_node("MaxPool", ["x"], ["m", "i"], name="pool", kernel_shape=[2, 2]),
        helper.make_node("Resize", ["m", "", "s"], ["r"], name="one", mode="linear", antialias=1),
        helper.make_node("Resize", ["r", "", "s"], ["y"], name="two", mode="linear"),
    ]
    onnx.save(network(nodes, {"s": scales}, opset=18), tmp_path / "m.onnx")
    found = operators.preflight(Model.load(tmp_path / "m.onnx"))
    assert [(each.op_type, each.node) for each in found] == [
        ("MaxPool with indices", "pool"), ("Resize with antialias", "one"),
    ]  # fmt: skip


def test_layers_are_the_nodes(bench, tmp_path):
    build("convnet", tmp_path / "net.onnx")
    artifact = bench.convert(bench.model(onnx.load(tmp_path / "net.onnx")), "fp16")
    assert [layer.name for layer in artifact.layers] == [
        f"/{op}/{out}"
        for op, out in (
            ("Conv", "c0"), ("Relu", "r0"), ("Conv", "c1"), ("Relu", "r1"),
            ("GlobalAveragePool", "p"), ("Flatten", "f"), ("Gemm", "logits"),
        )
    ]  # fmt: skip
    assert all(layer.nodes == (layer.name,) for layer in artifact.layers)

"""The writer of Q/DQ: placement, and numbers against a simulation of our own."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from wherry.calibration import Calibration
from wherry.quantize import weights
from wherry.quantize.form import ONNXRUNTIME, TENSORRT
from wherry.quantize.qdq import Scale, insert_qdq, quantise_weights, scale_of
from wherry.quantize.weights import quantise_weight, weight_scales

PLAIN = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
QUANTISED = {"QuantizeLinear", "DequantizeLinear"}
KINDS = ("conv", "depthwise", "relu", "relu6", "add", "concat", "pool", "mean", "sigmoid", "leaky")
KINDS += ("tanh", "transpose")


class Net:
    """Builds a network of one picture; nodes are named after what they give."""

    def __init__(self, seed: int, opset: int = 17) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.channels = {"x": 4}

    def constant(self, values: object) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def node(self, kind: str, *inputs: str, channels: int, **attributes: object) -> str:
        out = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], name=f"/{out}", **attributes))
        self.channels[out] = channels
        return out

    def conv(self, x: str, to: int, k: int = 3, group: int = 1) -> str:
        shape = (to, self.channels[x] // group, k, k)
        w = self.constant(self.random.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape))
        b = self.constant(self.random.normal(0, 0.3, to))
        pads = [k // 2] * 4
        return self.node("Conv", x, w, b, channels=to, group=group, pads=pads, kernel_shape=[k, k])

    def grow(self) -> str:
        """Random layers behind each other, with ways around them."""
        here = self.conv("x", 8)
        passed = [here]
        for _ in range(6):
            kind = self.random.choice(KINDS)
            size = self.channels[here]
            if kind == "conv":
                here = self.conv(here, 8, k=1)
            elif kind == "depthwise":
                here = self.conv(here, size, group=size)
            elif kind == "relu":
                here = self.node("Relu", here, channels=size)
            elif kind == "relu6":
                here = self.node("Clip", here, self.constant(0), self.constant(6), channels=size)
            elif kind in {"add", "concat"}:
                other = passed[self.random.integers(len(passed))]
                if kind == "add" and self.channels[other] == size:
                    here = self.node("Add", here, other, channels=size)
                else:
                    total = size + self.channels[other]
                    here = self.node("Concat", here, other, channels=total, axis=1)
            elif kind == "pool":
                around = {"kernel_shape": [3, 3], "pads": [1] * 4}
                here = self.node("MaxPool", here, channels=size, **around)
            elif kind == "mean":
                around = {"kernel_shape": [3, 3], "pads": [1] * 4}
                here = self.node("AveragePool", here, channels=size, **around)
            elif kind == "transpose":
                here = self.node("Transpose", here, channels=size, perm=[0, 1, 3, 2])
            else:
                word = {"sigmoid": "Sigmoid", "leaky": "LeakyRelu", "tanh": "Tanh"}[str(kind)]
                here = self.node(word, here, channels=size)
            passed.append(here)
        pooled = self.node("GlobalAveragePool", here, channels=self.channels[here])
        flat = self.node("Flatten", pooled, channels=self.channels[here])
        return self.gemm(flat, self.channels[here])

    def gemm(self, x: str, size: int) -> str:
        w = self.constant(self.random.normal(0, 1 / np.sqrt(size), (5, size)))
        b = self.constant(self.random.normal(0, 0.3, 5))
        return self.node("Gemm", x, w, b, channels=5, transB=1)

    def model(self, *outputs: str) -> onnx.ModelProto:
        values = [helper.make_empty_tensor_value_info(name) for name in outputs]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 7, 7))
        graph = helper.make_graph(self.nodes, "net", [x], values, self.weights)
        opset = [helper.make_opsetid("", self.opset)]
        proto = helper.make_model(graph, opset_imports=opset, ir_version=8)
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
        onnx.checker.check_model(proto, full_check=True)
        return proto


def run(proto: onnx.ModelProto, level=PLAIN, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng((9, seed)).normal(0.2, 1, (1, 4, 7, 7)).astype(np.float32)


def tensors_of(proto: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    """The values of all tensors."""
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    known = {value.name for value in proto.graph.output}
    made = [name for node in proto.graph.node for name in node.output if name not in known]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    return {"x": x, **run(shown, x=x)}


def calibrated(proto: onnx.ModelProto, count: int = 4) -> Calibration:
    ranges: dict[str, tuple[float, float]] = {}
    for seed in range(count):
        for name, values in tensors_of(proto, picture(seed)).items():
            low, high = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = (min(low, float(values.min())), max(high, float(values.max())))
    return Calibration("minmax", count, ranges)


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def node_of(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in proto.graph.node if node.name == name)


def rounded(values: np.ndarray, scale: Scale) -> np.ndarray:
    whole = np.clip(np.rint(values / np.float32(scale.scale)) + scale.zero_point, 0, 255)
    return ((whole - scale.zero_point) * scale.scale).astype(np.float32)


def simulated(proto: onnx.ModelProto, made, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every node of the float model, alone, on rounded inputs and weights."""
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    makers = {name: node.name for node in proto.graph.node for name in node.output}
    gone = {name for names in made.absorbed.values() for name in names}
    values = {"x": x}
    for node in proto.graph.node:
        feeds = {}
        for place, name in enumerate(node.input):
            value = constants.get(name, values.get(name))
            if name in constants and node.name in made.nodes and place == 1:
                scale = np.abs(value).reshape(len(value), -1).max(1) / 127
                shape = (-1,) + (1,) * (value.ndim - 1)
                scale = scale.astype(np.float32)
                value = quantise_weight(value, scale, 0) * scale.reshape(shape)
            elif name in made.scales and node.name not in gone:
                whole = makers.get(name) in made.nodes | gone
                value = (
                    rounded(value, made.scales[name]) if whole or node.name in made.nodes else value
                )
            feeds[name] = np.asarray(value, np.float32)
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, each.shape)
            for name, each in feeds.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        alone = helper.make_graph([node], "one", inputs, outputs)
        model = helper.make_model(alone, opset_imports=proto.opset_import, ir_version=8)
        values.update(run(model, **feeds))
    return {
        value.name: rounded(values[value.name], made.scales[value.name])
        if value.name in made.scales
        else values[value.name]
        for value in proto.graph.output
    }


@pytest.mark.parametrize("seed", range(25))
def test_random_networks_compute_what_a_simulation_does(seed):
    net = Net(seed)
    out = net.grow()
    proto = net.model(out)
    made = insert_qdq(proto, calibrated(proto), ONNXRUNTIME)
    onnx.checker.check_model(made.proto, full_check=True)
    x = picture(seed % 4)  # one of those that the ranges are of
    wanted, plain = simulated(proto, made, x)[out], run(made.proto, x=x)[out]
    step = made.scales[out].scale
    assert np.abs(wanted - plain).max() <= 2 * step
    # and ONNX Runtime's 8-bit kernels give what the graph says
    best = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert np.abs(run(made.proto, best, x=x)[out] - plain).max() <= 3 * step
    assert np.abs(run(proto, x=x)[out] - plain).max() <= 12 * step


def optimised(proto: onnx.ModelProto, folder) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.graph_optimization_level = level
    onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return onnx.load(folder / "optimised.onnx")


def block() -> tuple[Net, str]:
    """conv+relu6, depthwise+relu, pointwise, added to the first; pool, classifier."""
    net = Net(3)
    first = net.node("Clip", net.conv("x", 8), net.constant(0), net.constant(6), channels=8)
    second = net.node("Relu", net.conv(first, 8, group=8), channels=8)
    added = net.node("Add", first, net.conv(second, 8, k=1), channels=8)
    flat = net.node("Flatten", net.node("GlobalAveragePool", added, channels=8), channels=8)
    return net, net.gemm(flat, 8)


def test_onnx_runtime_makes_8_bit_kernels_of_all(tmp_path):
    net, out = block()
    proto = net.model(out)
    found = kinds(optimised(insert_qdq(proto, calibrated(proto), ONNXRUNTIME).proto, tmp_path))
    assert Counter(found) == {
        "QuantizeLinear": 1,
        "QLinearConv": 3,
        "QLinearAdd": 1,
        "QLinearGlobalAveragePool": 1,
        "Flatten": 1,
        "QGemm": 1,
        "DequantizeLinear": 1,
    }


def test_activations_are_absorbed_and_names_stay():
    net, out = block()
    proto = net.model(out)
    made = insert_qdq(proto, calibrated(proto), ONNXRUNTIME)
    assert made.absorbed == {"/conv0": ("/clip1",), "/conv2": ("/relu3",)}
    assert "Relu" not in kinds(made.proto)
    assert node_of(made.proto, "/conv0").output == ["clip1"]
    assert [value.name for value in made.proto.graph.output] == [out]
    assert [value.name for value in made.proto.graph.input] == ["x"]


def test_a_range_beyond_the_bound_keeps_the_clip():
    net, out = block()
    proto = net.model(out)
    known = calibrated(proto)
    wide = Calibration("minmax", 1, {**known.ranges, "clip1": (-0.5, 6.0)})
    assert "/clip1" not in {
        n for names in insert_qdq(proto, wide, ONNXRUNTIME).absorbed.values() for n in names
    }


def test_float_islands_have_no_qdq_and_one_scale_passes_through():
    net = Net(1)
    conv = net.conv("x", 8)
    turned = net.node("Transpose", conv, channels=8, perm=[0, 1, 3, 2])
    pooled = net.node("MaxPool", turned, channels=8, kernel_shape=[2, 2])
    hard = net.node("HardSwish", pooled, channels=8)
    more = net.node("Tanh", hard, channels=8)
    proto = net.model(net.conv(more, 4))
    made = insert_qdq(proto, calibrated(proto), ONNXRUNTIME)
    assert made.nodes == {"/conv0", "/transpose1", "/maxpool2", "/conv5"}
    assert made.scales[conv] == made.scales[turned] == made.scales[pooled]
    assert hard not in made.scales
    assert node_of(made.proto, "/tanh4").input == [hard]


def test_what_has_no_range_stays_float():
    net, out = block()
    proto = net.model(out)
    known = calibrated(proto).ranges
    ranges = {name: known[name] for name in known.keys() - {"conv2", "relu3"}}
    made = insert_qdq(proto, Calibration("minmax", 1, ranges), ONNXRUNTIME)
    assert not {"/conv2", "/conv4"} & made.nodes
    assert "/conv0" in made.nodes


def test_a_kept_node_reads_and_gives_float():
    net, out = block()
    proto = net.model(out)
    made = insert_qdq(proto, calibrated(proto), ONNXRUNTIME, frozenset({"/conv2"}))
    node = node_of(made.proto, "/conv2")
    assert list(node.input) == ["clip1", "w4", "w5"]
    assert not {"/conv0", "/conv2", "/conv4"} & made.nodes  # its neighbours, over relu3
    assert "/gemm8" in made.nodes
    assert not {"clip1", "conv2", "relu3"} & made.scales.keys()


def test_all_kept_is_the_model_itself():
    net, out = block()
    proto = net.model(out)
    everything = frozenset(node.name for node in proto.graph.node)
    made = insert_qdq(proto, calibrated(proto), ONNXRUNTIME, everything)
    assert made.proto.graph == proto.graph


def test_tensorrt_wants_symmetric_inputs_float_biases_and_the_residual_rule():
    net, out = block()
    proto = net.model(out)
    made = insert_qdq(proto, calibrated(proto), TENSORRT)
    zeros = [
        numpy_helper.to_array(tensor)
        for tensor in made.proto.graph.initializer
        if tensor.name.endswith("zero_point")
    ]
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    add = node_of(made.proto, "/add5")
    assert list(add.input) == ["clip1/dequantized", "conv4"]
    assert node_of(made.proto, "/conv2").input[2] == "w5"
    assert "Relu" in kinds(made.proto)
    assert made.proto.graph.output[0].name == node_of(made.proto, "/gemm8").output[0]
    x = picture(0)
    close = np.abs(run(made.proto, x=x)[out] - run(proto, x=x)[out]).max()
    assert close < 0.05 * np.abs(run(proto, x=x)[out]).max()


def test_before_opset_13_axes_come_from_onnx_runtimes_domain():
    net = Net(2, opset=11)
    proto = net.model(net.conv("x", 4))
    made = insert_qdq(proto, calibrated(proto), ONNXRUNTIME)
    domains = {node.domain for node in made.proto.graph.node if node.op_type in QUANTISED}
    assert domains == {"com.microsoft"}
    run(made.proto, x=picture(0))


def test_weights_lie_within_127_and_a_channel_without_any_keeps_its_bias():
    weights = np.random.default_rng(0).normal(0, 1, (3, 4)).astype(np.float32)
    weights[1] = 0
    weights[2] *= 1e-12
    bias = np.array([1, 2, -3], np.float32)
    scales = weight_scales(weights, 0, bias, step=0.1)
    assert scales[0] == pytest.approx(np.abs(weights[0]).max() / 127)
    assert np.abs(bias / (0.1 * scales)).max() < 2**30
    net = Net(0)
    net.weights += [numpy_helper.from_array(w, n) for w, n in ((weights, "k"), (bias, "b"))]
    flat = net.node("Flatten", net.node("GlobalAveragePool", "x", channels=4), channels=4)
    out = net.node("Gemm", flat, "k", "b", channels=3, transB=1)
    proto = net.model(out)
    made = insert_qdq(proto, calibrated(proto), ONNXRUNTIME)
    stored = {t.name: numpy_helper.to_array(t) for t in made.proto.graph.initializer}
    assert stored["k/dequantized/whole"].min() >= -127
    x = picture(0)
    np.testing.assert_allclose(run(made.proto, x=x)[out][0, 1:], [2, -3], atol=0.03)


def test_errors_do_not_add_up():
    weights = np.random.default_rng(1).normal(0.3, 1, (16, 8, 3, 3)).astype(np.float32)
    scales = weight_scales(weights, 0)
    real = weights / scales.reshape(-1, 1, 1, 1)
    errors = quantise_weight(weights, scales, 0) - real
    assert np.abs(errors.sum((2, 3))).max() <= 1.5 + 1e-4  # one may be turned for its channel
    assert np.abs(errors.sum((1, 2, 3))).max() <= 0.5 + 1e-3
    assert np.abs(errors).max() < 1.5
    nearest = np.rint(real) - real
    assert np.abs(nearest.sum((2, 3))).max() > 1.5
    assert np.abs(nearest.sum((1, 2, 3))).max() > 2
    assert (errors**2).mean() < 1.3 * (nearest**2).mean()
    assert np.abs(quantise_weight(weights, scales, 0).astype(int)).max() == 127


def test_two_readers_of_the_same_weights_load_where_there_is_no_vnni():
    net = Net(4)
    first = net.conv("x", 4, k=1)
    again = net.node("Conv", first, "w0", "w1", channels=4, kernel_shape=[1, 1])
    proto = net.model(again)
    best = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    run(insert_qdq(proto, calibrated(proto), ONNXRUNTIME).proto, best, x=picture(0))


def test_a_range_is_extended_to_zero():
    assert scale_of(2, 5.1, symmetric=False) == Scale(pytest.approx(0.02), 0)
    assert scale_of(-5.1, -2, symmetric=False) == Scale(pytest.approx(0.02), 255)
    assert scale_of(0, 0, symmetric=False) == Scale(1.0, 0)
    assert scale_of(-1, 1, symmetric=True, threshold=2.54) == Scale(pytest.approx(0.02), 0)


def test_weights_alone():
    net, out = block()
    proto = net.model(out)
    made = quantise_weights(proto, frozenset({"/conv0"}))
    assert made.nodes == {"/conv2", "/conv4", "/gemm8"}
    assert "QuantizeLinear" not in kinds(made.proto)
    x = picture(1)
    np.testing.assert_allclose(run(made.proto, x=x)[out], run(proto, x=x)[out], atol=0.05)


@pytest.mark.parametrize("kept", ["/conv2", "/relu3", "/conv4"])
def test_keeping_one_node_cures_a_layer_with_one_channel_of_a_far_range(kept):
    net, out = block()
    stored = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in net.weights}
    for name in ("w4", "w5"):  # weights and bias of conv2
        stored[name][0] *= 1000
    stored["w6"][:, 0] /= 1000  # of conv4, which takes it back
    net.weights = [numpy_helper.from_array(values, name) for name, values in stored.items()]
    proto = net.model(out)
    known, x = calibrated(proto), picture(0)
    wanted = run(proto, x=x)[out]

    def error(*keep: str) -> float:
        made = insert_qdq(proto, known, ONNXRUNTIME, frozenset(keep))
        return float(np.abs(run(made.proto, x=x)[out] - wanted).max())

    assert error() > 4 * error(kept)


@pytest.mark.parametrize(
    "taken", ["x/quantized", "conv0/scale", "conv0/dequantized", "w0/dequantized/scale"]
)
def test_names_of_the_model_are_left_alone(taken):
    """Whatever a model calls its tensors, it computes the same."""

    def made(name: str) -> np.ndarray:
        net = Net(3)
        first = net.conv("x", 8)
        turned = net.node("Tanh", first, channels=8)
        net.nodes[-1].output[0], net.channels[name] = name, 8
        assert turned != name
        net.gemm(net.node("Flatten", net.conv(name, 2), channels=98), 98)
        proto = net.model(net.nodes[-1].output[0])
        quantised = insert_qdq(proto, calibrated(proto), ONNXRUNTIME)
        assert name in quantised.scales
        assert set(quantised.stored.values()) <= set(quantised.scales)
        (out,) = run(quantised.proto, x=picture(7)).values()
        return out

    np.testing.assert_array_equal(made(taken), made("t"))


@pytest.mark.parametrize(
    "odd", [{"ceil_mode": 1}, {"count_include_pad": 1}, {"dilations": [2, 2]}, {}]
)
def test_pools_that_onnx_runtime_computes_otherwise_stay_float(odd):
    net = Net(4, opset=19)
    around = {"kernel_shape": [2, 2], "pads": [1] * 4, "strides": [2, 2]}
    net.node("AveragePool", net.conv("x", 8), channels=8, **around, **odd)
    proto = net.model(net.nodes[-1].output[0])
    made = insert_qdq(proto, calibrated(proto), ONNXRUNTIME)
    assert (net.nodes[-1].name in made.nodes) == (not odd)


@pytest.mark.parametrize(("shape", "axis"), [((6, 4, 3, 3), 0), ((4, 6, 2, 2), 1), ((30, 6), 1)])
def test_weights_are_rounded_by_blocks_of_channels(monkeypatch, shape, axis):
    """Memory does not grow with the weights; what comes out is the same."""
    values = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    scales = weight_scales(values, axis)
    whole = quantise_weight(values, scales, axis)
    monkeypatch.setattr(weights, "_BLOCK", 1)
    np.testing.assert_array_equal(quantise_weight(values, scales, axis), whole)

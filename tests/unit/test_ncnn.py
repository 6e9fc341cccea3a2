"""What ncnn's plugin does before and after pnnx runs: pre-flight, rewrites, bindings, checks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from wherry.errors import ToolError, UnsupportedError
from wherry.model import Model
from wherry.normalise import normalise
from wherry.target import Target
from wherry_ncnn import operators, plugin
from wherry_ncnn.prepare import prepare

TARGET = Target("ncnn", "fp32", "local", plugin.NcnnOptions())


def network(tmp_path: Path, body: str, *, signature: str = "", opset: int = 17, **weights) -> Model:
    """A model from ONNX's text form, saved, loaded, and made static as the host does it."""
    signature = signature or "(float[1,4,6,8] x) => (float[?] y)"
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> net {signature} {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    for name, values in weights.items():
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}/{index}"
    for value in proto.graph.output:
        if "float[?]" in text:
            value.CopyFrom(onnx.ValueInfoProto(name=value.name))
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    onnx.save(inferred, tmp_path / "source.onnx")
    return Model.load(tmp_path / "source.onnx").with_static_shapes({}, tmp_path)


def refused(model: Model) -> dict[str, tuple[int, str]]:
    """Operator to how many there are and which is the first."""
    return {item.op_type: (item.count, item.node) for item in plugin.preflight(model, TARGET)}


# --- pre-flight ----------------------------------------------------------------------------------


def test_unknown_operators_are_counted_and_named(tmp_path):
    model = network(
        tmp_path, "a = Relu(x) b = Softsign(a) c = Hardmax(b) d = Softsign(c) y = Sigmoid(d)"
    )
    assert refused(model) == {"Softsign": (2, "Softsign/1"), "Hardmax": (1, "Hardmax/2")}


def test_what_is_folded_or_dead_is_no_problem(tmp_path):
    """Shape arithmetic is computed by pnnx, and nobody needs a dead node."""
    model = network(
        tmp_path,
        "s = Shape(x) n = Gather <axis = 0> (s, zero) u = Unsqueeze(n, zeros) "
        "t = Concat <axis = 0> (u, rest) dead = Softsign(x) y = Reshape(x, t)",
        zero=np.int64(0), zeros=np.array([0]), rest=np.array([-1]),
    )  # fmt: skip
    assert refused(model) == {}


@pytest.mark.parametrize(
    ("body", "weights", "words"),
    [
        ("y = Gather <axis = 1> (x, i)", {"i": np.array([2, 0])}, "one index"),
        ("y = Gather <axis = 1> (x, i)", {"i": np.int64(2)}, None),
        ("y = Slice(x, a, b, c, d)",
         {"a": [-1], "b": [-9], "c": [3], "d": [-1]}, "backwards"),
        ("y = Slice(x, a, b, c, d)", {"a": [1], "b": [4], "c": [3], "d": [1]}, None),
        ("y = Resize <mode = \"linear\", coordinate_transformation_mode = \"asymmetric\"> (x, , s)",
         {"s": [1.0, 1, 2, 2]}, "half_pixel"),
        ("y = Resize <mode = \"linear\"> (x, , s)", {"s": [1.0, 1, 2, 2]}, None),
        ("y = Resize <mode = \"nearest\"> (x, , s)", {"s": [1.0, 1, 2, 2]}, "asymmetric"),
        ("y, m = MaxPool <kernel_shape = [2,2]> (x)", {}, None),
    ],
)  # fmt: skip
def test_forms_that_would_come_out_wrong(tmp_path, body, weights, words):
    found = plugin.preflight(network(tmp_path, body, **weights), TARGET)
    assert bool(found) == bool(words)
    if words:
        assert words in found[0].remedy


def test_second_output_of_a_pool(tmp_path):
    model = network(
        tmp_path,
        "p, m = MaxPool <kernel_shape = [2,2]> (x) f = Cast <to = 1> (m) y = Add(p, f)",
    )
    assert refused(model) == {"MaxPool": (1, "MaxPool/0")}


def test_what_the_normal_form_cures_is_no_problem(tmp_path):
    assert not refused(network(tmp_path, "y = Softmax <axis = 1> (x)", opset=11))
    assert not refused(network(tmp_path, "y = Relu(x)", opset=27))


def test_opset_that_pnnx_does_not_read(tmp_path):
    graph = network(tmp_path, "y = Relu(x)").proto().graph
    found = operators.preflight(graph, 27)
    assert [(item.op_type, item.count) for item in found] == [("every operator (opset 27)", 1)]
    assert "26" in found[0].remedy


@pytest.mark.parametrize(
    ("signature", "body", "words"),
    [
        ("(float[1,4] x, float e) => (float[1,4] y)", "y = Mul(x, e)", "without axes of Mul"),
        ("(float[1,2,4,4] x, float[4] s) => (float[1,2,8,8] y)", "y = Resize(x, , s)", "Resize"),
        ("(float[1,4] x, float[1,4] e) => (float[1,4] y)", "y = Pow(x, e)", "Pow"),
        ("(float[1,4] x) => (float[1,4] y)", "y = Shrink <lambd = 1.5> (x)", "Shrink"),
        ("(float[1,1,3,2] x, float[1,2,4,2] g) => (float[1,1,2,4] y)",
         'y = GridSample <mode = "nearest"> (x, g)', "GridSample"),
    ],
)  # fmt: skip
def test_forms_that_come_out_wrong(tmp_path, signature, body, words):
    assert any(words in kind for kind in refused(network(tmp_path, body, signature=signature)))


@pytest.mark.parametrize(
    ("signature", "body", "words"),
    [
        ("(int64[1,4] x) => (float[1,4,3] y)", "y = Gather(w, x)", "input of type int64"),
        ("(uint8[1,4] x) => (float[1,4] y)", "y = Cast <to = 1> (x)", None),
        ("(float[1,4] x) => (int64[1,1] y)", "y = ArgMax <axis = 1> (x)", "output of type int64"),
        ("(float[1,4] x) => (float[1,4] x, float[1,4] y)", "y = Relu(x)", "output that is"),
        ("(float[1,4] x) => (float[1,4] y, float[1,4] z)", "y = Relu(x) z = Identity(y)",
         "output that is"),
        ("(float[1,4] x) => (float[1,4] y, float[4,3] z)", "y = Relu(x) z = Identity(w)",
         "output that is"),
    ],
)  # fmt: skip
def test_inputs_and_outputs(tmp_path, signature, body, words):
    model = network(tmp_path, body, signature=signature, w=np.ones((4, 3)))
    found = [item.op_type for item in plugin.preflight(model, TARGET)]
    assert any(words in kind for kind in found) if words else not found


# --- rewrites ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "opset", "weights"),
    [
        ("y = ReduceMean <keepdims = 1> (x, a)", 18, {"a": [1]}),
        ("y = ReduceSum <keepdims = 0> (x, a)", 13, {"a": [-1]}),
        ("a = Constant <value = int64[1] {2}> () y = ReduceSum (x, a)", 13, {}),
    ],
)
def test_rewrites_compute_the_same(tmp_path, body, opset, weights):
    model = network(tmp_path, body, opset=opset, **weights)
    x = np.random.default_rng(0).normal(size=(1, 4, 6, 8)).astype(np.float32)
    rewritten = prepare(model.proto())
    assert rewritten.SerializeToString() != model.proto().SerializeToString()
    before, after = (
        onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
        for proto in (model.proto(), rewritten)
    )
    np.testing.assert_array_equal(before, after)


def test_an_input_that_is_only_cast_becomes_float(tmp_path):
    body = "a = Cast <to = 1> (x) b = Cast <to = 1> (x) y = Add(a, b)"
    model = network(tmp_path, body, signature="(uint8[1,4] x) => (float[1,4] y)")
    rewritten = prepare(model.proto())
    assert rewritten.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    onnx.checker.check_model(rewritten, full_check=True)


# --- after pnnx ----------------------------------------------------------------------------------

PARAM = """7767517
3 3
Input in0 0 1 in0
ReLU relu_0 1 1 in0 1
Sigmoid sigmoid_0 1 1 1 out0
"""


class Context:
    """Plays pnnx: writes the files, and answers."""

    def __init__(self, folder: Path, text: str, **answer) -> None:
        self.output, self.scratch = folder / "output", folder / "scratch"
        self.output.mkdir()
        self.scratch.mkdir()
        self.text, self.requests = text, []
        axes = {"in0": 0, "out0": 0}
        self.answer = {"pnnx": "1", "left_out": [], "batch_axes": axes, **answer}

    def normalised(self, model, also=()):
        return normalise(model, self.scratch, also)

    def run_tool(self, script, request, *, requirements):
        if script.name == "blobs.py":
            return self.run_network(request)
        self.requests.append(json.loads(json.dumps(request)))
        (self.output / "model.param").write_text(self.text)
        (self.output / "model.bin").write_bytes(b"")
        return self.answer

    def run_network(self, request):
        """What `PARAM` computes."""
        found = {}
        with np.load(request["inputs"]) as given:
            for sample in range(request["samples"]):
                x = given[f"{sample}/in0"]
                blobs = {"in0": x, "1": np.maximum(x, 0)}
                blobs["out0"] = self.result(1 / (1 + np.exp(-blobs["1"])))
                for index, blob in enumerate(request["blobs"]):
                    found[f"{sample}/{index}"] = blobs[blob]
        np.savez(request["output"], **found)
        return {}

    def result(self, value):
        """What ncnn makes of the last blob."""
        return value


@pytest.fixture
def model(tmp_path):
    return network(tmp_path, "r = Relu(x) y = Sigmoid(r)")


def convert(model: Model, context: Context, precision: str = "fp32"):
    return plugin.wherry_convert(model, Target("ncnn", precision, "local"), None, context)


def test_artifact(tmp_path, model):
    context = Context(tmp_path, PARAM)
    artifact = convert(model, context, "fp16")
    assert context.requests[0]["inputs"] == "[1,4,6,8]f32"
    assert context.requests[0]["fp16"] is True
    assert set(artifact.files) == {"model.bin", "model.param"}
    (binding,) = artifact.inputs
    assert (binding.onnx, binding.runtime, binding.shape) == ("x", "in0", (1, 4, 6, 8))
    assert (binding.dtype, binding.drop_batch, binding.permutation) == ("float32", True, None)
    assert [(each.name, each.nodes, each.outputs) for each in artifact.layers] == [
        ("relu_0", ("Relu/0",), {"r": "1"}),
        ("sigmoid_0", ("Sigmoid/1",), {"y": "out0"}),
    ]


def test_an_output_with_other_values_is_refused(tmp_path, model):
    class Wrong(Context):
        def result(self, value):
            return value * 1.1

    with pytest.raises(UnsupportedError, match="other values") as caught:
        convert(model, Wrong(tmp_path, PARAM))
    assert caught.value.where == "node Sigmoid/1"


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({"in0": None, "out0": None}, (None, False)),
        ({"in0": 2, "out0": 0}, "batch of 6"),
        ({"in0": 0, "out0": 0}, (None, True)),
    ],
)
def test_batch_axes(tmp_path, model, axes, expected):
    context = Context(tmp_path, PARAM, batch_axes=axes)
    if isinstance(expected, str):
        with pytest.raises(UnsupportedError, match=expected):
            convert(model, context)
    else:
        binding = convert(model, context).inputs[0]
        assert (binding.permutation, binding.drop_batch) == expected


@pytest.mark.parametrize(
    ("text", "answer", "words"),
    [
        (PARAM.replace("Sigmoid sig", "Tensor.to sig"), {}, "this form of Cast"),
        (
            PARAM.replace("Sigmoid sig", "torch.sigmoid sig"),
            {},
            "one of Relu (node 'Relu/0'), Sigmoid (node 'Sigmoid/1')",
        ),
        (PARAM.replace("ReLU relu", "Relu relu"), {}, "Relu/0: pnnx does not convert"),
        (PARAM, {"left_out": ["ignore ReLU relu_0 param alpha=1"]}, "ReLU"),
        (PARAM, {"left_out": ["sum along batch axis is not supported yet"]}, "batch axis"),
        (PARAM.replace("out0", "2"), {}, "leaves 'y', of Sigmoid, out"),
    ],
)
def test_what_did_not_convert_is_refused(tmp_path, model, text, answer, words):
    with pytest.raises(UnsupportedError) as caught:
        convert(model, Context(tmp_path, text, **answer))
    assert words in str(caught.value)
    assert caught.value.remedy


def test_a_file_that_is_none(tmp_path, model):
    with pytest.raises(ToolError, match="not ncnn's: line 2"):
        convert(model, Context(tmp_path, "7767517\n"))


def test_the_preflight_holds_without_the_host(tmp_path):
    context = Context(tmp_path, PARAM)
    with pytest.raises(UnsupportedError, match="Softsign"):
        convert(network(tmp_path, "y = Softsign(x)"), context)
    assert not context.requests


def test_five_axes(tmp_path):
    model = network(tmp_path, "y = Relu(x)", signature="(float[1,2,3,4,5] x) => (float[?] y)")
    text = PARAM.replace("3 3", "2 2").replace("Sigmoid sigmoid_0 1 1 1 out0\n", "")
    text = text.replace("in0 1\n", "in0 out0\n", 1).replace("0 1 in0 out0", "0 1 in0")
    axes = {"in0": None, "out0": None}
    with pytest.raises(UnsupportedError, match="5 axes"):
        convert(model, Context(tmp_path, text, batch_axes=axes))


# --- the documentation ---------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs" / "backends" / "ncnn.md"


def test_the_documentation_names_every_option_pin_and_refusal():
    text = DOCS.read_text(encoding="utf-8")
    for name, option in plugin.NcnnOptions.model_fields.items():
        default = str(option.default).lower()
        assert re.search(rf"^\| `{name}` \| `?{re.escape(default)}`? \|", text, re.MULTILINE), name
    for entry in plugin.RUNTIMES:
        for requirement in (*entry.packages, *entry.no_deps):
            assert requirement.partition("==")[2].partition(";")[0] in text
    (backend,) = plugin.wherry_backends()
    assert all(f"`{word}`" in text for word in (*backend.precisions, *backend.refusals))


def test_the_documentation_lists_the_operators():
    text = DOCS.read_text(encoding="utf-8")
    listed = re.search(r"<!-- operators -->(.*)<!-- end -->", text, re.DOTALL)
    assert set(listed[1].split()) == operators.OPERATORS

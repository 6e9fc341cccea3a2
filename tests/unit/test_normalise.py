"""The normal form: every rewrite happens, is equal, keeps names; a wrong one is left out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import wherry.normalise as normal
from wherry.model import Model
from wherry.normalise import normalise
from wherry.reference import Reference, random_inputs


def static(text, tmp_path, opset=17, values=None):
    """A model with static shapes; declared tensors without a value get random ones."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\nnet {text}')
    generator = np.random.default_rng(3)
    for weight in proto.graph.value_info:
        shape = [axis.dim_value for axis in weight.type.tensor_type.shape.dim]
        value = (values or {}).get(weight.name)
        if value is None:
            value = generator.uniform(0.5, 1.5, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), weight.name))
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        node.name = f"/{node.op_type}/{node.output[0]}"
    onnx.save(proto, tmp_path / "given.onnx")
    (tmp_path / "static").mkdir()
    return Model.load(tmp_path / "given.onnx").with_static_shapes({}, tmp_path / "static")


@pytest.fixture
def made(tmp_path):
    """Normalises a model in text; gives the result and its operators."""

    def run(text, also=(), **about):
        model = static(text, tmp_path, **about)
        (tmp_path / "normal").mkdir(exist_ok=True)
        result = normalise(model, tmp_path / "normal", also)
        assert result.model.inputs == model.inputs
        assert result.model.outputs == model.outputs
        nodes = result.model.proto().graph.node
        assert set(result.nodes) == {node.name for node in nodes}
        originals = {name for names in model.operators().values() for name in names}
        assert originals.issuperset(name for names in result.nodes.values() for name in names)
        for sample in random_inputs(model.inputs, 2, seed=5):
            ours, theirs = Reference(result.model).run(sample), Reference(model).run(sample)
            for name, array in theirs.items():
                np.testing.assert_allclose(ours[name], array, rtol=1e-4, atol=1e-5)
        return result, [node.op_type for node in nodes]

    return run


CONV = "Conv <kernel_shape = [3,3], pads = [1,1,1,1]>"
PICTURE = "(float[1,4,9,11] x) => (float[1,4,9,11] y)"
FORMS = {
    "identity": (f"{PICTURE} {{ a = Relu(x) b = Identity(a) y = Sigmoid(b) }}", {}, "Relu Sigmoid"),
    "identity at the end": (f"{PICTURE} {{ a = Relu(x) y = Identity(a) }}", {}, "Relu"),
    "identity of the input": (f"{PICTURE} {{ y = Identity(x) }}", {}, "Identity"),
    "dropout": (f"{PICTURE} {{ a = Dropout(x) y = Relu(a) }}", {}, "Relu"),
    "cast to the same": (f"{PICTURE} {{ a = Cast<to = 1>(x) y = Relu(a) }}", {}, "Relu"),
    "cast like": (
        "(float[1,4] x, int64[3] i) => (int64[1,4] y) { y = CastLike(x, i) }",
        {"opset": 15},
        "Cast",
    ),
    "transpose of ones": (
        ("(float[1,4,9] x) => (float[1,4,9] y)"
        "{ a = Transpose<perm = [0,1,2]>(x) y = Relu(a) }"), {}, "Relu",
    ),
    "true transpose": (
        "(float[1,4,4] x) => (float[1,4,4] y) { y = Transpose<perm = [0,2,1]>(x) }", {},
        "Transpose",
    ),
    "one of many": (f"{PICTURE} {{ a = Concat<axis = 1>(x) y = Relu(a) }}", {}, "Relu"),
    "shapes": (
        ("(float[1,4,6] x) => (float[4,6] y)"
        "{ s = Shape<start = 1>(x) y = Reshape(x, s) }"), {}, "Reshape",
    ),
    "constants": (
        f"{PICTURE} <float[4,1,1] a, float[4,1,1] b> {{ c = Add(a, b) d = Sqrt(c) y = Mul(x, d) }}",
        {}, "Mul",
    ),
    "same upper": (
        ("(float[1,4,9,11] x) => (float[1,2,5,6] y) <float[2,4,3,3] w>"
        "{ y = Conv<auto_pad = \"SAME_UPPER\", strides = [2,2]>(x, w) }"), {}, "Conv",
    ),
    "same lower pool": (
        ("(float[1,4,9,11] x) => (float[1,4,5,6] y)"
        "{ y = MaxPool<auto_pad = \"SAME_LOWER\", kernel_shape = [2,2], strides = [2,2]>(x) }"),
        {}, "MaxPool",
    ),
    "transposed output shape": (
        ("(float[1,4,3,3] x) => (float[1,2,10,8] y) <float[4,2,3,3] w>"
        "{ y = ConvTranspose<output_shape = [10,8], strides = [3,2],"
        " output_padding = [1,1]>(x, w) }"), {}, "ConvTranspose",
    ),
    "transposed output shape that is larger": (
        ("(float[1,4,3,3] x) => (float[1,2,10,8] y) <float[4,2,3,3] w>"
        "{ y = ConvTranspose<output_shape = [10,8], strides = [3,2]>(x, w) }"),
        {},
        "ConvTranspose",
    ),
    "ceil": (
        ("(float[1,4,10,12] x) => (float[1,4,5,6] y)"
        "{ y = MaxPool<ceil_mode = 1, kernel_shape = [3,3], strides = [2,2]>(x) }"), {}, "MaxPool",
    ),
    "ceil of a mean": (
        ("(float[1,4,10,12] x) => (float[1,4,5,6] y)"
        "{ y = AveragePool<ceil_mode = 1, kernel_shape = [3,3], strides = [2,2]>(x) }"), {},
        "AveragePool",
    ),
    "pad of chosen axes": (
        ("(float[1,4,9] x) => (float[1,4,12] y) <int64[2] p, float v, int64[1] a>"
        "{ y = Pad(x, p, v, a) }"),
        {"opset": 18, "values": {"p": np.array([1, 2]), "v": np.float32(2), "a": np.array([-1])}},
        "Pad",
    ),
    "negative axes": (
        "(float[1,4,9] x) => (float[1,4] y) { y = ReduceMean<axes = [-1], keepdims = 0>(x) }", {},
        "ReduceMean",
    ),
    "clip from zero": (
        f"{PICTURE} <float z> {{ y = Clip(x, z) }}", {"values": {"z": np.float32(0)}}, "Relu",
    ),
    "maximum with zero": (
        f"{PICTURE} <float z> {{ y = Max(x, z) }}", {"values": {"z": np.float32(0)}}, "Relu",
    ),
    "old softmax": (
        "(float[2,3,4] x) => (float[2,3,4] y) { y = Softmax<axis = 1>(x) }", {"opset": 11},
        "Flatten Softmax Reshape",
    ),
    "batch norm": (
        (f"{PICTURE} <float[4,4,3,3] w, float[4] s, float[4] b, float[4] m, float[4] v>"
        f"{{ c = {CONV}(x, w) y = BatchNormalization(c, s, b, m, v) }}"), {}, "Conv",
    ),
    "batch norm after transposed": (
        ("(float[1,4,5,6] x) => (float[1,6,7,8] y)"
        "<float[4,3,3,3] w, float[6] s, float[6] b, float[6] m, float[6] v>"
        "{ c = ConvTranspose<group = 2>(x, w) y = BatchNormalization(c, s, b, m, v) }"), {},
        "ConvTranspose",
    ),
    "batch norm after gemm": (
        ("(float[1,4] x) => (float[1,3] y)"
        "<float[3,4] w, float[3] c, float[3] s, float[3] b, float[3] m, float[3] v>"
        "{ g = Gemm<transB = 1>(x, w, c) y = BatchNormalization(g, s, b, m, v) }"), {}, "Gemm",
    ),
    "hard swish": (
        (f"{PICTURE} <float three, float zero, float six>"
        "{ a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six) }"),
        {"values": {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}},
        "HardSwish",
    ),
    "hard swish by parts": (
        (f"{PICTURE} <float three, float zero, float six>"
        "{ a = Add(x, three) c = Clip(a, zero, six) g = Div(c, six) y = Mul(g, x) }"),
        {"values": {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}},
        "HardSwish",
    ),
    "hard swish before opset 14": (
        (f"{PICTURE} <float three, float zero, float six>"
        "{ a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six) }"),
        {
            "opset": 13,
            "values": {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)},
        },
        "HardSigmoid Mul",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_rewrite(made, name):
    text, about, operators = FORMS[name]
    result, found = made(text, **about)
    assert not result.warnings
    assert " ".join(found) == operators
    for node in result.model.proto().graph.node:
        words = {attribute.name: attribute for attribute in node.attribute}
        assert "auto_pad" not in words
        assert "output_shape" not in words
        assert "ceil_mode" not in words
        assert all(axis >= 0 for axis in (words["axes"].ints if "axes" in words else ()))
        assert node.op_type != "Pad" or len(node.input) < 4


OPTIONAL = {
    "extremes": (
        "(float[2,3,4] x) => (float[2,4] y) { y = ReduceMin<axes = [1], keepdims = 0>(x) }",
        17,
        "Neg Transpose Reshape GlobalMaxPool Reshape Neg",
    ),
    "expand RMSNormalization if batch": (
        "(float[1,3,4] x) => (float[1,3,4] y) <float[4] w> { y = RMSNormalization(x, w) }",
        23,
        "RMSNormalization",
    ),
    "expand LayerNormalization if outputs": (
        "(float[1,3,4] x) => (float[1,3,4] y) <float[4] w> { y = LayerNormalization(x, w) }",
        17,
        "LayerNormalization",
    ),
    "powers": (
        "(float[1,4] x) => (float[1,4] y) { n = Constant<value_float = 3.0>() y = Pow(x, n) }",
        17,
        "Mul Mul",
    ),
    "pairs": (
        "(float[1,4] a, float[1,4] b, float[1,4] c) => (float[1,4] y) { y = Sum(a, b, c) }",
        17,
        "Add Add",
    ),
    "log softmax": (
        "(float[2,3,4] x) => (float[2,3,4] y) { y = LogSoftmax<axis = 1>(x) }",
        18,
        "ReduceMax Sub Exp ReduceSum Log Sub",
    ),
}


@pytest.mark.parametrize("name", OPTIONAL)
def test_optional_rewrite(made, name):
    text, opset, operators = OPTIONAL[name]
    assert " ".join(made(text, [name], opset=opset)[1]) == operators


def test_batch_norms_stay_where_that_is_asked_for(made):
    text = """(float[1,2,4,4] x) => (float[1,3,2,2] y) <float[3,2,3,3] w, float[3] s, float[3] b,
    float[3] m, float[3] v> { c = Conv(x, w) n = BatchNormalization(c, s, b, m, v)
    i = Identity(n) y = Relu(i) }"""
    assert made(text, {f"{normal.KEEP}batch norm"})[1] == [
        "Conv",
        "BatchNormalization",
        "Relu",
    ]


def test_a_split_says_how_long_its_parts_are(made):
    text = "(float[7] x) => (float[4] y, float[3] z) { y, z = Split<num_outputs = 2>(x) }"
    result, _ = made(text, opset=18)
    proto = result.model.proto()
    assert numpy_helper.to_array(proto.graph.initializer[0]).tolist() == [4, 3]
    assert not result.warnings


def test_a_resize_names_all_axes(made):
    text = (
        "(float[1,3,4,5] x) => (float[1,3,8,10] y) <float[2] s>"
        "{ y = Resize<axes = [3, 2]>(x, , s) }"
    )
    result, _ = made(text, opset=18, values={"s": np.array([2, 2], np.float32)})
    assert not result.warnings
    assert "axes" not in {a.name for a in result.model.proto().graph.node[0].attribute}


def test_operators_in_other_words(made):
    text = "(float[1,4] x) => (float[1,4] y) { a = Relu(x) b = Softplus(a) y = Sigmoid(b) }"
    result, operators = made(text, ["expand Softplus"], opset=22)
    assert not result.warnings
    assert "Softplus" not in operators
    assert {"Exp", "Log"} <= set(operators)
    assert set(result.nodes.values()) == {("/Relu/a",), ("/Softplus/b",), ("/Sigmoid/y",)}


def test_an_older_opset_where_it_means_the_same(made):
    text = "(float[1,4] x) => (float[1,4] y) { y = Erf(x) }"
    result, _ = made(text, ["opset 13"], opset=17)
    assert result.model.opset == 13
    assert not result.warnings


def test_no_older_opset_where_it_means_something_else(made):
    text = "(float[2,3,4] x) => (float[2,3,4] y) { y = Softmax(x) }"
    result, _ = made(text, ["opset 12"], opset=17)
    assert result.model.opset == 17
    assert "'opset 12' was left out" in result.warnings[0]


def test_an_older_opset_is_proved_where_nothing_else_changes(made):
    text = "(float[2,3,1] x) => (float[2,3,1] y) { y = Softmax(x) }"  # then over axis 1
    result, operators = made(text, ["opset 12"], opset=17)
    assert operators == ["Softmax"]
    assert result.model.opset == 17
    assert "'opset 12' was left out" in result.warnings[0]


def test_only_those_of_an_operator_that_need_it(made):
    text = "(float[2,3,4] x) => (float[2,3,4] y) <float[4] w> { y = RMSNormalization(x, w) }"
    assert "RMSNormalization" not in made(text, ["expand RMSNormalization if batch"], opset=23)[1]


def test_operators_that_onnx_does_not_define_by_others_stay(made):
    text = "(float[1,4] x) => (float[1,4] y) { y = Erf(x) }"
    assert made(text, ["expand Erf"])[1] == ["Erf"]


def test_a_sum_of_one_from_an_input_to_an_output_is_an_identity(made):
    assert made("(float[7] x) => (float[7] y) { y = Sum(x) }")[1] == ["Identity"]


def test_a_mean_that_counts_its_padding_keeps_its_ceil_mode(made):
    text = (
        "(float[1,4,10,12] x) => (float[1,4,5,6] y) { y = AveragePool<ceil_mode = 1,"
        "count_include_pad = 1, kernel_shape = [3,3], strides = [2,2]>(x) }"
    )
    result, _ = made(text)
    assert "ceil_mode" in {a.name for a in result.model.proto().graph.node[0].attribute}


def test_nodes_say_which_they_do(made):
    text, about, _ = FORMS["batch norm"]
    result, _ = made(text, **about)
    assert result.nodes == {"/Conv/c": ("/Conv/c", "/BatchNormalization/y")}
    assert result.originals(["/Conv/c"]) == ("/Conv/c", "/BatchNormalization/y")


def test_what_somebody_else_takes_is_not_fused(made):
    text = (
        "(float[1,4,9,11] x) => (float[1,4,9,11] y, float[1,4,9,11] c)"
        "<float[4,4,3,3] w, float[4] s, float[4] b, float[4] m, float[4] v>"
        f"{{ c = {CONV}(x, w) y = BatchNormalization(c, s, b, m, v) }}"
    )
    assert made(text)[1] == ["Conv", "BatchNormalization"]


def test_quantised_weights_stay_quantised(made):
    text = (
        "(float[1,4] x) => (float[1,3] y) <int8[4,3] w, float s, int8 z>"
        "{ f = DequantizeLinear(w, s, z) y = MatMul(x, f) }"
    )
    values = {"w": np.ones((4, 3), np.int8), "z": np.int8(0)}
    assert made(text, values=values)[1] == ["DequantizeLinear", "MatMul"]


def test_what_a_nested_graph_takes_stays(made):
    text = (
        "(float[1,4] x, bool c) => (float[1,4] y)"
        "{ a = Identity(x) b = Relu(a) y = If (c) <then_branch = t () => (float[1,4] p)"
        "{ p = Neg(b) }, else_branch = e () => (float[1,4] q) { q = Add(a, b) }> }"
    )
    result, operators = made(text)
    assert operators == ["Identity", "Relu", "If"]
    assert not result.warnings


def wrong(graph, node):
    """Turns a Relu into a Sigmoid."""
    graph.replace([node], ("Sigmoid", [node.input[0]], {}))
    return True


def test_a_rewrite_that_is_not_equal_is_left_out_and_said(made, monkeypatch):
    passes = {"wrong": [(wrong, ("Relu",))], **normal.PASSES}
    monkeypatch.setattr(normal, "PASSES", passes)
    text = f"{PICTURE} {{ a = Identity(x) b = Dropout(a) y = Relu(b) }}"
    result, operators = made(text)
    assert operators == ["Relu"]
    (warning,) = result.warnings
    assert warning.startswith("the rewrite 'wrong' was left out")
    assert "'y' has other values" in warning


def test_what_does_not_run_on_random_inputs_stays_as_it_is(tmp_path):
    text = "(float[6] x, int64[2] s) => (float[2,3] y) { a = Identity(x) y = Reshape(a, s) }"
    model = static(text, tmp_path)
    result = normalise(model, tmp_path)
    assert [node.op_type for node in result.model.proto().graph.node] == ["Identity", "Reshape"]
    (warning,) = result.warnings
    assert warning.startswith("the model was not normalised")


def test_the_same_bytes_each_time(tmp_path):
    text, about, _ = FORMS["hard swish"]
    model = static(text, tmp_path, **about)
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        digests.add(normalise(model, tmp_path / name).model.digest)
    assert len(digests) == 1

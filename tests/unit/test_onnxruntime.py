"""ONNX Runtime's plugin: pre-flight, float16, the runner's options."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from pydantic import ValidationError

from wherry.model import Model
from wherry.target import Target
from wherry_onnxruntime import plugin

FLOAT16 = onnx.TensorProto.FLOAT16
DEFAULTS = plugin.OnnxruntimeOptions().model_dump(mode="json")


def script(name: str):
    """A file that imports nothing of ours, loaded by its path as it is run."""
    path = Path(plugin.__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"onnxruntime_{name}", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)  # where Python looks first when it runs the file
        spec.loader.exec_module(module)
    return module


convert, runner = script("convert"), script("runner")


def network(body: str, *, opset: int = 17, domains: str = "", **weights) -> onnx.ModelProto:
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}{domains}]> '
        f"net (float[1,4] x) => (float[1,4] y) {{ {body} }}"
    )
    proto = onnx.parser.parse_model(text)
    for name, values in weights.items():
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}/{index}"
    return proto


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return session.run(None, {"x": x})[0]


# --- pre-flight ----------------------------------------------------------------------------------


def refused(tmp_path: Path, proto: onnx.ModelProto):
    onnx.save(proto, tmp_path / "model.onnx")
    model = Model.load(tmp_path / "model.onnx")
    return plugin.preflight(model, Target("onnxruntime", "fp32", "local"))


def test_all_of_onnx_and_the_contrib_operators_are_known(tmp_path):
    proto = network(
        'a = Relu(x) b = com.microsoft.Gelu(a) y = Clip(b)', domains=', "com.microsoft" : 1'
    )  # fmt: skip
    assert refused(tmp_path, proto) == []


def test_custom_operators_are_counted_and_named(tmp_path):
    proto = network("a = my.own.Twirl(x) b = Relu(a) y = my.own.Twirl(b)", domains=', "my.own" : 1')
    (item,) = refused(tmp_path, proto)
    assert (item.op_type, item.count, item.node) == ("my.own::Twirl", 2, "Twirl/0")
    assert "domain my.own" in item.remedy


def test_an_operator_of_a_known_domain_that_is_not_there(tmp_path):
    proto = network("y = com.microsoft.Twirl(x)", domains=', "com.microsoft" : 1')
    (item,) = refused(tmp_path, proto)
    assert item.op_type == "com.microsoft::Twirl"
    assert "ONNX's own operators" in item.remedy


def test_an_opset_that_is_too_new(tmp_path, monkeypatch):
    plugin._schemas.cache_clear()
    monkeypatch.setattr(plugin, "_schemas", lambda: {"Relu": {1, 14}})
    (item,) = refused(tmp_path, network("y = Relu(x)"))
    assert item.op_type == "every operator (opset 17)"
    assert "14" in item.remedy


# --- float16 -------------------------------------------------------------------------------------


def weights_of(proto: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in proto.graph.initializer}


def test_float_constants_of_every_kind_are_converted():
    proto = network(
        "a = Constant <value = float[1] {0.5}> () b = Constant <value_float = 2.0> () "
        "c = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> () "
        "d = Add(x, a) e = Mul(d, b) y = Sub(e, c)"
    )
    x = np.array([[1, -2, 3, -4]], np.float32)
    expected = run(proto, x)
    half, kept, clamped = convert.to_float16(proto)
    assert weights_of(half) == {"a": FLOAT16, "b": FLOAT16, "c": FLOAT16}
    assert (kept, clamped) == ([], [])
    np.testing.assert_allclose(run(half, x), expected, rtol=1e-3)


def test_inputs_and_outputs_stay_float32():
    half, _, _ = convert.to_float16(network("y = Relu(x)"))
    for value in (*half.graph.input, *half.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_values_beyond_the_range():
    """A factor counts and keeps its node in float32; a bound may be the largest float16."""
    proto = network(
        "a = Mul(x, large) b = Mul(a, small) y = Clip(b, low, high)",
        large=[3e5] * 4, small=[1e-5] * 4, low=np.float32(-3e38), high=np.float32(3e38),
    )  # fmt: skip
    x = np.array([[1, -2, 3, -4]], np.float32)
    half, kept, clamped = convert.to_float16(network_copy(proto))
    assert kept == ["Mul/0"]
    assert clamped == ["high", "low"]
    assert weights_of(half)["large"] == onnx.TensorProto.FLOAT
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in half.graph.initializer}
    assert np.isfinite([stored["low"], stored["high"]]).all()
    np.testing.assert_allclose(run(half, x), run(proto, x), rtol=2e-3)


@pytest.mark.parametrize(
    ("body", "keep", "casts"),
    [
        ("a = Mul(x, large) b = Mul(a, large) c = Mul(b, small) y = Mul(c, small)", "*", 0),
        ("a = Mul(x, large) b = Mul(a, large) c = Mul(b, small) d = Mul(c, small) y = Relu(d)",
         "abcd", 2),
        ("a = Mul(x, large) b = Mul(a, small) c = Relu(b) d = Mul(b, small) y = Add(c, d)",
         "abdy", 2),
        ("a = Relu(x) b = Mul(a, large) c = Mul(b, small) y = Mul(c, small)", "bcy", 2),
    ],
)  # fmt: skip
def test_between_nodes_that_stay_nothing_is_cast(body, keep, casts):
    """Values between two of them may be beyond float16, and keep the model's names."""
    proto = network(body, large=[1e4] * 4, small=[1e-4] * 4)
    x = np.array([[100, -200, 300, -400]], np.float32)
    names = [n.name for n in proto.graph.node if keep == "*" or n.output[0] in keep]
    half, _, _ = convert.to_float16(network_copy(proto), names)
    assert [node.op_type for node in half.graph.node].count("Cast") == casts
    made = {name for node in half.graph.node for name in node.output}
    assert {name for node in proto.graph.node for name in node.output} <= made
    exact = {} if keep != "*" else {"rtol": 0}
    np.testing.assert_allclose(run(half, x), run(proto, x), **{"rtol": 2e-3, **exact})


def network_copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def test_nodes_without_a_name_can_stay_in_float32_too():
    proto = network("a = Mul(x, large) y = Mul(a, small)", large=[1e6] * 4, small=[1e-6] * 4)
    for node in proto.graph.node:
        node.name = ""
    _, kept, _ = convert.to_float16(proto)
    assert len(kept) == 1
    assert kept[0]


def test_quantised_models_keep_their_scales():
    proto = network(
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Mul(d, w)",
        s=np.float32(3e-9), z=np.int8(0), w=[2.0] * 4, opset=19,
    )  # fmt: skip
    half, _, _ = convert.to_float16(proto)
    assert weights_of(half)["s"] == onnx.TensorProto.FLOAT
    assert weights_of(half)["w"] == FLOAT16
    onnxruntime.InferenceSession(half.SerializeToString())


def test_external_data_goes_along(tmp_path):
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    output.mkdir()
    proto = network("y = Add(x, w)", w=np.arange(4.0))
    onnx.save(
        proto, source / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    convert.convert(source / "m.onnx", output, "fp32")
    x = np.zeros((1, 4), np.float32)
    moved = output.rename(tmp_path / "elsewhere")
    session = onnxruntime.InferenceSession(moved / "model.onnx")
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], [[0, 1, 2, 3]])


def test_fp32_without_external_data_is_the_file_itself(tmp_path):
    onnx.save(network("y = Relu(x)"), tmp_path / "m.onnx")
    (tmp_path / "output").mkdir()
    convert.convert(tmp_path / "m.onnx", tmp_path / "output", "fp32")
    copied = (tmp_path / "output" / "model.onnx").read_bytes()
    assert copied == (tmp_path / "m.onnx").read_bytes()


def test_large_weights_get_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "_PROTOBUF_LIMIT", 1000)
    convert._save(network("y = Add(x, w)", w=np.ones((1000, 4))), tmp_path / "model.onnx")
    assert (tmp_path / "model.data").stat().st_size >= 16000


def test_a_model_that_does_not_load_is_refused_in_onnxruntimes_words(tmp_path):
    onnx.save(network("y = my.own.Twirl(x)", domains=', "my.own" : 1'), tmp_path / "m.onnx")
    request = {"model": str(tmp_path / "m.onnx"), "output": str(tmp_path), "precision": "fp32"}
    request["keep"] = []
    (tmp_path / "request").write_text(json.dumps(request))
    convert.main(str(tmp_path / "request"), str(tmp_path / "response"))
    error = json.loads((tmp_path / "response").read_text())["error"]
    assert "Twirl" in error["message"]
    assert error["remedy"]


# --- the runner ----------------------------------------------------------------------------------


def loaded(tmp_path: Path, **options):
    onnx.save(network("y = Relu(x)"), tmp_path / "model.onnx")
    artifact = {"outputs": [{"runtime": "y", "onnx": "y"}]}
    return runner.load(str(tmp_path), artifact, {**DEFAULTS, **options})


def test_runner(tmp_path):
    one = loaded(tmp_path, threads=2, spinning=False, execution="parallel")
    for values in ([[-1, 2, -3, 4]], [[1, -2, 3, -4]]):
        x = np.array(values, np.float32)
        one.set_inputs({"x": x})
        one.run()
        np.testing.assert_array_equal(one.get_outputs()["y"], np.maximum(x, 0))
    one.close()


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_provider_by_either_name(tmp_path, name):
    loaded(tmp_path, provider=name)


def test_a_provider_that_is_not_there_is_refused_with_what_is(tmp_path):
    with pytest.raises(ValueError, match=r"no provider 'cuda'; it has .*CPUExecutionProvider"):
        loaded(tmp_path, provider="cuda")


def test_a_provider_that_does_not_start_is_no_silent_fallback(tmp_path, monkeypatch):
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(runner.onnxruntime, "get_available_providers", lambda: listed)

    class Session:
        def __init__(self, *_arguments, providers, **_options):
            assert providers == listed

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(runner.onnxruntime, "InferenceSession", Session)
    with pytest.raises(ValueError, match="could not start CUDAExecutionProvider"):
        loaded(tmp_path, provider="cuda")


def test_versions():
    assert runner.versions() == {
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


@pytest.mark.parametrize(
    "options", [{"inter_threads": 0}, {"graph_optimization": "most"}, {"providers": "cpu"}]
)
def test_options_that_are_none(options):
    with pytest.raises(ValidationError):
        plugin.OnnxruntimeOptions(**options)


# --- the documentation ---------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs" / "backends" / "onnxruntime.md"


def test_the_documentation_names_every_option_pin_and_refusal():
    text = DOCS.read_text(encoding="utf-8")
    for name, option in plugin.OnnxruntimeOptions.model_fields.items():
        default = "none" if option.default == () else str(option.default).lower()
        assert re.search(rf"^\| `{name}` \| `?{re.escape(default)}`? \|", text, re.MULTILINE), name
    for entry in plugin.RUNTIMES:
        for requirement in (*entry.packages, *entry.no_deps):
            assert requirement.partition("==")[2].partition(";")[0] in text
    (backend,) = plugin.wherry_backends()
    assert all(f"`{word}`" in text for word in (*backend.precisions, *backend.refusals))

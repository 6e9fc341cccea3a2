"""The pass simplify: what it changes, what it must not change, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from wherry.errors import ModelError
from wherry_compress import simplify, work
from wherry_compress.basic import Simplify
from wherry_compress.job import Refusal


def network() -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, and a Reshape whose shape is computed from constants."""
    random = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        values = random.uniform(0.5, 1.5, shape).astype(np.float32)
        return numpy_helper.from_array(values, name)

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"], name="bn"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("Concat", ["one", "rest"], ["shape"], name="shape", axis=0),
        helper.make_node("Reshape", ["r", "shape"], ["y"], name="reshape"),
        helper.make_node("Relu", ["n"], ["unused"], name="dead"),
    ]
    weights = [constant("w", 3, 2, 3, 3), *(constant(name, 3) for name in "sbmv")]
    integers = [
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array([-1], np.int64), "rest"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 48])],
        [*weights, *integers],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="author", value="us")
    return model


def run(tmp_path: Path, model: onnx.ModelProto, **parameters) -> dict:
    onnx.save(model, tmp_path / "in.onnx")
    request = {
        "pass": "simplify",
        "function": "wherry_compress.simplify:apply",
        "model": str(tmp_path / "in.onnx"),
        "output": str(tmp_path / "out.onnx"),
        "parameters": Simplify(**parameters).model_dump(mode="json"),
        "data": {},
        "original": None,
        "seed": 0,
        "scratch": str(tmp_path),
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    work.main(str(tmp_path / "request.json"), str(tmp_path / "response.json"))
    return json.loads((tmp_path / "response.json").read_text())


def outputs(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x})[0]


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_folds_fuses_and_removes_and_stays_the_same_network(tmp_path: Path) -> None:
    model = network()
    response = run(tmp_path, model)
    assert response == {"figures": {"nodes_before": 6, "nodes_after": 3}, "warnings": []}
    slim = onnx.load(tmp_path / "out.onnx")
    assert operators(tmp_path / "out.onnx") == ["Conv", "Relu", "Reshape"]
    assert [node.name for node in slim.graph.node] == ["conv", "relu", "reshape"]
    assert [(p.key, p.value) for p in slim.metadata_props] == [("author", "us")]
    x = np.random.default_rng(1).standard_normal((1, 2, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(outputs(slim, x), outputs(model, x), rtol=1e-5, atol=1e-5)


def test_a_rewrite_that_is_skipped_is_not_done(tmp_path: Path) -> None:
    run(tmp_path, network(), skip=("graph_fusion",))
    assert "BatchNormalization" in operators(tmp_path / "out.onnx")


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    run(tmp_path, network())
    first = (tmp_path / "out.onnx").read_bytes()
    run(tmp_path, network())
    assert (tmp_path / "out.onnx").read_bytes() == first


def test_a_network_that_changed_is_refused_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = network()
    broken.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.ones((3, 2, 3, 3), np.float32), "w")
    )
    monkeypatch.setattr(simplify.onnxslim, "slim", lambda *_args, **_kwargs: broken)
    response = run(tmp_path, network())
    assert "differs from the original" in response["error"]["message"]
    assert response["error"]["remedy"]
    assert not (tmp_path / "out.onnx").exists()


def test_what_wherry_itself_refuses_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_job: object) -> None:
        raise ModelError("the inference failed", where="node 'a'", remedy="Correct it.")

    monkeypatch.setattr(simplify, "apply", refuse)
    error = {"message": "the inference failed", "remedy": "Correct it."}
    error["where"] = "pass simplify, node 'a'"
    assert run(tmp_path, network()) == {"error": error}


def test_a_refusal_says_that_the_model_is_quantised_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_job: object) -> None:
        raise Refusal("there is nothing to cut", remedy="Leave the pass out.")

    monkeypatch.setattr(simplify, "apply", refuse)
    assert run(tmp_path, network())["error"]["remedy"] == "Leave the pass out."
    given = network()
    scale = [numpy_helper.from_array(np.float32(0.1), "scale")]
    scale.append(numpy_helper.from_array(np.int8(0), "zero"))
    given.graph.initializer.extend(scale)
    pair = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="d"),
    ]
    given.graph.node[0].input[0] = "d"
    nodes = [*pair, *given.graph.node]
    del given.graph.node[:]
    given.graph.node.extend(nodes)
    remedy = run(tmp_path, given)["error"]["remedy"]
    assert remedy.startswith("Leave the pass out. The model is quantised already: ")


def test_unknown_rewrites_and_words_are_refused() -> None:
    with pytest.raises(ValidationError, match="constant_folding"):
        Simplify(skip=("everything",))
    with pytest.raises(ValidationError, match="extra"):
        Simplify(speed=11)

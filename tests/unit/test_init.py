"""``wherry init``: what it writes is read again, says what it guessed, and overwrites nothing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from wherry.cli import main
from wherry.cli.init import SIZES, init
from wherry.data.arrays import NpzParameters, load_npz
from wherry.dataset import DatasetSource
from wherry.device import Transport
from wherry.errors import DataError, ModelError, StoreError, UnsupportedError, UsageError
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.manifest import load_manifest
from wherry.metrics import MetricKind
from wherry.passes import Pass
from wherry.target import Backend, RuntimeOptions, Unsupported


def unused(*_):
    raise AssertionError("writing a manifest converts and measures nothing")


def refuses_softmax(model, target):
    found = [node for node in model.proto().graph.node if node.op_type == "Softmax"]
    return [Unsupported("Softmax", len(found), found[0].name, "Cut it.")] if found else []


class Plugin:
    @hookimpl
    def wherry_backends(self):
        common = {"description": "", "runner": Path("runner.py"), "artifact_format": "x"}
        yield Backend(name="plain", precisions=("fp32", "fp16", "int8"), **common)
        yield Backend(name="picky", precisions=("fp32",), preflight=refuses_softmax, **common)
        yield Backend(
            name="whole", precisions=("fp32", "int8"), calibrated=frozenset({"int8"}), **common
        )
        yield Backend(
            name="odd", precisions=("int8",), options=type("Odd", (RuntimeOptions,), {}), **common
        )

    @hookimpl
    def wherry_datasets(self):
        yield DatasetSource("npz", "", NpzParameters, load_npz)

    @hookimpl
    def wherry_metrics(self):
        for name in ("top1", "agreement", "cosine"):
            yield MetricKind(name, "", "higher", unused)

    @hookimpl
    def wherry_transports(self):
        yield Transport("local", "", RuntimeOptions, unused, host=True)

    @hookimpl
    def wherry_passes(self):
        yield Pass("simplify", "", RuntimeOptions)


@pytest.fixture(scope="module")
def host():
    return Host.load(builtins=False, plugins=(), extra=[Plugin()])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHERRY_CONFIG", str(tmp_path / "none"))


def save(path="net.onnx", *, inputs=None, operator="Identity"):
    """A network of one operator an input; the first axis is the batch."""
    inputs = inputs or {"x": ["batch", 4]}
    values, nodes, outputs = [], [], []
    for index, (name, shape) in enumerate(inputs.items()):
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        outputs.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, shape))
        nodes.append(helper.make_node(operator, [name], [f"y{index}"], name=f"n{index}"))
    graph = helper.make_graph(nodes, "net", values, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return model


def load(host, path="wherry.yaml"):
    return load_manifest(Path(path), host, env={})


def test_what_it_writes_is_read(host):
    save()
    assert init("net.onnx", host=host) == Path("wherry.yaml")
    manifest = load(host)
    assert manifest.model.path == Path("net.onnx").absolute()
    assert [(t.backend, t.precision) for t in manifest.targets] == [
        ("plain", "fp32"),
        ("plain", "fp16"),
        ("plain", "int8"),
        ("picky", "fp32"),
        ("whole", "fp32"),
        ("odd", "int8"),
    ]
    assert "With samples to calibrate on there is int8 too" in Path("wherry.yaml").read_text()
    assert (manifest.data, manifest.metrics, manifest.model.shapes) == ({}, (), {})


def test_what_it_puts_in_comments_is_right_too(host):
    save()
    path = init("net.onnx", host=host)
    Path("FILE.npz").touch()
    lines = [
        re.sub(r"^( *)# (?=[ a-z-])", r"\1", line) if not re.match(r" *# [A-Z`]", line) else line
        for line in path.read_text().splitlines()
        if "docs/manifest.md" not in line and "under its name" not in line
    ]
    path.write_text("\n".join(lines))
    manifest = load(host)
    assert set(manifest.model.preprocess["x"]) == {"scale", "mean", "std"}
    assert list(manifest.data) == ["evaluation"]
    assert [metric.key for metric in manifest.metrics] == ["cosine"]
    assert len(manifest.gates) == 2


def test_paths_start_at_the_manifest(host):
    Path("models").mkdir()
    Path("runs").mkdir()
    save("models/my net.onnx")
    Path("models/my net.onnx").rename("models/my $net.onnx")
    init("models/my $net.onnx", output="runs/a.yaml", host=host)
    assert 'path: "../models/my $$net.onnx"' in Path("runs/a.yaml").read_text()
    assert load(host, "runs/a.yaml").model.path.samefile("models/my $net.onnx")


@pytest.mark.parametrize("name", ["x:0", "true", "12", "a b", "$x", "${HOME}", "ü#", '"q"', "a\nb"])
def test_names_of_inputs_may_be_anything(host, name):
    save(inputs={name: ["batch", "width"]})
    init("net.onnx", host=host)
    assert load(host).model.shapes == {name: (1, 224)}


def test_open_axes_are_guessed_and_marked(host):
    save(inputs={"a": ["n", "c", "h", "w"], "b": ["n", 7, "n"], "d": ["n", "t"]})
    text = init("net.onnx", host=host).read_text()
    assert load(host).model.shapes == {"a": (1, 3, 224, 224), "d": (1, 224)}
    assert "shape: [1, 3, 224, 224]  # a guess that fits" in text
    assert "# float32, [n, c, h, w] in the file" in text


def test_a_guess_is_tried(host):
    weight = numpy_helper.from_array(np.ones((32, 2), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), "net.onnx")
    init("net.onnx", host=host)
    assert load(host).model.shapes == {"x": (1, 32)}


def test_no_guess_fits(host):
    weight = numpy_helper.from_array(np.ones((7, 2), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), "net.onnx")
    assert 7 not in SIZES
    with pytest.raises(ModelError, match="--shape x=1,3"):
        init("net.onnx", host=host)
    assert not Path("wherry.yaml").exists()
    text = init("net.onnx", shapes={"x": [1, 7]}, host=host).read_text()
    assert "shape: [1, 7]\n" in text
    assert load(host).model.shapes == {"x": (1, 7)}


def test_a_backend_that_does_not_take_the_model_is_left_out_and_said_so(host):
    save(operator="Softmax")
    text = init("net.onnx", host=host).read_text()
    assert "# picky is left out: 1 x Softmax (n0)" in text
    assert {target.backend for target in load(host).targets} == {"plain", "whole", "odd"}


def test_a_backend_that_needs_tools_of_a_boards_owner_is_left_out_and_said_so():
    class Tooled(Plugin):
        @hookimpl
        def wherry_backends(self):
            runner = Path("runner.py")
            yield Backend("tooled", "", ("fp32",), runner, "x", tools={"mill": ()})
            yield Backend("plain", "", ("fp32",), runner, "x")

    save()
    host = Host.load(builtins=False, plugins=(), extra=[Tooled()])
    text = init("net.onnx", host=host).read_text()
    assert "# tooled is left out: add it for a device that has mill" in text
    assert {target.backend for target in load(host).targets} == {"plain"}


def test_no_backend_takes_the_model():
    class Picky:
        @hookimpl
        def wherry_backends(self):
            yield Backend("picky", "", ("fp32",), Path("runner.py"), "x", preflight=refuses_softmax)

    save(operator="Softmax")
    picky = Host.load(builtins=False, plugins=(), extra=[Picky()])
    with pytest.raises(UnsupportedError, match="picky is left out: 1 x Softmax"):
        init("net.onnx", host=picky)


def test_no_backend_at_all():
    save()
    with pytest.raises(UsageError, match="no backend is installed"):
        init("net.onnx", host=Host.load(builtins=False, plugins=()))


# Data


def test_labelled_data_brings_metrics(host):
    save()
    np.savez("a.npz", x=np.ones((5, 4), np.float32), labels=np.arange(5) % 4)
    np.savez("b.npz", x=np.ones((5, 4), np.float32))
    init("net.onnx", data=["a.npz", "b.npz"], host=host)
    manifest = load(host)
    assert [metric.key for metric in manifest.metrics] == ["top1", "agreement"]
    assert {role: section.parameters.path.name for role, section in manifest.data.items()} == {
        "evaluation": "a.npz",
        "calibration": "b.npz",
    }
    assert manifest.model.preprocess == {}
    assert ("whole", "int8") in [(target.backend, target.precision) for target in manifest.targets]
    assert "With samples to calibrate on" not in Path("wherry.yaml").read_text()


def test_pictures_get_a_preprocessing(host):
    save(inputs={"x": ["batch", 3, 6, 5]})
    np.savez("a.npz", np.ones((2, 6, 5, 3), np.uint8))
    text = init("net.onnx", data=["a.npz"], host=host).read_text()
    assert load(host).model.preprocess == {"x": {"scale": 0.00392156862745098}}
    assert "a guess: as the network was trained" in text
    assert [metric.key for metric in load(host).metrics] == ["cosine"]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.ones((5, 3), np.float32)}, "shape 3 does not fit an input of shape 1x4"),
        ({"z": np.ones((5, 4), np.float32), "x": np.ones((5, 4), np.float32)}, "'z'"),
        ({"x": np.ones((0, 4), np.float32)}, "no samples"),
        ({"x": np.full((5, 4), np.nan, np.float32)}, "NaN"),
    ],
)
def test_data_that_does_not_fit_writes_nothing(host, arrays, says):
    save()
    np.savez("a.npz", **arrays)
    with pytest.raises(DataError) as caught:
        init("net.onnx", data=["a.npz"], host=host)
    assert says in str(caught.value)
    assert not Path("wherry.yaml").exists()


def test_three_files_of_data_are_too_many(host):
    save()
    with pytest.raises(UsageError, match="3 files of data"):
        init("net.onnx", data=["a", "b", "c"], host=host)


# Files


def test_nothing_is_overwritten_unasked(host):
    save()
    Path("wherry.yaml").write_text("mine")
    with pytest.raises(UsageError, match=r"wherry\.yaml exists already"):
        init("net.onnx", host=host)
    assert Path("wherry.yaml").read_text() == "mine"
    init("net.onnx", force=True, host=host)
    assert load(host).rows
    assert sorted(path.name for path in Path().iterdir()) == ["net.onnx", "wherry.yaml"]


def test_a_folder_that_is_not_there(host):
    save()
    with pytest.raises(StoreError, match="No such file or directory"):
        init("net.onnx", output="none/a.yaml", host=host)


def test_a_file_that_is_no_network(host):
    Path("net.onnx").write_text("a letter")
    with pytest.raises(ModelError):
        init("net.onnx", host=host)
    assert not Path("wherry.yaml").exists()


def test_the_verb(capsys, monkeypatch):
    monkeypatch.setenv("WHERRY_PLUGINS", "")
    save(inputs={"x": ["n", "t"]})
    assert main(["init", "net.onnx", "--shape", "x=1,9", "-o", "a.yaml"]) == 0
    assert "wrote a.yaml" in capsys.readouterr().out
    assert "shape: [1, 9]" in Path("a.yaml").read_text()
    assert main(["init", "net.onnx", "-o", "a.yaml"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["init", "net.onnx", "--shape", "x=a"]) == 2
    assert "'x=a' is not NAME=1,3,224,224" in capsys.readouterr().err
    assert main(["init", "gone.onnx"]) == 1

"""Bad manifests as data: ``cases.yaml`` beside this file, and the files that the cases name.

A test module says which stages it looks at (``STAGES = {"load"}``, ``"plan"``, ``"run"``) and takes
the fixture ``case``, one of those stages' cases, laid out in a folder of its own that is the
current one. What a case holds:

    name      unique
    stage     where it comes to light: load (reading the manifest), plan (wherry plan), run
    manifest  the text of manifest.yaml
    files     other files of text, by name
    env, set  variables of the environment; overrides of the command line
    error     the class of the error
    where     how the place of the first problem ends, as far as it can be told
    says      words that stand in the error
    schema    false: an editor cannot know, the JSON Schema takes it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from ruamel.yaml import YAML

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One bad manifest."""

    name: str
    stage: str
    manifest: str
    says: list[str]
    error: str = "ManifestError"
    where: str = ""
    files: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    set: list[str] = field(default_factory=list)
    schema: bool = True


CASES = [
    Case(**case)
    for case in YAML(typ="safe", pure=True).load(HERE.joinpath("cases.yaml").read_text())
]
if len({case.name for case in CASES}) != len(CASES):
    raise AssertionError("two cases have one name")


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        names = [case.name for case in CASES if case.stage in metafunc.module.STAGES]
        metafunc.parametrize("case", names, indirect=True)


@pytest.fixture
def lay_out(tmp_path, monkeypatch):
    """Lays out a case in a folder of its own, with the models and data that it may name."""

    def make_case(name: str) -> Case:
        (chosen,) = [case for case in CASES if case.name == name]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("WHERRY_CONFIG", str(tmp_path / "config"))
        for variable, value in chosen.env.items():
            monkeypatch.setenv(variable, value)
        Path("manifest.yaml").write_text(chosen.manifest, encoding="utf-8")
        for file_name, text in chosen.files.items():
            Path(file_name).write_text(text, encoding="utf-8")
        for file_name, make in FILES.items():
            if file_name in chosen.manifest:
                make(Path(file_name))
        return chosen

    return make_case


@pytest.fixture
def case(request, lay_out):
    """A case, laid out."""
    return lay_out(request.param)


# The files that cases name: small, made anew, none committed.

FILES: dict[str, Callable[[Path], None]] = {}


def file(name: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Enter a maker under the name of its file."""

    def enter(make: Callable[[Path], None]) -> Callable[[Path], None]:
        FILES[name] = make
        return make

    return enter


def network(width: int | str = 4, *, opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    """x [batch, width] to y [batch, 3]: means over the width, scaled by three weights."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
            helper.make_node("Mul", ["mean", "w"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array([[1.0, 2.0, 3.0]], np.float32), "w")],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir)


@file("net.onnx")
def _(path):
    onnx.save(network(), path)


@file("text.onnx")
def _(path):
    path.write_text("This is a letter and no network.\n")


@file("empty.onnx")
def _(path):
    path.touch()


@file("cut.onnx")
def _(path):
    path.write_bytes(network().SerializeToString()[:-20])


@file("opset.onnx")
def _(path):
    onnx.save(network(opset=99), path)


@file("ir.onnx")
def _(path):
    onnx.save(network(ir=99), path)


@file("open.onnx")
def _(path):
    onnx.save(network(width="width"), path)


@file("external.onnx")
def _(path):
    model = network()
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    Path("weights.bin").unlink()


@file("invalid.onnx")
def _(path):
    model = network()
    model.graph.node[0].input[0] = "nowhere"
    path.write_bytes(model.SerializeToString())


def samples(count: int = 6, width: int = 4) -> dict[str, np.ndarray]:
    """Arrays of an .npz file: inputs and labels."""
    rng = np.random.default_rng(1)
    return {
        "x": rng.normal(size=(count, width)).astype(np.float32),
        "labels": np.arange(count) % 3,
    }


@file("data.npz")
def _(path):
    np.savez(path, **samples())


@file("none.npz")
def _(path):
    np.savez(path, **samples(count=0))


@file("wide.npz")
def _(path):
    np.savez(path, **samples(width=5))


@file("nan.npz")
def _(path):
    arrays = samples()
    arrays["x"][4, 2] = np.nan
    np.savez(path, **arrays)


@file("labels.npz")
def _(path):
    arrays = samples()
    arrays["labels"][3] = 3
    np.savez(path, **arrays)


@file("unlabelled.npz")
def _(path):
    np.savez(path, x=samples()["x"])


@file("uneven.npz")
def _(path):
    arrays = samples()
    arrays["labels"] = arrays["labels"][:-1]
    np.savez(path, **arrays)


@file("broken.npz")
def _(path):
    path.write_bytes(b"PK\x03\x04 and then nothing of use")


@file("pickle.npz")
def _(path):
    np.savez(path, x=np.array([{"no": "array"}], dtype=object))

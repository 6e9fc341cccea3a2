"""Every hook has an example in its docstring that runs, and its signature stands in the docs."""

import ast
import inspect
import logging
import re
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from wherry import hookspecs
from wherry.calibration import Calibration
from wherry.host import KINDS, STAGES, Host
from wherry.measurement import Measurement
from wherry.model import Model, TensorSpec
from wherry.passes import PassStep
from wherry.target import Target

HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("wherry_")}


def example(hook) -> types.ModuleType:
    """The indented block below the line that ends in ``::``, as a plugin's module."""
    documentation = inspect.getdoc(hook)
    found = re.search(r"^Example.*::\n\n((?:    .*\n|\n)+)", documentation + "\n", re.MULTILINE)
    assert found, f"{hook.__name__} has no example"
    module = types.ModuleType(f"example_of_{hook.__name__}")
    module.__file__ = "/example/plugin.py"
    exec(compile(inspect.cleandoc(found[1]), module.__file__, "exec"), vars(module))
    return module


def load(*modules) -> Host:
    host = Host.load(plugins=(), builtins=False, extra=modules)
    assert not host.skipped
    return host


class Context:
    """What a step's context offers to the examples."""

    round = 0

    def __init__(self, folder: Path):
        self.output, self.said = folder, []

    def progress(self, text):
        self.said.append(text)


@pytest.fixture
def model(tmp_path) -> Model:
    weight = numpy_helper.from_array(np.full((4, 2), 0.123456, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [weight],
    )
    path = tmp_path / "given.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return Model.load(path)


@pytest.fixture
def context(tmp_path) -> Context:
    (tmp_path / "output").mkdir()
    return Context(tmp_path / "output")


def test_the_host_knows_every_hook():
    assert set(HOOKS) == {f"wherry_{kind}" for kind in KINDS} | set(STAGES)
    assert all(hook.wherry_spec["firstresult"] == (name in STAGES) for name, hook in HOOKS.items())


@pytest.mark.parametrize("kind", KINDS)
def test_example_of_a_registration_hook(kind):
    host = load(example(HOOKS[f"wherry_{kind}"]))
    provided = host.commands() if kind == "commands" else getattr(host, kind)
    assert len(provided) == 1
    (descriptor,) = provided.values()
    assert isinstance(descriptor, KINDS[kind])
    if kind != "commands":  # a command says in its help what the others say in a line
        assert descriptor.description and "\n" not in descriptor.description


def test_the_examples_of_what_is_run_do_run(tmp_path, model):
    host = load(*(example(HOOKS[f"wherry_{kind}"]) for kind in ("datasets", "metrics", "models")))
    source = host.datasets["ramps"]
    data = source.load(source.parameters(count=3), None)
    assert [sample.label for sample in data] == [0, 1, 2]
    metric = host.metrics["worst_error"].create(None)
    metric.update({"y": np.zeros(2)}, {"y": np.array([0.5, -2.0])}, None)
    assert metric.result() == 2.0
    zoo = host.models["only_relu"]
    zoo.build(zoo.parameters(width=7), tmp_path / "relu.onnx")
    assert Model.load(tmp_path / "relu.onnx").inputs == (TensorSpec("x", "float32", (1, 7)),)


def test_example_of_optimize(model, context):
    host = load(example(hookspecs.wherry_optimize))
    step = PassStep("round.weights", host.passes["round.weights"].parameters(digits=2))
    rounded = host.optimize(model, step, context)
    (weight,) = rounded.proto().graph.initializer
    assert np.all(numpy_helper.to_array(weight) == np.float32(0.12))
    assert rounded.path.parent == context.output


def test_example_of_calibrate(model, context):
    host = load(example(hookspecs.wherry_calibrate))
    found = host.calibrate(model, None, Target("mine", "int8", "local"), context)
    assert found == Calibration("known range", 0, {"x": (0.0, 1.0)})
    assert context.said


def test_example_of_convert(model, context):
    host = load(example(hookspecs.wherry_convert))
    artifact = host.convert(model, Target("mine", "fp32", "local"), None, context)
    assert set(artifact.files) == {"model.onnx"}
    assert artifact.inputs[0].shape == (1, 4)


def test_example_of_profile_is_a_wrapper(context):
    def wherry_profile():
        return Measurement(np.ones(1), np.ones(1), (1,), (0.0,), (0.0,), (0,), (True,))

    default = types.ModuleType("default")
    default.wherry_profile = hookspecs.hookimpl(trylast=True)(wherry_profile)
    host = load(default, example(hookspecs.wherry_backends), example(hookspecs.wherry_profile))
    target = Target("mine", "fp32", "local")
    assert host.profile(None, target, None, None, context).infer_ns.size == 1
    assert context.said == ["round 0 of mine-fp32-local took 0.0 s"]


def signatures() -> dict[str, str]:
    """Each hook as its source says, on one line."""
    tree = ast.parse(inspect.getsource(hookspecs))
    return {
        node.name: f"{node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }


def test_the_docs_have_every_hook_with_its_exact_signature():
    text = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
    documented = re.findall(r"^```python\n(wherry_\w+\(.*)\n```$", text, re.MULTILINE)
    assert sorted(documented) == sorted(signatures().values())


def test_a_hook_without_an_example_is_noticed():
    def wherry_nothing():
        """Says nothing."""

    with pytest.raises(AssertionError, match="wherry_nothing has no example"):
        example(wherry_nothing)


@pytest.fixture(autouse=True)
def no_warnings_of_the_host(caplog):
    yield
    assert not [
        r for r in caplog.records if r.name == "wherry.host" and r.levelno >= logging.WARNING
    ]

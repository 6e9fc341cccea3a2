"""The kit's parity test on the local device: a right backend passes, and each fault is found."""

import shutil
from dataclasses import replace

import pytest

from wherry.artifact import Artifact, Binding
from wherry.errors import ParityError, ToolError, UnsupportedError
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.target import Backend
from wherry.testing import BackendSuite

pytestmark = pytest.mark.usefixtures("wherry_home")

RUNNER = """
from __future__ import annotations
import onnxruntime

def load(directory, artifact, options):
    return Runner(directory + "/model.onnx")

class Runner:
    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]
        self.outputs = {}

    def set_inputs(self, inputs):
        self.inputs = inputs

    def run(self):
        self.outputs = dict(zip(self.names, self.session.run(self.names, self.inputs)))

    def get_outputs(self):
        return self.outputs

    def close(self):
        pass
"""


class Copy:
    """A plugin whose backend copies the model and runs it on ONNX Runtime."""

    def __init__(self, runner, mend=lambda artifact: artifact):
        self.runner, self.mend = runner, mend

    @hookimpl
    def wherry_backends(self):
        yield Backend(
            "copy", "for tests", ("fp32",), self.runner, "onnx", convert_files=(self.runner,)
        )

    @hookimpl
    def wherry_convert(self, model, target, context):
        if "example.test::NoSuchOperator" in model.operators():
            raise UnsupportedError("no such operator")
        shutil.copyfile(model.path, context.output / "model.onnx")
        artifact = Artifact.from_directory(
            context.output,
            backend="copy",
            precision=target.precision,
            format="onnx",
            inputs=tuple(self.bind(spec) for spec in model.inputs),
            outputs=tuple(self.bind(spec) for spec in model.outputs),
        )
        return self.mend(artifact)

    @staticmethod
    def bind(spec):
        return Binding(spec.name, spec.name, spec.dtype, spec.static_shape)


class Suite(BackendSuite):
    name = "copy"


def check(tmp_path, text=RUNNER, network="two_by_two", **arguments) -> None:
    runner = tmp_path / "runner.py"
    runner.write_text(text)
    host = Host.load(plugins=(), extra=[Copy(runner, **arguments)])
    Suite().test_parity(network, host, host.backends["copy"], tmp_path)


def test_a_right_backend_passes(tmp_path):
    check(tmp_path)


FAULTS = {
    "another value": (
        "return self.outputs",
        "return {n: v * 1.01 for n, v in self.outputs.items()}",
    ),
    "outputs mixed up": ("dict(zip(self.names,", "dict(zip(self.names[::-1],"),
    "the last sample's outputs": (
        "return self.outputs",
        "last, self.last = getattr(self, 'last', self.outputs), self.outputs; return last",
    ),
    "an output is missing": ("return self.outputs", "return dict([*self.outputs.items()][:1])"),
}


@pytest.mark.parametrize(("right", "wrong"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_runner_is_found(right, wrong, tmp_path):
    assert right in RUNNER
    with pytest.raises((AssertionError, ParityError, ToolError)):
        check(tmp_path, RUNNER.replace(right, wrong))


def test_an_artifact_of_another_format_is_found(tmp_path):
    with pytest.raises(AssertionError):
        check(tmp_path, mend=lambda artifact: replace(artifact, format="other"))
    with pytest.raises(AssertionError):
        check(tmp_path, mend=lambda artifact: replace(artifact, inputs=artifact.inputs[::-1]))


def test_an_unknown_operator_has_to_be_refused(tmp_path):
    runner = tmp_path / "runner.py"
    runner.write_text(RUNNER)
    host = Host.load(plugins=(), extra=[Copy(runner)])
    Suite().test_unknown_operator_is_not_converted(host, host.backends["copy"], tmp_path)

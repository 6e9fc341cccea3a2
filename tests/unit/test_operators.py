"""What backends say of operators, in general and of a model's; the verb that shows it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx.parser
import pytest
from click.testing import CliRunner

from wherry import operators
from wherry.cli.plugins import command, plugins_operators
from wherry.errors import EnvironmentError_, UsageError
from wherry.host import Host
from wherry.operators import Support
from wherry.target import no_preflight
from wherry_ncnn import operators as of_ncnn
from wherry_ncnn import support as ncnn_support
from wherry_tflite import operators as of_tflite
from wherry_tflite import support as tflite_support


class Tools:
    """Plays the tools: gives one answer."""

    def __init__(self, **answer):
        self.answer, self.asked = answer, []

    def run_tool(self, script, request, *, requirements):
        assert script.is_file()
        self.asked.append(request)
        return self.answer


@pytest.fixture(scope="module")
def host():
    return Host.load()


@pytest.fixture
def network(tmp_path) -> Path:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[N,4] x) => (float[N,4] y, int64[N,1] i) {
        a = Relu(x) b = Softsign(a) y = Sigmoid(b) i = ArgMax<axis = 1>(y)
    }"""
    path = tmp_path / "net.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_onnxruntime_is_asked_for_its_kernels():
    found = plugins_operators(backends=["onnxruntime"])["onnxruntime"]
    for name in ("Conv", "HardSwish", "Constant", "com.microsoft::FusedConv"):
        assert found[name] == {"level": "yes", "reason": ""}
    assert "NoSuchOperator" not in found
    assert {row["level"] for row in found.values()} == {"yes", "no"}


def test_onnx2tf_is_asked_for_its_list():
    tools = Tools(operators=["Conv", "Relu", "Unique"])
    found = tflite_support.operators(tools, None)
    assert found["Relu"] == Support("yes")
    assert found["Attention"] == Support("yes"), "it is written with others"
    assert (found["Conv"].level, found["Unique"].level) == ("partly", "no")
    assert "Sigmoid" not in found


def test_every_rule_of_tflite_is_said_in_words():
    assert tflite_support.PARTLY.keys() == of_tflite.RULES.keys()


def test_ncnn_is_asked_for_its_layers():
    found = ncnn_support.operators(Tools(layers=list(of_ncnn.LAYERS)), None)
    assert found["Relu"] == Support("yes")
    assert found["Slice"].level == "partly"
    assert found["ArgMax"].level == "no"
    with pytest.raises(EnvironmentError_, match="lacks the layers LSTM"):
        ncnn_support.operators(Tools(layers=list(of_ncnn.LAYERS - {"LSTM"})), None)
    assert ncnn_support.PARTLY.keys() <= of_ncnn.OPERATORS


def test_the_operators_of_a_model(host, network):
    found = operators.ask_for(host, network)
    asked = {name for name, backend in host.backends.items() if backend.preflight != no_preflight}
    assert set(found) >= asked >= {"onnxruntime", "tflite", "ncnn"}
    assert found["onnxruntime"]["Softsign"] == Support("yes")
    refused = found["ncnn"]["Softsign"]
    assert refused.level == "no"
    assert refused.reason.startswith("1 node, first 'Softsign_b': ")


def test_a_backend_that_there_is_not(host):
    with pytest.raises(UsageError, match="there is no backend 'tfltie'"):
        operators.ask(host, ["tfltie"])


def test_the_verb(network):
    runner = CliRunner()
    arguments = ["operators", "--model", str(network), "--backend", "onnxruntime"]
    shown = runner.invoke(command, arguments)
    assert shown.exit_code == 0
    assert "Softsign" in shown.output
    values = json.loads(runner.invoke(command, [*arguments, "--json"]).output)
    assert values["onnxruntime"]["Relu"] == {"level": "yes", "reason": ""}

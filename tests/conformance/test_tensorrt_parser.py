"""NVIDIA's own parser and ahead-of-time builder, of TensorRT-RTX, take the files that we make.

They need no GPU. That they take a file does not say that it runs on a Jetson.
"""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import onnx
import pytest
from loading import load

import wherry_tensorrt
from wherry.engine.environments import Environments
from wherry.errors import UnsupportedError
from wherry.host import Host
from wherry.model import Model
from wherry.operators import Tools
from wherry.target import Target
from wherry.testing.networks import build, samples
from wherry.testing.workshop import Workshop
from wherry_tensorrt import operators
from wherry_tensorrt.plugin import TensorrtOptions

pytestmark = pytest.mark.backend

HERE = Path(__file__).parent
PICTURE = 64  # the side of the classic networks' pictures


@pytest.fixture(scope="module")
def environments(home_of_trials) -> Environments:
    return Environments(home_of_trials, threading.Event())


class Maker:
    """Makes artifacts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workshop = Workshop(Host.load(), folder)
        self.models: dict[str, Model] = {}  # each is read once for all precisions

    def make(self, name: str, proto: onnx.ModelProto, precision: str, feed, **options):
        if name not in self.models:
            folder = self.folder / name
            folder.mkdir()
            onnx.save(proto, folder / "given.onnx")
            self.models[name] = Model.load(folder / "given.onnx").with_static_shapes({}, folder)
        model = self.models[name]
        target = Target("tensorrt", precision, "local", TensorrtOptions(**options))
        return self.workshop.convert(model, target, [feed(model.proto(), seed) for seed in (0, 1)])


@pytest.fixture(scope="module")
def maker(home_of_trials, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHERRY_HOME", str(home_of_trials))
        yield Maker(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def files(maker, networks) -> dict[str, str]:
    """``NETWORK PRECISION FILE`` to the path of every file, each once."""
    classics = load(HERE / "classics.py").CLASSICS
    protos = {name: builder(networks.Net(name), PICTURE) for name, builder in classics.items()}
    protos["quickstart"] = onnx.load(HERE.parents[1] / "manifests" / "digits.onnx")
    found = {}
    for name, proto in protos.items():
        for precision in ("fp32", "fp16", "int8"):
            artifact = maker.make(name, proto, precision, networks.sample)
            for path in sorted(artifact.directory.glob("*.onnx")):
                if (precision, path.name) != ("fp16", "model.onnx"):  # the same as of fp32
                    found[f"{name} {precision} {path.name}"] = str(path)
    return found


@pytest.fixture(scope="module")
def told(files, environments, tmp_path_factory) -> dict:
    """What NVIDIA's parser and builder say of each path."""
    scratch = tmp_path_factory.mktemp("parsed")
    tools = Tools(environments, scratch)
    request = {"what": "models", "files": list(files.values()), "build": "SM86"}
    script = Path(wherry_tensorrt.__file__).with_name("parse.py")
    return tools.run_tool(script, request, requirements=operators.PARSER)["models"]


def test_every_file_is_taken(files, told):
    """Eight networks in three precisions: all are parsed and built."""
    assert len(files) >= 8 * 4
    refused = {
        name: told[path]["problems"] for name, path in files.items() if told[path]["problems"]
    }
    assert refused == {}
    assert all(told[path]["bytes"] > 0 for path in files.values())


def test_its_layers_have_the_names_of_nodes(files, told):
    """The mapping of layers rests on it."""
    path = files["resnet18 fp32 model.onnx"]
    nodes = {node.name for node in onnx.load(path, load_external_data=False).graph.node}
    heavy = {n.name for n in onnx.load(path).graph.node if n.op_type in {"Conv", "Gemm", "Add"}}
    assert heavy <= set(told[path]["layers"])
    assert len(nodes & set(told[path]["layers"])) > 0.8 * len(nodes)


def test_operators_are_those_that_it_knows(environments, tmp_path):
    names = sorted({each.name for each in onnx.defs.get_all_schemas() if not each.domain})
    tools = Tools(environments, tmp_path)
    script = Path(wherry_tensorrt.__file__).with_name("parse.py")
    request = {"what": "operators", "names": names}
    found = set(tools.run_tool(script, request, requirements=operators.PARSER)["operators"])
    assert operators.KNOWN - found == set()
    assert found - operators.KNOWN <= {"CausalConvWithState", "LinearAttention"}
    assert operators.operators(tools).keys() == operators.KNOWN


def test_check_parser(maker, networks):
    """As an option of a target: who read the files is in the artifact; what it refuses is told."""
    net = networks.Net("plain")
    proto = net.model(y=net.op("Relu", net.conv(net.input("x", 1, 3, 8, 8), 3, 4)))
    artifact = maker.make("plain", proto, "int8", networks.sample, check_parser=True)
    assert "NVIDIA's parser (TensorRT-RTX" in artifact.provenance["parsed_by"]
    net = networks.Net("odd")
    x = net.input("x", 1, 3, 8, 8)
    proto = net.model(y=net.op("LpPool", x, kernel_shape=[2, 2], p=3))
    with pytest.raises(UnsupportedError, match=r"NVIDIA's parser refuses model\.onnx: LpPool"):
        maker.make("odd", proto, "fp32", networks.sample, check_parser=True)


def test_pythons_module_builds_what_trtexecs_arguments_say(maker, environments, tmp_path):
    """The runner's own way to build, on NVIDIA's API."""
    build("residual", tmp_path / "net.onnx")
    proto = onnx.load(tmp_path / "net.onnx")

    def feed(proto, seed):
        return samples(Model.load(tmp_path / "net.onnx"), seed + 1)[seed]

    shapes = [{"input": "image", "min": (1, 4, 10, 13), "max": (4, 4, 10, 13)}]
    typed = maker.make("built", proto, "int8", feed).directory / "typed.onnx"
    open_axes = maker.make("open", proto, "fp16", feed, shapes=shapes).directory / "typed.onnx"
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    timing = tmp_path / "timing.cache"
    ends = ["--saveEngine=engine.plan", "--skipInference"]
    cases = [
        [f"--onnx={typed}", "--profilingVerbosity=detailed", f"--timingCacheFile={timing}", *ends],
        [
            f"--onnx={open_axes}", "--noTF32", "--minShapes=image:1x4x10x13",
            "--optShapes=image:1x4x10x13", "--maxShapes=image:4x4x10x13", "--sparsity=enable",
            "--memPoolSize=workspace:64", "--builderOptimizationLevel=2", *ends,
        ],
        [f"--onnx={broken}", *ends],
    ]  # fmt: skip
    given = {"plugins": str(Path(wherry_tensorrt.__file__).parents[1]), "cases": []}
    for index, arguments in enumerate(cases):
        folder = tmp_path / str(index)
        folder.mkdir()
        given["cases"].append({"arguments": arguments, "folder": str(folder)})
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(given))
    python = environments.ensure(operators.PARSER)
    subprocess.run([python, HERE / "rtx_build.py", path], check=True, timeout=200)
    told = json.loads(Path(f"{path}.out").read_text())
    assert {"--stronglyTyped", "--memPoolSize", "--noTF32"} <= set(told["capabilities"])
    assert not {"--fp16", "--int8", "--calib"} & set(told["capabilities"])
    first, second, failed = told["cases"]
    assert first["engine.plan"] > 0
    assert second["engine.plan"] > 0
    assert "does not parse the model" in failed

"""MACE's plugin without MACE: bytes of the format, names, refusals, int8, files beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from mace_file import fields
from mace_net import Interpreter, read
from onnx import numpy_helper
from ruamel.yaml import YAML

from wherry.artifact import hash_file
from wherry.calibration import Calibration
from wherry.engine import worker
from wherry.errors import ToolError, UnsupportedError
from wherry.host import Host
from wherry.model import Model
from wherry.normalise import normalise
from wherry.reference import Reference, open_session, run_session
from wherry.target import Target
from wherry_mace import deployment, operators
from wherry_mace.format import Constant, Net, Op, Quantisation, Tensor, write
from wherry_mace.quantise import quantisation, quantise
from wherry_mace.translate import ALSO, rename

HERE = Path(__file__).parent
GOLDEN = HERE / "mace_golden"
RANGES = {"x": (-1.5, 2.5), "r": (0.0, 3.0), "p": (0.0, 3.0), "y": (-4.0, 1.0)}

TINY = """<ir_version: 8, opset_import: ["" : 17]>
tiny (float[1,2,4,6] x) => (float[1,3] y)
<float[4,2,3,3] w = {W}, float[4] b = {0.5, -0.25, 0.125, 1}, float[3,4] v = {V}>
{
    c = Conv <kernel_shape = [3,3], strides = [1,2], pads = [1,0,1,1]> (x, w, b)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, v)
}"""


def numbers(count: int) -> str:
    return "{" + ", ".join(str((i * 7 % 11 - 5) / 8) for i in range(count)) + "}"


@pytest.fixture
def make(tmp_path):
    """A model of ONNX's text form, with static shapes and names."""

    def build(text: str) -> Model:
        proto = onnx.parser.parse_model(text)
        for node in proto.graph.node:
            node.name = node.name or f"/{node.op_type}/{node.output[0]}"
        onnx.save(proto, tmp_path / "given.onnx")
        (tmp_path / "static").mkdir(exist_ok=True)
        return Model.load(tmp_path / "given.onnx").with_static_shapes({}, tmp_path / "static")

    return build


@pytest.fixture
def tiny(make):
    return make(TINY.replace("{W}", numbers(72)).replace("{V}", numbers(12)))


@pytest.fixture
def backend():
    return Host.load().backends["mace"]


@pytest.fixture
def convert(backend, tmp_path):
    """``convert(model, precision, **options)``: the artifact, and what it warned of."""
    host, count = Host.load(), iter(range(100))

    def run(model, precision="fp32", calibration=None, **options):
        folder = tmp_path / f"made{next(count)}"
        context = SimpleNamespace(
            output=folder / "output", scratch=folder / "scratch", warned=[], tools=[]
        )
        for path in (context.output, context.scratch, folder / "normal"):
            path.mkdir(parents=True)
        context.warn = context.warned.append
        context.normalised = lambda given, also: normalise(given, folder / "normal", also)

        def run_tool(script, request, *, requirements):
            return worker.run_tool(
                Path(sys.executable), script, request,
                scratch=context.scratch, log=folder / "log", limits=worker.Limits(),
            )  # fmt: skip

        context.run_tool = run_tool
        target = Target("mace", precision, "local", backend.options(**options))
        return host.convert(model, target, calibration, context), context.warned

    return run


def run(artifact, sample):
    network = read(artifact.directory / "model.pb", artifact.directory / "model.data")
    outputs = Interpreter(network).run({b.runtime: sample[b.onnx] for b in artifact.inputs})
    return {b.onnx: outputs[b.runtime] for b in artifact.outputs}


def sqnr(values, wanted):
    noise = np.sum((values - wanted) ** 2, dtype=np.float64)
    return float(10 * np.log10(np.sum(wanted**2, dtype=np.float64) / max(noise, 1e-30)))


SAMPLE = {"x": np.linspace(-1.5, 2.5, 48, dtype=np.float32).reshape(1, 2, 4, 6)}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_golden_files(tiny, convert, precision):
    """The bytes are those that were looked at: another byte has to be meant."""
    calibration = Calibration("minmax", 1, RANGES) if precision == "int8" else None
    artifact, warned = convert(tiny, precision, calibration)
    assert not warned
    made = {name: (artifact.directory / name).read_bytes() for name in artifact.files}
    assert set(made) == {"model.pb", "model.data"}
    for name, data in made.items():
        path = GOLDEN / f"{precision}{Path(name).suffix}"
        assert data == path.read_bytes(), f"{path.name} has other bytes"
    found, wanted = run(artifact, SAMPLE)["y"], Reference(tiny).run(SAMPLE)["y"]
    assert sqnr(found, wanted) > {"fp32": 100, "fp16": 50, "int8": 20}[precision]


def test_half_the_weights_and_a_quarter(tiny, convert):
    sizes = {}
    for precision in ("fp32", "fp16", "int8"):
        artifact, _ = convert(tiny, precision, Calibration("minmax", 1, RANGES))
        sizes[precision] = (artifact.directory / "model.data").stat().st_size
    weights = 72 + 4 + 12
    assert sizes == {"fp32": 4 * weights, "fp16": 2 * weights, "int8": 72 + 4 * 4 + 12}


def test_what_does_not_fit_float16_stays(make, convert):
    model = make("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,2] x) => (float[1,2] y) <float[1,2] w = {1e6, 2.0}> { y = Mul(x, w) }""")
    artifact, _ = convert(model, "fp16")
    sample = {"x": np.float32([[1.5, -2.0]])}
    assert run(artifact, sample)["y"].tolist() == [[1.5e6, -4.0]]


# --- format ---------------------------------------------------------------------------------------

arrays = st.one_of(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=9).map(
        lambda v: np.asarray(v, np.float32)
    ),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9).map(lambda v: np.asarray(v, np.int32)),
    st.lists(st.integers(0, 255), max_size=9).map(lambda v: np.asarray(v, np.uint8)),
)
values = st.one_of(
    st.integers(-(2**40), 2**40),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.lists(st.integers(-9, 10**9), max_size=4),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=4),
)


@given(
    st.dictionaries(st.text(max_size=6), arrays, max_size=5),
    st.dictionaries(st.text("abcdef", min_size=1, max_size=6), values, max_size=5),
)
def test_the_reader_reads_what_the_writer_wrote(tmp_path_factory, constants, arguments):
    folder = tmp_path_factory.mktemp("net")
    op = Op("Anything", "op", ("x",), ("y",), ((1, 2, 3, 4),), arguments, free=True)
    tensors = (Tensor("x", (1, 2, 3, 4)),), (Tensor("y", (5,)),)
    net = Net((op,), {k: Constant(v, Quantisation(0.5, 3)) for k, v in constants.items()}, *tensors)
    definition, data = write(net, "m", half=False, runtime="cpu")
    (folder / "m.pb").write_bytes(definition)
    (folder / "m.data").write_bytes(data)
    assert write(net, "m", half=False, runtime="cpu") == (definition, data)
    found = read(folder / "m.pb", folder / "m.data")
    assert set(found.weights) == (set(constants) or {"wherry/nothing"})
    for name, array in constants.items():
        assert found.weights[name].values.dtype == array.dtype
        assert np.array_equal(found.weights[name].values, array)
    (made,) = found.operations
    assert made.shapes == [[1, 3, 4, 2]]
    assert found.inputs[0].dims == [1, 3, 4, 2] and found.outputs[0].dims == [5]
    for name, value in arguments.items():
        assert made.arguments.get(name) == value


@given(st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=6, unique=True))
def test_names_for_mace_run(names):
    """Safe, and apart as files too; safe ones that are apart stay."""
    half = max(1, len(names) // 2)
    ops = (Op("Sum", "op", tuple(names[:half]), tuple(names[half:]), ((1,),) * len(names[half:])),)
    inputs = tuple(Tensor(name, (1,)) for name in names[:half])
    outputs = tuple(Tensor(name, (1,)) for name in names[half:])
    net, mapping = rename(Net(ops, {}, inputs, outputs))
    made = [mapping[name] for name in names]
    assert all(set(name) <= set("_./:-") | set(map(chr, range(48, 123))) for name in made)
    assert not any("," in name or "\n" in name for name in made)
    files = ["".join(c if c.isascii() and c.isalnum() else "_" for c in name) for name in made]
    assert len(set(files)) == len(files)
    assert [t.name for t in (*net.inputs, *net.outputs)] == made
    assert (*net.ops[0].inputs, *net.ops[0].outputs) == tuple(made)


# --- refusals -------------------------------------------------------------------------------------


def test_preflight_names_operator_node_count_and_remedy(make, backend):
    model = make(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4,6,6] x) => (float[1,4,6,6] y) {
            a = Erf(x) b = Erf(a) c = Gelu(b) y = Floor(c)
        }""".replace("c = Gelu(b)", "c = Softplus(b)")
    )
    found = backend.preflight(model, Target("mace", "fp32", "local", backend.options()))
    assert [(each.op_type, each.count, each.node) for each in found] == [
        ("Erf", 2, "/Erf/a"),
        ("Softplus", 1, "/Softplus/c"),
        ("Floor", 1, "/Floor/y"),
    ]
    assert all(each.remedy.endswith(".") for each in found)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("y = Conv <kernel_shape=[3,3], strides=[2,2], dilations=[2,2]> (x, w)", "a dilation"),
        ("y = MaxPool <kernel_shape=[2,2], storage_order=0> (x)", ""),
        ("y = AveragePool <kernel_shape=[3,3], pads=[2,2,0,0]> (x)", "as much padding"),
        ("y = Pad <mode=\"edge\"> (x, pads)", "constant or reflects"),
    ],
)  # fmt: skip
def test_forms_that_would_be_wrong_are_refused(make, backend, body, words):
    model = make(_with_shape(body))
    found = backend.preflight(model, Target("mace", "fp32", "local", backend.options()))
    assert bool(found) == bool(words)
    if words:
        assert words in found[0].remedy


def _with_shape(body: str) -> str:
    sizes = {"Conv": "3,3", "MaxPool": "8,8", "AveragePool": "9,9", "Pad": "11,11"}
    kind = body.split("=")[1].split(maxsplit=1)[0].strip("(")
    return f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4,9,9] x) => (float[1,4,{sizes[kind]}] y)
        <float[4,4,3,3] w = {numbers(144)}, int64[8] pads = {{0,0,1,1,0,0,1,1}}> {{ {body} }}"""


def test_int8_on_the_gpu_is_refused(tiny, convert, backend):
    (found,) = backend.preflight(
        tiny, Target("mace", "int8", "local", backend.options(runtime="gpu"))
    )
    assert "runtime: cpu" in found.remedy
    with pytest.raises(UnsupportedError, match=r"int8 on the CPU alone.*runtime: cpu"):
        convert(tiny, "int8", Calibration("minmax", 1, RANGES), runtime="gpu")


def test_pictures_in_an_order_that_a_gpu_has_not(make, backend, convert):
    model = make("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4,3,5] x) => (float[1,60] y) { a = Relu(x) y = Flatten(a) }""")
    (found,) = backend.preflight(
        model, Target("mace", "fp16", "local", backend.options(runtime="gpu"))
    )
    assert (found.op_type, found.node) == ("Flatten", "/Flatten/y")
    assert "runtime: cpu" in found.remedy
    assert not backend.preflight(model, Target("mace", "fp16", "local", backend.options()))
    with pytest.raises(UnsupportedError, match="Flatten"):
        convert(model, "fp16", runtime="gpu")


def test_what_mace_would_overwrite_is_taken_at_the_end(make, convert):
    """An output that others take, and one that is only another shape of what is inside."""
    model = make("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4,3,5] x) => (float[1,4,3,5] a, float[1,60] f, float[1,4,3,5] y) {
            a = Relu(x) b = Abs(a) f = Flatten(b) c = Neg(a) y = Exp(c)
        }""")
    artifact, _ = convert(model)
    network = read(artifact.directory / "model.pb", artifact.directory / "model.data")
    assert [op.outputs for op in network.operations[-2:]] == [["f"], ["a"]]
    sample = {"x": np.linspace(-2, 2, 60, dtype=np.float32).reshape(1, 4, 3, 5)}
    wanted = Reference(model).run(sample)
    for name, found in run(artifact, sample).items():
        assert sqnr(found, wanted[name]) > 100


def test_the_gpu_is_named_in_the_file(tiny, convert):
    artifact, _ = convert(tiny, "fp16", runtime="gpu")
    net = read(artifact.directory / "model.pb", artifact.directory / "model.data")
    assert net.arguments.get("runtime_type") == 2
    assert net.arguments.get("opencl_mem_type") == 2
    assert net.data_type == 3


# --- int8 -----------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32))
def test_a_quantisation_holds_its_range_and_zero(one, other):
    low, high = sorted((one, other))
    made = quantisation(low, high)
    assert 0 <= made.zero_point <= 255 and made.scale > 0
    assert made.scale == float(np.float32(made.scale))
    step = made.scale * 1.01
    assert made.least <= min(low, 0) + step and made.greatest >= max(high, 0) - step


def test_kept_nodes_and_what_lies_between(tiny, convert):
    calibration = Calibration("minmax", 1, RANGES)
    artifact, _ = convert(tiny, "int8", calibration, keep_fp32=("/Gemm/y",))
    kinds = {node: layer.precision for layer in artifact.layers for node in layer.nodes}
    assert kinds["/Conv/c"] == kinds["/Relu/r"] == "int8"
    assert kinds["/Gemm/y"] == "fp32"
    types = [layer.type for layer in artifact.layers]
    assert types == [
        "Quantize", "Conv2D", "Pooling", "Dequantize", "Transpose", "Reshape", "MatMul"
    ]  # fmt: skip
    assert sqnr(run(artifact, SAMPLE)["y"], Reference(tiny).run(SAMPLE)["y"]) > 20


def test_a_range_that_is_not_known_is_said(tiny, convert):
    artifact, warned = convert(tiny, "int8", Calibration("minmax", 1, {"x": (-1.0, 1.0)}))
    assert "2 operations stay in fp32" in warned[0]
    assert "nothing of this model is quantised" in warned[1]
    assert {layer.precision for layer in artifact.layers} == {"fp32"}
    assert sqnr(run(artifact, SAMPLE)["y"], Reference(tiny).run(SAMPLE)["y"]) > 100


def test_products_that_mace_cannot_scale_stay_in_float():
    """Its multiplier has to be below 1: the result's steps are no finer than the product's."""
    weight = Constant(np.full((1, 1, 1, 1), 1e6, np.float32))
    about = {"strides": [1, 1], "padding_values": [0, 0], "dilations": [1, 1]}
    op = Op("Conv2D", "c", ("x", "w"), ("y",), ((1, 1, 2, 2),), about, free=True)
    tensors = (Tensor("x", (1, 1, 2, 2)),), (Tensor("y", (1, 1, 2, 2)),)
    net = Net((op,), {"w": weight}, *tensors)
    made = quantise(net, {"x": (0.0, 1e6), "y": (0.0, 1e-3)}, {}, ())
    assert made.unknown == ("c",) and not made.net.quantised


def test_weights_use_no_zero_and_relu_saturates(tiny, convert):
    artifact, _ = convert(tiny, "int8", Calibration("minmax", 1, RANGES | {"r": (-3.0, 3.0)}))
    net = read(artifact.directory / "model.pb", artifact.directory / "model.data")
    whole = [w for w in net.weights.values() if w.values.dtype == np.uint8]
    assert whole and all(w.values.min() >= 1 for w in whole)
    (conv,) = [op for op in net.operations if op.name == "/Relu/r"]
    assert conv.quantised[0][1] == 0, "a Relu's result begins at zero"


# --- MACE's own files -----------------------------------------------------------------------------


def test_the_files_for_maces_own_tools(tiny, convert):
    artifact, _ = convert(tiny, "int8", Calibration("minmax", 1, RANGES))
    folder = artifact.directory
    assert not {"deployment.yml", "devices.yml", "ranges.txt"} & set(artifact.files)
    yaml = YAML(typ="safe")
    told = yaml.load(folder / "deployment.yml")
    schema = json.loads((HERE / "mace_deployment.schema.json").read_text())
    Draft202012Validator(schema).validate(told)
    (about,) = told["models"].values()
    assert about["quantize"] == 1 and about["data_type"] == "fp32_fp32"
    assert about["model_sha256_checksum"] == hash_file(Path(about["model_file_path"]))
    (side,) = about["subgraphs"]
    assert side["input_shapes"] == ["1,2,4,6"] and side["input_data_formats"] == ["NCHW"]
    assert side["output_data_formats"] == ["NONE"]
    devices = yaml.load(folder / "devices.yml")["devices"]
    assert set(devices["board"]) == {
        "target_abis", "target_socs", "models", "address", "username"
    }  # fmt: skip
    lines = (folder / "ranges.txt").read_text().splitlines()
    assert lines == ["r@@0,3", "p@@0,3", "y@@-4,1"]


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=9),
        st.tuples(st.floats(-1e9, 1e9, width=32), st.floats(-1e9, 1e9, width=32)),
    )
)
def test_ranges_are_read_as_mace_reads_them(ranges):
    text = deployment.range_text(ranges)
    found = {}
    for line in text.split("\n")[:-1]:
        name, limits = line.split("@@")[:2]
        found[name] = tuple(float(number) for number in limits.strip().split(","))
    assert found == {
        name: pytest.approx(limits, rel=1e-8)
        for name, limits in ranges.items()
        if "@@" not in name and name[-1] != "@" and not {"\n", "\r"} & set(name)
    }


CONVERTER = """
import argparse, pathlib, shutil
parser = argparse.ArgumentParser()
parser.add_argument("--config"), parser.add_argument("--output")
flags = parser.parse_args()
text = pathlib.Path(flags.config).read_text()
assert "platform: onnx" in text and "data_type: fp16_fp32" in text, text
folder = pathlib.Path(flags.output, "model", "model")
folder.mkdir(parents=True)
here = pathlib.Path.cwd()
for ending in ("pb", "data"):
    shutil.copyfile(here / f"given.{ending}", folder / f"model.{ending}")
print("converted")
"""


@pytest.fixture
def checkout(tmp_path, tiny, convert):
    """Stands in for MACE's sources: its converter gives files that were made before."""
    folder = tmp_path / "mace"
    (folder / "tools" / "python").mkdir(parents=True)
    (folder / "tools" / "python" / "convert.py").write_text(CONVERTER)
    artifact, _ = convert(tiny, "fp16")
    for ending in ("pb", "data"):
        (folder / f"given.{ending}").write_bytes(
            (artifact.directory / f"model.{ending}").read_bytes()
        )
    return folder


def test_the_converter_of_a_checkout(tiny, convert, checkout):
    about = {"converter": "checkout", "checkout": str(checkout), "checkout_python": sys.executable}
    artifact, _ = convert(tiny, "fp16", **about)
    assert artifact.provenance["tool"] == "MACE's converter"
    assert artifact.provenance["checkout"] == str(checkout)
    assert {node for layer in artifact.layers for node in layer.nodes} >= {"/Relu/r", "/Gemm/y"}
    assert sqnr(run(artifact, SAMPLE)["y"], Reference(tiny).run(SAMPLE)["y"]) > 50
    (checkout / "tools" / "python" / "convert.py").write_text("raise SystemExit('no luck')")
    with pytest.raises(ToolError, match=r"exit code 1.*no luck"):
        convert(tiny, "fp16", **about)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "does not say where it is"),
        ({"checkout": "/nowhere"}, "there is no tools/python/convert.py in /nowhere"),
        ({"checkout": "CHECKOUT", "checkout_python": "no-such-python"}, "no no-such-python"),
    ],
)
def test_a_checkout_that_is_none(tiny, convert, checkout, options, words):
    options = {k: v.replace("CHECKOUT", str(checkout)) for k, v in options.items()}
    with pytest.raises((UnsupportedError, ToolError), match=words):
        convert(tiny, "fp16", converter="checkout", **options)


# --- every tensor ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_exposing_changes_nothing_and_gives_every_tensor(
    tiny, convert, backend, tmp_path, precision
):
    artifact, _ = convert(tiny, precision, Calibration("minmax", 1, RANGES))
    (tmp_path / "exposed").mkdir()
    made = backend.expose(artifact, tiny, SimpleNamespace(output=tmp_path / "exposed"))
    before, after = run(artifact, SAMPLE), run(made, SAMPLE)
    assert np.array_equal(before["y"], after["y"])
    assert set(after) == {"r", "p", "y"} | ({"f"} if precision == "fp32" else set())
    proto = tiny.proto()
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in after if name != "y")
    onnx.save(proto, tmp_path / "all.onnx")
    session = open_session(proto.SerializeToString(), threads=1, where="", as_written=True)
    wanted = run_session(session, SAMPLE, where="")
    for name, found in after.items():
        assert found.shape == wanted[name].shape
        assert sqnr(found, wanted[name]) > {"fp32": 100, "int8": 18}[precision], name


def test_operators_are_those_of_the_converter():
    found = operators.operators(None)
    assert found["Conv"].level == "partly" and found["Relu"].level == "yes"
    assert "Erf" not in found
    assert set(operators.PARTLY) <= set(found)
    assert {"Softsign", "HardSwish", "Constant"} <= set(found)
    assert len(ALSO) > 3


def test_the_wire_of_the_golden_files_is_one_network():
    found = fields((GOLDEN / "fp32.pb").read_bytes())
    assert found[100] == [b"x"] and found[101] == [b"y"] and len(found[3]) == 1


def test_weights_in_the_golden_data_are_those_of_the_model(tiny):
    raw = np.fromfile(GOLDEN / "fp32.data", "<f4")
    wanted = {t.name: numpy_helper.to_array(t) for t in tiny.proto().graph.initializer}
    assert raw.tolist() == [
        *wanted["w"].ravel().tolist(), *wanted["b"].tolist(), *wanted["v"].ravel().tolist()
    ]  # fmt: skip

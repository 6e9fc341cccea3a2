"""TensorRT on a board: command lines of every version, what trtexec says, engines that are kept."""

from __future__ import annotations

import multiprocessing
import struct
from pathlib import Path

import fake_trtexec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from wherry_tensorrt import command, engines, inprocess, output

VERSIONS = fake_trtexec.versions()
CASES = YAML(typ="safe").load(Path(__file__).with_name("tensorrt_commands.yaml"))
HALVES = [(case, version) for case in CASES for version in case.get("build", ())]
REFUSED = [(case, version) for case in CASES for version in case.get("refused", ())]
FILES = command.Files("E", "L", "T")


def tool(version: str) -> command.Tool:
    known = VERSIONS[version]
    return command.Tool("trtexec", known["version"], frozenset(f"--{f}" for f in known["flags"]))


def plan(case: dict) -> command.Plan:
    fields = dict(case["plan"])
    fields["keep"] = tuple(fields.get("keep", ()))
    return command.Plan(model="A/model.onnx", **fields)


def names(cases) -> list[str]:
    return [f"{case['name']}-{version}" for case, version in cases]


@pytest.mark.parametrize(("case", "version"), HALVES, ids=names(HALVES))
def test_command_lines(case, version, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "CACHE").touch()
    arguments = command.build_arguments(plan(case), tool(version), FILES)
    assert arguments == case["build"][version].split()
    asked = {each.partition("=")[0] for each in arguments}
    assert asked <= tool(version).flags, "trtexec would not know it"


@pytest.mark.parametrize(("case", "version"), REFUSED, ids=names(REFUSED))
def test_refusals(case, version):
    with pytest.raises(command.Refusal, match=case["refused"][version]) as refused:
        command.build_arguments(plan(case), tool(version), FILES)
    assert refused.value.remedy.endswith(".")


RUN = {
    "8.5": "--noDataTransfers --useCudaGraph --useSpinWait --separateProfileRun",
    "8.6": "--noDataTransfers --useCudaGraph --useSpinWait --separateProfileRun",
    "10.3": "--noDataTransfers --useCudaGraph --useSpinWait --separateProfileRun",
    "10.16": "--noDataTransfers --useCudaGraph --useSpinWait --separateProfileRun",
    "11.1": "",
}


@pytest.mark.parametrize("version", RUN)
def test_all_versions_measure_alike(version):
    """Up to 10 the options of 11's defaults; outputs are wanted: with transfers, of any version."""
    timing = command.Timing(500, 10, 100)
    begin = "--loadEngine=E --loadInputs=x:x.bin --warmUp=500 --duration=10 --iterations=100"
    args = command.run_arguments(tool(version), "E", {}, {"x": "x.bin"}, {}, timing, {"times": "t"})
    assert args == [*begin.split(), *RUN[version].split(), "--exportTimes=t"]
    held, _ = command.convention(tool(version))
    assert all(held.values())
    args = command.run_arguments(
        tool(version), "E", {"dla": 1}, {"x": "x.bin"}, {"x": [1, 3]}, timing, {"output": "o"}
    )
    assert "--shapes=x:1x3" in args
    assert "--useDLACore=1" in args
    assert "--exportOutput=o" in args
    assert "--noDataTransfers" not in args
    assert ("--includeDataTransfers" in args) == (version == "11.1")


def test_an_old_trtexec_says_what_of_the_convention_does_not_hold():
    old = command.Tool("t", "8000", frozenset({"--useSpinWait", "--noDataTransfers"}))
    held, flags = command.convention(old)
    assert held == {"transfers": True, "graph": False, "wait": True, "profile": False}
    assert flags == ["--noDataTransfers", "--useSpinWait"]


# --- what it says --------------------------------------------------------------------------------

LOG = """&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # /usr/src/tensorrt/bin/trtexec --onnx=a.onnx
[06/26/2023-11:30:50] [I] === Device Information ===
[06/26/2023-11:30:50] [I] Selected Device: NVIDIA Orin Nano
[06/26/2023-11:30:50] [I] Compute Capability: 8.7
[06/26/2023-11:30:51] [I] Warmup completed 47 queries over 200 ms
[06/26/2023-11:30:51] [I] Throughput: 1.23457e+06 qps
[06/26/2023-11:30:51] [I] Latency: min = 4.27838 ms, max = 5.82495 ms, mean = 4.29966 ms, median = 4.29718 ms, percentile(90%) = 4.30725 ms, percentile(99%) = 4.32874 ms
[06/26/2023-11:30:51] [I] Enqueue Time: min = 1 ms, max = 1 ms, mean = 1 ms, median = 1 ms, percentile(90%) = 1 ms
[06/26/2023-11:30:51] [I] GPU Compute Time: min = 4 ms, max = 5 ms, mean = 4.2 ms, median = 4.1 ms, percentile(90%) = 4.3 ms
[06/26/2023-11:30:51] [W] * GPU compute time is unstable, with coefficient of variance = 43.467%.
[06/26/2023-11:30:51] [W] * GPU compute time is unstable, with coefficient of variance = 43.467%.
[06/26/2023-11:30:52] [E] Error[2]: something: went wrong
&&&& PASSED TensorRT.trtexec [TensorRT v8502] # /usr/src/tensorrt/bin/trtexec --onnx=a.onnx
"""  # noqa: E501 -- lines are trtexec's


def test_what_it_says():
    assert output.version(LOG) == "8502"
    assert output.version("&&&& RUNNING TensorRT.trtexec [TensorRT v101600] [b34] # x") == "101600"
    assert output.version("hello") == ""
    assert output.device(LOG) == ("NVIDIA Orin Nano", "8.7")
    assert output.device("[I] Selected Device ID: 0") is None
    assert output.passed(LOG)
    assert output.errors(LOG) == ["Error[2]: something: went wrong"]
    assert len(output.warnings(LOG)) == 1
    told = output.summary(LOG)
    assert told["throughput_qps"] == 1.23457e6
    assert told["warmup_runs"] == 47
    assert told["latency"] == {
        "min_ms": 4.27838,
        "max_ms": 5.82495,
        "mean_ms": 4.29966,
        "median_ms": 4.29718,
        "p90_ms": 4.30725,
        "p99_ms": 4.32874,
    }
    assert told["compute"]["median_ms"] == 4.1
    assert output.summary("") == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_options_are_those_that_help_explains(version, tmp_path):
    found = engines.tool_at(str(fake_trtexec.install(tmp_path / "trtexec", version)))
    assert found.flags == tool(version).flags
    assert found.version == VERSIONS[version]["version"]
    assert found.is_typed == (version == "11.1")


@pytest.mark.parametrize("text", ["#!/bin/sh\necho hello\n", "#!/nowhere\n", ""])
def test_another_program_is_no_trtexec(tmp_path, text):
    path = tmp_path / "trtexec"
    path.write_text(text)
    path.chmod(0o755)
    with pytest.raises(command.Refusal, match="does not run as NVIDIA's trtexec") as refused:
        engines.tool_at(str(path))
    assert "/usr/src/tensorrt/bin/trtexec" in refused.value.remedy


ANY_NAME = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1)
PLAIN = st.text("abcXYZ019_/.-", min_size=1, max_size=12)


@given(st.lists(ANY_NAME, min_size=1, max_size=5, unique=True), st.integers(1, 500))
def test_profiles_of_any_names(found, count):
    runs, layers = output.profile(fake_trtexec.profile(count, found))
    assert runs == count
    assert [layer.name for layer in layers] == found
    assert layers[0].median_ms == 0.25


def test_a_profile_without_medians():
    text = '[\n  { "count" : 3 }\n, { "name" : "a "b", c", "timeMs" : 3, "averageMs" : 1, "percentage" : nan }\n]'  # noqa: E501 -- one line of trtexec's
    assert output.profile(text) == (3, [('a "b", c', 1.0)])
    with pytest.raises(ValueError, match="without a count"):
        output.profile("[]")


@given(st.integers(1, 20))
def test_times(count):
    rows = output.times(fake_trtexec.times(count))
    assert len(rows) == count
    assert all(2 <= row["computeMs"] == row["latencyMs"] < 2.01 for row in rows)


@given(
    st.dictionaries(PLAIN, st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1),
    st.integers(0, 99),
)
def test_exported_outputs(shapes, seed):
    rng = np.random.default_rng(seed)
    values = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    found = output.outputs(fake_trtexec.exported(values, copied=True))
    assert found.keys() == values.keys()
    for name, array in values.items():
        assert found[name].shape == array.shape
        assert np.allclose(found[name], array, rtol=1e-5)


def test_names_of_dumped_files():
    assert output.raw_name("a/b:0", (1, 10)) == "a_b_0.output.1.10."
    assert output.raw_name("y", ()) == "y.output."


# --- layers by ONNX nodes ------------------------------------------------------------------------

NODES = frozenset({"/a/Conv", "/a/Conv_1", "/a/Relu", "conv + bias", "x", "x1"})


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("/a/Conv", ["/a/Conv"]),
        ("/a/Conv + /a/Relu", ["/a/Conv", "/a/Relu"]),
        ("/a/Conv_1 + /a/Relu", ["/a/Conv_1", "/a/Relu"]),
        ("PWN(PWN(/a/Relu), x)", ["/a/Relu", "x"]),
        ("conv + bias + /a/Relu", ["conv + bias", "/a/Relu"]),
        ("{ForeignNode[/a/Conv.../a/Relu]}", ["/a/Conv", "/a/Relu"]),
        ("/a/Conv || /a/Conv_1", ["/a/Conv", "/a/Conv_1"]),
        ("/a/Relu_clone_2", ["/a/Relu"]),
        ("Reformatting CopyNode for Input Tensor 0 to /a/Conv", []),
        ("x1", ["x1"]),
        ("x12", []),
        ("xx", []),
        ("ax", []),
    ],
)
def test_nodes_in_names_of_layers(name, nodes):
    assert output.nodes_in(name, NODES) == nodes


@given(st.lists(PLAIN, min_size=1, max_size=6, unique=True), st.sampled_from([" + ", ", ", " || "]))
def test_joined_names_are_taken_apart(found, joint):
    assert output.nodes_in(joint.join(found), frozenset(found)) == found


def test_metadata_of_layers():
    text = (
        '{"Layers": ["a", {"Name": "b + c", '
        '"Metadata": "[ONNX Layer: b]\\u001e[ONNX Layer: c[0]]"},'
        ' {"Name": "d"}], "I/O Tensors": []}'
    )
    assert output.layer_metadata(text) == {"a": [], "b + c": ["b", "c[0]"], "d": []}
    assert output.layer_metadata("{not JSON") == {}


# --- the calibration cache -----------------------------------------------------------------------


def test_calibration_cache():
    text = engines.calibration_text("8502", {"input": 127.0, "a: b": 2.54})
    step = struct.pack(">f", 2.54 / 127).hex()
    assert text == f"TRT-8502-EntropyCalibration2\ninput: 3f800000\na: b: {step}\n"


@given(
    st.dictionaries(
        ANY_NAME.filter(lambda n: len(n.splitlines()) == 1), st.floats(0, 1e30), max_size=5
    )
)
def test_calibration_caches_are_read_as_they_were_written(thresholds):
    version, found = engines.read_calibration(engines.calibration_text("100300", thresholds))
    assert version == "100300"
    assert found == pytest.approx(thresholds, rel=1e-6, abs=1e-37)


# --- engines -------------------------------------------------------------------------------------

PLACE = engines.Place("8502", "Orin", "8.7", "")


def keep(cache: Path, key: dict, build) -> engines.Engine:
    return engines.kept({"files": {"model.onnx": "1"}}, cache, PLACE, key, build)


def test_engines_are_built_once_for_a_key(tmp_path):
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / engines.ENGINE).write_bytes(b"x")

    first, again = (keep(tmp_path, {"arguments": ["a"]}, build) for _ in range(2))
    assert first.directory == again.directory
    assert (first.is_new, again.is_new) == (True, False)
    assert first.about == again.about
    other = keep(tmp_path, {"arguments": ["b"]}, build)
    key, files = {"arguments": ["a"]}, {"files": {"model.onnx": "1"}}
    moved = engines.kept({"files": {"model.onnx": "2"}}, tmp_path, PLACE, key, build)
    gpu = engines.kept(files, tmp_path, PLACE._replace(gpu="B"), key, build)
    assert len({first.directory, other.directory, moved.directory, gpu.directory}) == 4
    assert len(built) == 4


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        keep(tmp_path, {}, fail)
    assert list((tmp_path / "engines").iterdir()) == []


def _slowly(cache: Path, told) -> None:
    def build(folder: Path) -> None:
        (folder / engines.ENGINE).write_bytes(b"x")

    told.put(keep(cache, {}, build).is_new)


def test_two_at_once_build_one(tmp_path):
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    both = [context.Process(target=_slowly, args=(tmp_path, told)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(30)
    assert sorted(told.get(timeout=5) for _ in both) == [False, True]


@pytest.mark.parametrize(
    ("version", "digits"),
    [("8.5.2.2", "8502"), ("8.6.1", "8601"), ("10.3.0", "100300"), ("11.1.0.6", "110100")],
)
def test_versions_in_digits(version, digits):
    assert inprocess.digits(version) == digits

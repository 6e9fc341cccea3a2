"""Bundles end to end: made from a run, run without wherry, verified on boards, and refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import fake_trtexec
import mace_tool
import numpy as np
import onnx
import pytest
from own_runtime import OwnRuntime
from wired_boards import Lab

from wherry import api
from wherry.bundle.archive import write
from wherry.cli import main
from wherry.engine.environments import Environments
from wherry.errors import BundleError, GateFailed, StoreError, UsageError
from wherry.host import Host
from wherry.testing.networks import build

MANIFEST = """
wherry: 1
model: {path: net.onnx, inputs: {x: {preprocess: {scale: 0.5}}}}
data: {evaluation: {source: npz, path: data.npz}}
metrics: [checksum]
targets: [{backend: moody, threads: [1, 2]}]
measure: {rounds: 1, duration_s: 0.01, warmup_s: 0.01}
gates: [{metric: checksum, min: 0, where: {threads: 2}}]
"""
QUICKSTART = Path(__file__).parents[2] / "manifests" / "quickstart.yaml"


@contextlib.contextmanager
def kitchen(folder: Path, site: Path):
    """Where the run was made: its folder, its home, and its backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(site)
        patch.setenv("PYTHONPATH", str(site))
        patch.setenv("WHERRY_PLUGINS", "wherry-moody")
        patch.setenv("WHERRY_HOME", str(folder / "home"))
        patch.delenv("WHERRY_RECORDS", raising=False)
        patch.setenv("WHERRY_CONFIG", str(folder / "config"))
        yield


@pytest.fixture(scope="module")
def bundled(tmp_path_factory, moody_site, moody_folder):
    """The folder of a run with ``b.tar.gz``: made once for all that is done to it."""
    folder = moody_folder(tmp_path_factory.mktemp("bundled"))
    (folder / "m.yaml").write_text(MANIFEST)
    with kitchen(folder, moody_site):
        api.run(folder / "m.yaml")
        api.bundle(folder / "b.tar.gz", target="threads=1")
    return folder


@pytest.fixture
def ran(bundled, moody_site):
    """The same, as the current folder; its manifest and its network are mended afterwards."""
    net = (bundled / "net.onnx").read_bytes()
    with kitchen(bundled, moody_site):
        yield bundled
    (bundled / "m.yaml").write_text(MANIFEST)
    (bundled / "net.onnx").write_bytes(net)


def unpacked(path: Path, folder: Path) -> Path:
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


def example(root: Path, python: str = sys.executable) -> subprocess.CompletedProcess:
    command = [python, "-W", "error", str(root / "example.py")]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)


def test_a_bundle_runs_without_wherry_and_verifies_with_it(ran, tmp_path):
    made = api.bundle(tmp_path / "b.tar.gz", target="moody threads=2", samples=3)
    assert made["result"] == "original, moody fp32 on local (threads=2)"
    root = unpacked(tmp_path / "b.tar.gz", tmp_path / "out")
    done = example(root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cosine 1.000000") == 12
    assert done.stdout.endswith("all is well\n")
    assert not subprocess.run(
        ["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=root, check=True
    ).stdout

    lock = json.loads((root / "bundle.json").read_text())
    assert lock["target"]["options"]["threads"] == 2
    assert lock["preprocess"] == {"x": {"scale": 0.5}}
    assert lock["measured"]["on"]["machine"]
    assert "hostname" not in json.dumps(lock), "whoever gets it need not know our machines"
    licences = (root / "LICENCES.md").read_text()
    assert "| wherry-moody | 1.0 | unknown | the rest of runner/ and cpp/ |" in licences

    found = api.bundle_verify(tmp_path / "b.tar.gz")
    assert found["failed"] is None
    assert found["samples"] == 3
    assert found["parity"]["sqnr_db"] > 100
    assert found["agreement"]["sqnr_db"] == 300
    assert found["latency"]["median_ms"] > 0
    assert found["runner"].startswith("the same")

    for suffix in ("tar.gz", "zip"):
        both = [tmp_path / f"{number}.{suffix}" for number in range(2)]
        for path in both:
            api.bundle(path, target="moody threads=2", samples=3)
        assert both[0].read_bytes() == both[1].read_bytes()
    assert api.bundle_verify(tmp_path / "0.zip")["failed"] is None


def test_the_command_line_makes_signs_and_verifies(ran, tmp_path, capsys):
    assert main(["bundle", "key", "k", "--no-password", "--json"]) == 0
    key = json.loads(capsys.readouterr().out)["key"]
    assert main(["bundle", "last", "-o", "b.zip", "--target", "threads=1", "--sign", "k.key"]) == 0
    assert "b.zip.minisig" in capsys.readouterr().out
    assert main(["bundle", "verify", "b.zip", "--public-key", key]) == 0
    out = capsys.readouterr().out
    assert "It holds." in out
    assert "valid, by" in out
    assert main(["bundle", "verify", "b.zip", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature"]["state"] == "not checked"
    with Path("b.zip").open("ab") as stream:
        stream.write(b"x")
    assert main(["bundle", "verify", "b.zip", "--public-key", "k.pub"]) == 1
    assert "does not hold" in capsys.readouterr().err
    assert main(["bundle", "verify", "b.zip", "--device", "nowhere"]) == 2
    assert main(["bundle", "verify", "b.zip"]) == 1
    assert "stands behind its end" in capsys.readouterr().err
    # which of the two is the fastest says a clock that is not that fine
    assert main(["bundle", "-o", "b.zip", "--target", "threads=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature"] is None
    assert not Path("b.zip.minisig").exists(), "it would not hold any more"


def test_gates_decide_and_choices_are_listed(ran, tmp_path):
    with pytest.raises(UsageError, match=r"2 results of the run are like 'moody'.*threads=2"):
        api.bundle(tmp_path / "b.zip", target="moody")
    text = MANIFEST.replace("min: 0", "min: 1.0e+9").replace(", where: {threads: 2}", "")
    (ran / "m.yaml").write_text(text)
    with pytest.raises(GateFailed, match=r"checksum .* at least 1000000000"):
        api.bundle(tmp_path / "b.zip", best="checksum")
    assert not (tmp_path / "b.zip").exists()


def test_a_tampered_store_entry_is_refused_with_the_name_of_the_file(ran, tmp_path):
    (path,) = (ran / "home" / "store" / "convert").rglob("program.json")
    about = path.stat()
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))  # as if nobody had touched it
    with pytest.raises(StoreError, match=r"program\.json in the store .* was changed"):
        api.bundle(tmp_path / "b.zip", target="threads=1")
    assert not (tmp_path / "b.zip").exists()
    (damaged,) = api.cache_verify(remove=True)["damaged"]
    assert "program.json was changed" in damaged["problem"]
    api.bundle(tmp_path / "b.zip", target="threads=1")
    assert api.bundle_verify(tmp_path / "b.zip")["failed"] is None


def test_a_model_or_manifest_that_changed_since_is_refused(ran, tmp_path):
    (ran / "m.yaml").write_text(MANIFEST.replace("[1, 2]", "[2, 3]"))
    with pytest.raises(BundleError, match=r"no row .* any more"):
        api.bundle(tmp_path / "b.zip", target="threads=1")
    proto = onnx.load(ran / "net.onnx")
    for weight in proto.graph.initializer:
        weight.raw_data = bytes(len(weight.raw_data))
    onnx.save(proto, ran / "net.onnx")
    with pytest.raises(BundleError, match="makes another artifact now"):
        api.bundle(tmp_path / "b.zip", target="threads=2")
    with pytest.raises(UsageError, match="no run named"):
        api.bundle(tmp_path / "b.zip", run="nowhere")


def test_what_the_store_has_lost_is_made_again(ran, tmp_path):
    shutil.rmtree(ran / "home" / "store")
    api.bundle(tmp_path / "b.zip", target="threads=1")
    assert api.bundle_verify(tmp_path / "b.zip")["failed"] is None


def forged(path: Path, folder: Path, change) -> Path:
    """A bundle whose checksums hold, and that was made to harm or mislead."""
    root = unpacked(path, folder)
    change(root)
    files = {
        each.relative_to(root).as_posix(): each.read_bytes()
        for each in root.rglob("*")
        if each.is_file() and each.name != "contents.json"
    }
    write(folder / "forged.tar.gz", "root", files)
    return folder / "forged.tar.gz"


def lock_with(**changes):
    def change(root: Path) -> None:
        lock = json.loads((root / "bundle.json").read_text())
        (root / "bundle.json").write_text(json.dumps({**lock, **changes}))

    return change


def artifact_with(**changes):
    def change(root: Path) -> None:
        lock = json.loads((root / "bundle.json").read_text())
        lock["artifact"] |= changes
        (root / "bundle.json").write_text(json.dumps(lock))

    return change


def other_sample(root: Path) -> None:
    np.save(root / "samples/0/reference-0.npy", np.ones((1, 4, 4), np.float32))


def huge_sample(root: Path) -> None:
    with (root / "samples/0/inputs-0.npy").open("wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
        np.lib.format.write_array_header_1_0(stream, header)


def pickled_sample(root: Path) -> None:
    np.save(root / "samples/0/inputs-0.npy", np.array([{}], object), allow_pickle=True)


def other_artifact(root: Path) -> None:
    (root / "artifact/program.json").write_text("{}")


def runs_a_program(root: Path) -> None:
    (root / "runner/runner.py").write_text("raise SystemExit('it was executed')")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lock_with(target={"backend": "moody", "precision": "fp32", "options": {"x": 1}}),
         "does not take"),
        (lock_with(samples={"ready": True, "entries": []}), "no samples"),
        (lock_with(samples={"ready": True, "entries": [
            {"inputs": {"x": "../../etc/passwd"}, "reference": {"a": "a"}, "outputs": {}}]}),
         "not there"),
        (lock_with(samples={"ready": True, "entries": [
            {"inputs": {"x": "0/inputs-0.npy"}, "reference": {}, "outputs": {}}]}),
         "no outputs to compare with"),
        (lock_with(artifact={"files": {}}), "does not say what"),
        (artifact_with(files=7), "does not say what"),
        (artifact_with(outputs=[None]), "does not say what"),
        (lock_with(bundle=[]), "does not say what"),
        (lock_with(measured={"latency": "fast"}), "does not say what"),
        (huge_sample, "inputs-0.npy is no array"),
        (pickled_sample, "inputs-0.npy is no array"),
        (other_artifact, "artifact/program.json is not the file"),
    ],
)  # fmt: skip
def test_a_forged_bundle_is_refused(ran, tmp_path, change, words):
    with pytest.raises(BundleError, match=words):
        api.bundle_verify(forged(ran / "b.tar.gz", tmp_path / "forged", change))


def test_a_sample_that_was_forged_is_told(ran, tmp_path, capsys):
    path = forged(ran / "b.tar.gz", tmp_path / "forged", other_sample)
    assert main(["bundle", "verify", str(path)]) == 1
    captured = capsys.readouterr()
    assert "It does not hold." in captured.out
    assert "output 'a'" in captured.err


def test_nothing_of_a_bundle_is_executed(ran, tmp_path):
    path = forged(ran / "b.tar.gz", tmp_path / "forged", runs_a_program)
    found = api.bundle_verify(path)
    assert "of another version; the installed one was run" in found["runner"]
    assert found["failed"] is None


def test_a_bundle_of_an_unknown_backend_says_so(ran, monkeypatch):
    monkeypatch.setenv("WHERRY_PLUGINS", "")
    with pytest.raises(UsageError, match="no backend 'moody'"):
        api.bundle_verify(ran / "b.tar.gz")


def test_a_bundle_is_verified_on_a_board_over_ssh(ran, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "workstation"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr("wherry_devices.provision.Provisioner", OwnRuntime)
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:
        lab = Lab(tmp_path, stack)
        wired = lab.add("board")
        found = api.bundle_verify(ran / "b.tar.gz", device="board")
        assert found["failed"] is None
        assert found["device"]["name"] == "board"
        assert list(wired.store.glob("trees/*")), "it ran there"
        wired.check_free()


@pytest.mark.backend
@pytest.mark.timeout(600)
def test_the_python_example_gives_the_expected_outputs_with_each_runtime(
    wherry_home, tmp_path, monkeypatch
):
    """Each in the runtime's own environment, which has neither wherry nor anything of its."""
    monkeypatch.setenv("WHERRY_PLUGINS", "")
    sets = [
        *("measure.rounds=1", "measure.duration_s=0.05", "parity.samples=2"),
        *("targets.0.precision=[fp32]", "data.evaluation.slice='200:260'", "gates=[]"),
        "variants={original: []}",
    ]
    record = api.run(QUICKSTART, sets=sets)
    host = Host.load()
    for backend in ("onnxruntime", "tflite", "ncnn"):
        path = tmp_path / f"{backend}.tar.gz"
        api.bundle(path, record.values["run_id"], target=f"original {backend}")
        root = unpacked(path, tmp_path / backend)
        assert (root / "labels.txt").read_text().split() == list("0123456789")
        python = Environments(wherry_home).ensure(host.backends[backend].runtime[0])
        done = example(root, str(python))
        assert done.returncode == 0, f"{backend}: {done.stdout}{done.stderr}"
        assert done.stdout.count("against the expected: cosine 1.0000") == 4
        assert "is of class" in done.stdout


OWN_TOOLS = """
wherry: 1
model: {path: net.onnx}
data:
  calibration: {source: npz, path: data.npz}
  evaluation: {source: npz, path: data.npz, slice: "0:2"}
metrics: [agreement]
targets: [{backend: BACKEND, precision: int8}]
measure: {rounds: 1, duration_s: 0.01, warmup_s: 0.01}
parity: {samples: 2}
"""


@pytest.mark.parametrize("backend", ["tensorrt-11.1", "mace"])
def test_a_bundle_runs_with_the_boards_own_tool(wherry_home, tmp_path, monkeypatch, backend):
    """The runner prepares the board; trtexec and mace_run are programs of ours that behave so."""
    backend, _, version = backend.partition("-")
    if version:
        tool = str(fake_trtexec.install(tmp_path / "trtexec", version))
    else:
        tool = mace_tool.real() or mace_tool.stand_in(tmp_path)
    name = "TRTEXEC" if version else "MACE_RUN"
    monkeypatch.setenv("WHERRY_PLUGINS", "")
    monkeypatch.setenv(name, tool)
    monkeypatch.chdir(tmp_path)
    build("convnet", tmp_path / "net.onnx")
    data = np.random.default_rng(3).normal(0.3, 1, (8, 3, 17, 22)).astype(np.float32)
    np.savez(tmp_path / "data.npz", image=data)
    (tmp_path / "m.yaml").write_text(OWN_TOOLS.replace("BACKEND", backend))
    record = api.run(tmp_path / "m.yaml")
    (row,) = record.values["results"]
    assert row["status"] == "ok", row["error"]
    api.bundle(tmp_path / "b.tar.gz", record.values["run_id"], samples=2)
    found = api.bundle_verify(tmp_path / "b.tar.gz")
    assert found["failed"] is None
    assert found["latency"]["timed_by"] == ("trtexec" if version else "mace_run")
    root = unpacked(tmp_path / "b.tar.gz", tmp_path / "out")
    assert {"example.cpp", "model.h"} < {each.name for each in (root / "cpp").iterdir()}
    shutil.rmtree(wherry_home)  # nothing of it may be needed
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("BUNDLE_CACHE", str(cache))
    done = example(root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("against the model in fp32") == 2 * len(found["parity"]["per_output"])
    if version:
        assert len(list(cache.glob("engines/*/engine.plan"))) == 1
    monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", "/nowhere")
    done = example(root)
    assert done.returncode == 1
    assert f"there is no {name.lower()}" in done.stderr


@pytest.mark.backend
@pytest.mark.caffe2
@pytest.mark.timeout(300)
def test_a_bundle_of_caffe2_holds_its_machine_code_and_runs_in_python_and_cpp(
    wherry_home, tmp_path, monkeypatch
):
    """The board has Python with numpy, and nothing of Caffe2's: it is in the archive."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler here: apt install g++")
    monkeypatch.setenv("WHERRY_PLUGINS", "")
    monkeypatch.delenv("LIBTORCH", raising=False)
    sets = [
        *("measure.rounds=1", "measure.duration_s=0.05", "parity.samples=2"),
        *("targets.0.backend=caffe2", "targets.0.precision=[int8]"),
        *("data.evaluation.slice='200:260'", "gates=[]", "variants={original: []}"),
    ]
    record = api.run(QUICKSTART, sets=sets)
    path = tmp_path / "caffe2.zip"  # in which the program loses its mode
    api.bundle(path, record.values["run_id"])
    assert api.bundle_verify(path)["failed"] is None
    shutil.rmtree(wherry_home)  # nothing of it may be needed
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "out")
    (root,) = (tmp_path / "out").iterdir()
    assert {"engine", "engine.cc"} < {each.name for each in (root / "native").iterdir()}
    about = (root / "LICENCES.md").read_text().replace("\\_", "_")
    told = dict(re.findall(r"\| (\S+) \|  \| (.*?) \| native/", about))
    assert told.keys() == {each.name for each in (root / "native").iterdir()}
    assert told["engine"] == told["engine.cc"] == "Apache-2.0 (wherry's own)"
    assert not [name for name, licence in told.items() if licence == "unknown"]
    done = example(root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("against the expected: cosine 1.0000") == 4

    program = root / "cpp/example"
    command = [compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "example.cpp"]
    subprocess.run([*command, "-o", program], cwd=root / "cpp", check=True)
    done = run_cpp(program, root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "logits: cosine 1.000000 (at least 0.9)\n"
    (root / "cpp/sample_output_0.bin").write_bytes(np.float32([1, *[0] * 9]).tobytes())
    assert run_cpp(program, root).returncode == 1, "it compares"
    (root / "native/libtorch.so").write_bytes(b"no library")
    done = run_cpp(program, root)
    assert done.returncode == 2
    assert "Caffe2: " in done.stderr


def run_cpp(program: Path, root: Path) -> subprocess.CompletedProcess:
    return subprocess.run([program, root], cwd="/", capture_output=True, text=True, check=False)

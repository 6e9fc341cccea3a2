"""``wherry compare`` of two manifests: both are run, and their rounds take turns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from onnx import helper

from wherry import api
from wherry.errors import UsageError
from wherry.records.database import Records
from wherry.turns import execute_in_turns, prepare_all

pytestmark = [pytest.mark.backend, pytest.mark.timeout(600)]

MANIFEST = """\
wherry: 1
model: {{path: {name}.onnx}}
targets: [{{backend: onnxruntime, precision: fp32}}]
parity: {{samples: 2}}
measure: {{duration_s: 0.02, warmup_s: 0.02}}
"""


def write(folder: Path, name: str, layers: int, last: str = "Relu") -> Path:
    """A manifest of a network of so many layers."""
    nodes = [
        helper.make_node(
            last if i == layers - 1 else "Tanh", [f"t{i}"], [f"t{i + 1}"], name=f"n{i}"
        )
        for i in range(layers)
    ]
    one, other = (
        helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, [1, 64, 64])
        for tensor in ("t0", f"t{layers}")
    )
    graph = helper.make_graph(nodes, "net", [one], [other])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / f"{name}.onnx")
    path = folder / f"{name}.yaml"
    path.write_text(MANIFEST.format(name=name))
    return path


def wherry(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wherry", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_twice_the_layers_are_worse_and_both_runs_are_kept(wherry_home, tmp_path):
    base, new = write(tmp_path, "base", 2), write(tmp_path, "new", 12)
    done = wherry("compare", base, new, "--rounds", "7", "--json", "--fail-on", "worse:50%")
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    (result,) = found["results"]
    latency = next(f for f in result["figures"] if f["figure"] == "latency.median_ms")
    assert latency["verdict"] == "worse" and latency["change"] > 0.5
    assert f"round 7 of 7: {base}" in done.stderr
    with Records.open() as records:
        first, second = (records.load(found[side]["run_id"]).values for side in ("base", "new"))
    assert first["turns"] == second["turns"] == first["run_id"]
    for values in (first, second):
        assert values["measure"]["rounds"] == len(values["results"][0]["latency"]["round_sizes"])
        assert values["results"][0]["cached"] is False
    # afterwards they are compared as what they are, too
    again = wherry("compare", "last~1", "last", "--json")
    (kept,) = json.loads(again.stdout)["results"]
    assert kept["figures"] == result["figures"]


def test_rounds_take_turns_and_measuring_again_measures_again(wherry_home, tmp_path):
    manifests = [write(tmp_path, name, 2 + i) for i, name in enumerate("abc")]
    seen: list[tuple[str, int | None]] = []

    @contextmanager
    def watch(prepared, upto) -> Iterator[None]:
        seen.append((Path(prepared.request.manifest).stem, upto))
        yield None

    medians = []
    for _ in range(2):
        prepared = prepare_all(manifests, rounds=4, tell=lambda _text: None)
        records = execute_in_turns(prepared, watch=watch)
        medians.append([r.values["results"][0]["latency"]["median_ms"] for r in records])
        assert [r.values["results"][0]["latency"]["samples"] > 0 for r in records] == [True] * 3
    for number in (1, 2, 3, 4, None):
        assert sorted(name for name, upto in seen[:15] if upto == number) == ["a", "b", "c"]
    assert [upto for _, upto in seen[:15]] == [n for n in (1, 2, 3, 4, None) for _ in "abc"]
    assert medians[0] != medians[1]


def test_one_artifact_is_one_measurement(wherry_home, tmp_path):
    one = write(tmp_path, "one", 3)
    found = api.compare(str(one), str(one), rounds=4)
    (result,) = found["results"]
    latency = next(f for f in result["figures"] if f["figure"] == "latency.median_ms")
    assert (latency["verdict"], latency["why"]) == ("same", "it is the same measurement")


def test_a_side_that_fails_is_named_and_the_exit_code_is_1(wherry_home, tmp_path):
    base, new = write(tmp_path, "base", 2), write(tmp_path, "new", 2, last="NonZero")
    done = wherry("compare", base, new, "--rounds", "4")
    assert done.returncode == 1, done.stderr
    assert "1 of 1 target failed: original, onnxruntime fp32 on local" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_manifest_and_a_run_are_refused(wherry_home, tmp_path):
    one = write(tmp_path, "one", 2)
    with pytest.raises(UsageError, match="not two manifests"):
        api.compare(str(one), "last")
    with pytest.raises(UsageError, match="not two manifests"):
        api.compare("last~1", "last", rounds=4)
    with pytest.raises(UsageError, match="there is no run"):
        api.compare("tag:a.yaml", "tag:b.yaml")  # a tag, whatever its name is

"""The passes that prune, on every generated network: a valid one comes out, or a reason."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from loading import load

from wherry.model import Model
from wherry.normalise import normalise
from wherry.reference import open_session, run_session
from wherry_compress.graph import costs
from wherry_compress.job import Data, Job, Refusal
from wherry_compress.prune import filters, lasso, passes, weights

HERE = Path(__file__).parent
SAMPLES = 4
NOTHING = {
    # networks without a filter that can be cut
    "batch_axis_used", "gru", "keyword_spotting", "many_outputs", "norms", "reductions",
    "segment_index", "vector",
}  # fmt: skip
WEIGHTLESS = {"vector"}
TWICE = {"mobilenet", "resnext", "gated_halves", "shared"}
"""Networks that are pruned again, to the same bytes."""
CASES = {
    "filters": (filters, passes.PruneFilters(macs=0.8, round_to=1)),
    "fpgm": (filters, passes.PruneFilters(ratios={"*": 0.4}, criterion="fpgm", compensate=False,
                                          round_to=2)),
    "sensitivity": (filters, passes.PruneFilters(params=0.9, criterion="l1", round_to=1,
                                                 allocation="sensitivity", samples=2)),
    "lasso": (lasso, passes.PruneLasso(macs=0.8, round_to=1)),
    "weights": (weights, passes.PruneWeights(sparsity=0.5)),
    "2:4": (weights, passes.PruneWeights(pattern="2:4")),
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(networks, tmp_path_factory):
    """A network's name to its normal form in a file, a folder, and samples."""
    pruned = load(HERE / "pruned.py").NETWORKS

    @cache
    def one(name: str) -> tuple[Path, Path, dict[str, Data]]:
        folder = tmp_path_factory.mktemp(name)
        proto = pruned[name](networks.Net(name)) if name in pruned else networks.NETWORKS[name]()
        onnx.save(proto, folder / "source.onnx")
        model = Model.load(folder / "source.onnx").with_static_shapes({}, folder)
        (folder / "normal").mkdir()
        path = normalise(model, folder / "normal", {"keep batch norm"}).model.path
        samples = [networks.sample(proto, seed) for seed in range(SAMPLES)]
        files = {}
        for key in samples[0]:
            files[key] = folder / f"{key}.npy"
            np.save(files[key], np.stack([sample[key] for sample in samples]))
        return path, folder, {"calibration": Data(files)}

    return one


NAMES = sorted([*load(HERE / "networks.py").NETWORKS, *load(HERE / "pruned.py").NETWORKS])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_every_network(prepared, name, case):
    path, folder, data = prepared(name)
    module, parameters = CASES[case]
    job = Job(path, parameters.model_dump(mode="json"), folder, data, seed=1)
    nothing = WEIGHTLESS if module is weights else NOTHING
    if name in nothing:
        with pytest.raises(Refusal) as caught:
            module.apply(job)
        assert len(caught.value.message) > 40
        return
    try:
        done = module.apply(job)
    except Refusal as refusal:
        if case == "2:4":  # fewer than 4 inputs
            assert "no weight would become zero" in refusal.message
            assert name in {"batch_axis_used", "segment_index", "unused_and_shared"}
        else:  # not enough can be cut
            assert "were asked for" in refusal.message
            assert case in {"filters", "lasso", "sensitivity"}
        return
    onnx.checker.check_model(done.model, full_check=True)
    before = job.load()
    assert [node.name for node in done.model.graph.node] == [n.name for n in before.graph.node]
    assert done.model.graph.output == before.graph.output
    session = open_session(done.model.SerializeToString(), threads=1, where="")
    for sample in data["calibration"].samples(2):
        for value in run_session(session, sample, where="").values():
            assert value.dtype.kind != "f" or np.isfinite(value).all()
    if module is weights:
        assert done.figures["zeros"] > 0
        return
    now, was = costs.measure(done.model), costs.measure(before)
    assert done.figures["macs_after"] == now.macs < was.macs == done.figures["macs_before"]
    assert done.figures["params_before"] == was.parameters
    if "reached" in done.figures:
        (measure, share), *_ = done.figures["target"].items()
        value = {"macs": now.macs / was.macs, "params": now.parameters / was.parameters}[measure]
        assert done.figures["reached"] == pytest.approx(value)
        assert value <= share
    if name not in TWICE:
        return
    again = module.apply(job)
    same = [each.SerializeToString(deterministic=True) for each in (done.model, again.model)]
    assert same[0] == same[1]
    assert dict(again.figures) == dict(done.figures)

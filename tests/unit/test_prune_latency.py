"""Pruning to a measured latency: candidates, their search, and what cannot be had."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import onnx
import onnx.parser
import pytest
from prune_networks import plain
from pydantic import ValidationError

from wherry.errors import ToolError
from wherry.host import Host
from wherry.model import Model
from wherry_compress import plugin
from wherry_compress.prune.latency import search
from wherry_compress.prune.passes import Latency, PruneFilters


def made_up(least: float = 0.2):
    """Candidates that are their share of the MACs, and take 1 ms besides 9 times that."""

    def make(macs: float) -> tuple[float, dict[str, float]]:
        if macs < least:
            raise ToolError(f"MACs of {macs:.3f} were asked for")
        return macs, {"macs": macs}

    return make, lambda macs: 1 + 9 * macs


def test_a_latency_is_found_by_bisection():
    make, measure = made_up()
    wanted = Latency(backend="b", fraction=0.55, tries=8)
    macs, figures = search(wanted, measure(1.0), make, measure)
    assert 0.49 < macs <= 0.5
    assert figures["macs"] == macs
    assert figures["latency"]["goal_ms"] == pytest.approx(5.5)
    assert figures["latency"]["reached_ms"] == measure(macs) <= 5.5
    assert len(figures["latency"]["tried"]) == 8
    assert search(Latency(backend="b", at_most=5.5, tries=8), 10.0, make, measure)[0] == macs


def test_candidates_that_come_out_alike_are_measured_once(tmp_path, monkeypatch):
    of_width = cache(plain)  # the same weights each time

    def made(_member, _source, parameters, context):
        width = 8 * max(1, round(parameters.macs * 4))
        onnx.save(of_width(width), context.output / "model.onnx")
        return Model.load(context.output / "model.onnx"), {"width": width}

    def latency_ms(model, *_target):
        measured.append(model.digest)
        return float(model.proto().graph.initializer[0].dims[0])

    measured: list[str] = []
    monkeypatch.setattr(plugin, "_made", made)
    (tmp_path / "output").mkdir()
    context = SimpleNamespace(
        output=tmp_path / "output", latency_ms=latency_ms, progress=lambda _text: None
    )
    onnx.save(plain(40), tmp_path / "given.onnx")
    wanted = Latency(backend="b", at_most=20, tries=7)
    about = PruneFilters(latency=wanted)
    given_ = Model.load(tmp_path / "given.onnx")
    model, figures = plugin._fast(plugin.MEMBERS["prune.filters"], given_, about, wanted, context)
    assert figures["width"] == 16
    assert len(figures["latency"]["tried"]) == 7
    assert len(set(measured)) == len(measured) == 3  # as it is, and two widths
    assert model.path == tmp_path / "output" / "model.onnx"
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["model.onnx"]


def test_latencies_that_cannot_be_had():
    make, measure = made_up()
    with pytest.raises(ToolError, match=r"2 ms were asked for; with 0\.2.* takes .*, as it is 10"):
        search(Latency(backend="b", at_most=2), 10.0, make, measure)
    with pytest.raises(ToolError, match="the model takes 10 ms as it is"):
        search(Latency(backend="b", at_most=11), 10.0, make, measure)
    make, measure = made_up(least=2)
    with pytest.raises(ToolError, match=r"were asked for$"):
        search(Latency(backend="b", at_most=5), 10.0, make, measure)
    with pytest.raises(ValidationError, match="give one of at_most and fraction"):
        Latency(backend="b")
    known = Host.load().passes["prune.filters"]
    about = PruneFilters(latency=Latency(backend="b", at_most=5), compensate=False, criterion="l1")
    assert known.needed(about) == {"seed", "device"}

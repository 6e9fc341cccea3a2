"""Which result is bundled: the one that is meant, or none, with the choices."""

from __future__ import annotations

import pytest

from wherry.bundle.choose import Wish, choose
from wherry.errors import GateFailed, UsageError


def result(name, ms, *, device="pi4", pareto=True, top1=0.9, size=100, clock="agent", **more):
    variant, backend, precision = name.split()
    return {
        "name": f"{variant}, {backend} {precision} on {device}",
        "variant": variant,
        "target": {
            "backend": backend,
            "precision": precision,
            "device": device,
            "options": {"threads": 1},
        },
        "status": "ok",
        "pareto": pareto,
        "latency": {"median_ms": ms, "timed_by": clock, "emulated": more.pop("emulated", False)},
        "metrics": {"top1": top1},
        "size_bytes": size,
        "peak_memory_bytes": None,
        "energy_mj": None,
        "artifact": f"sha256:{name}{device}{clock}",
        **more,
    }


def values(*results):
    return {
        "run_id": "r",
        "results": list(results),
        "metrics": [{"name": "top1", "better": "higher"}],
    }


def holds(_result):
    return []


FAST, SMALL, EXACT = (
    result("slim ncnn int8", 1.0, top1=0.8, size=50),
    result("slim ncnn fp16", 2.0, size=20),
    result("original tflite fp32", 3.0, top1=0.99),
)
OFF = result("slim tflite int8", 0.5, pareto=False, top1=0.1)
FAILED = {**result("slim mace int8", 0.1), "status": "failed"}


def test_unless_said_the_fastest_on_the_front_that_holds_every_gate():
    run = values(FAILED, OFF, EXACT, SMALL, FAST)
    assert choose(run, Wish(), holds) is FAST
    assert choose(run, Wish(), lambda r: ["top1 is low"] if r is FAST else []) is SMALL
    with pytest.raises(GateFailed, match=r"top1 is low.*--target"):
        choose(run, Wish(), lambda r: ["top1 is low"])


@pytest.mark.parametrize(
    ("wish", "wanted"),
    [
        (Wish(best="top1"), EXACT),
        (Wish(best="size"), SMALL),
        (Wish(best="latency"), OFF),
        (Wish(target="slim ncnn", best="top1"), SMALL),
        (Wish(target="original"), EXACT),
        (Wish(target="int8 ncnn threads=1"), FAST),
        (Wish(target=SMALL["name"]), SMALL),
    ],
)
def test_the_one_that_is_meant(wish, wanted):
    assert choose(values(OFF, EXACT, SMALL, FAST, FAILED), wish, holds) is wanted


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(target="slim"), r"3 results .*slim, ncnn int8 on pi4 \(1 ms\).*Say more"),
        (Wish(target="nothing"), "no result of the run is like"),
        (Wish(target=""), "no result of the run is like"),
        (Wish(target="int8 mace"), "no result of the run is like"),
        (Wish(best="beauty"), "--best takes latency, size, memory, energy, top1"),
        (Wish(best="energy"), "no result has a energy"),
    ],
)
def test_what_is_not_one_alone_is_refused_with_the_choices(wish, words):
    with pytest.raises(UsageError, match=words):
        choose(values(OFF, EXACT, SMALL, FAST, FAILED), wish, holds)


@pytest.mark.parametrize("other", [{"device": "orin"}, {"clock": "trtexec"}])
def test_other_boards_and_other_clocks_are_not_compared(other):
    with pytest.raises(UsageError, match="2 results are the best by latency"):
        choose(values(FAST, result("slim ncnn int8", 9.0, **other)), Wish(), holds)


def test_variants_with_one_artifact_are_one_choice():
    twin = {**FAST, "variant": "simplified", "name": "simplified, ncnn int8 on pi4"}
    assert choose(values(FAST, twin), Wish(), holds) is FAST
    unlike = {**twin, "artifact": "sha256:another"}
    with pytest.raises(UsageError, match="2 results are the best"):
        choose(values(FAST, unlike), Wish(), holds)


def test_an_emulated_board_has_no_fastest():
    run = values(result("slim ncnn int8", 1.0, emulated=True))
    with pytest.raises(UsageError, match="no result stands on the front"):
        choose(run, Wish(), holds)
    assert choose(run, Wish(best="size"), holds)["size_bytes"] == 100


def test_a_run_without_a_measured_target_is_refused():
    with pytest.raises(UsageError, match="no target of the run"):
        choose(values(FAILED), Wish(), holds)

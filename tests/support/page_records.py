"""Runs for the page's tests: large ones, hostile ones, and each edge that a page can meet."""

from __future__ import annotations

import dataclasses

import numpy as np
import record_makers as made

from wherry.reports import RunRecord

HOSTILE = (
    "<script>window.harmed = 1</script>",
    '</script><script>window.harmed = 1</script><img src=x onerror="window.harmed = 1">',
    '"onload="window.harmed = 1" x="',
    "javascript:window.harmed = 1",
    "</style><svg onload=window.harmed=1>",
    "{{ 7 * 7 }} ${window.harmed = 1} <!-- -->",
    "__proto__",
    "constructor",
    "\u202egnp.exe\u202c \u2066x\u2069 \u2028\u2029 \x00\x1b[31m",
    "very-" * 60 + "long",
)


def with_samples(record: RunRecord, count: int = 900, seed: int = 0) -> RunRecord:
    """Samples around each median: most close to it, some late, a step in the last third."""
    random = np.random.default_rng(seed)
    samples = []
    for result in record.values["results"]:
        if result["status"] != "ok":
            samples.append({})
            continue
        median = result["latency"]["median_ms"] * 1e6
        each = median * (1 + np.abs(random.normal(0, 0.04, count)) - 0.03)
        each[2 * count // 3 :] *= 1.03
        each[random.integers(0, count, count // 50)] *= 3
        infer = each.astype(np.uint64)
        samples.append({"infer_ns": infer, "total_ns": infer + np.uint64(2000)})
    return dataclasses.replace(record, samples=tuple(samples))


def sensors(readings: int, start: float = 100.0) -> list[dict]:
    """A board that gets warm, and at last slows down."""
    return [
        {
            "time_s": start + 3.0 * i,
            "values": {
                "temperature_c.cpu": 45.0 + 30 * i / max(readings - 1, 1),
                "frequency_khz.policy0": 1_800_000 if i < 0.8 * readings else 1_500_000,
                "governor.policy0": "performance",
                "throttled": 0 if i < 0.8 * readings else 4,
                "load_1m": 0.2,
                "cpu_busy_s": 10.0 + i,
            },
        }
        for i in range(readings)
    ]


def rich() -> RunRecord:
    """Something of everything: gates, failures, two boards and an emulated one, layers, heat."""
    record = made.rich_record()
    results = record.values["results"]
    for index, result in enumerate(results):
        if result["status"] == "ok":
            result["sensors"] = sensors(8, 100.0 + 30 * index)
    results[2] |= made.layered_of(
        made.layer_of("conv1", 1.4), made.layer_of("relu1 fc", 1.2), made.layer_of("flatten", 0.1)
    )
    results[5]["passes"] = [
        {
            "pass": "prune.filters", "macs_before": 2_400_000, "macs_after": 1_200_000,
            "units": {"conv1": [16, 8], "conv2": [32, 20]}, "reached": 0.5,
        },
        {
            "pass": "lowrank.spatial-svd",
            "layers": [{"node": "conv3", "rank": [4], "energy": 0.97}],
            "left": [{"node": "fc", "why": "too small"}],
        },
        {"pass": "fit", "held_out": {"by": "top1", "before": 0.93, "after": 0.981}},
    ]  # fmt: skip
    return with_samples(record)


def nothing() -> RunRecord:
    """No result at all: the model could not be read."""
    return made.record_of(model=None, reference=None, data={})


def one() -> RunRecord:
    """A single result, without metrics."""
    return with_samples(made.record_of(made.result_of(metrics={}, pareto=True), metrics=[]))


def unranked() -> RunRecord:
    """A single result that no front has: nothing ranked it."""
    return with_samples(made.record_of(made.result_of(pareto=False)))


def all_failed() -> RunRecord:
    """Nothing was measured."""
    return made.record_of(
        made.result_of(ms=None),
        made.result_of("slim", ms=None, status="skipped", error="no int8 GRU"),
    )


def emulated() -> RunRecord:
    """An emulated board alone: no latency may be ranked."""
    results = [
        made.result_of(v, latency={"emulated": True}, ms=90.0 + i, size_bytes=400_000 - 1000 * i,
                       speedup_vs_fp32=None)
        for i, v in enumerate(("original", "slim", "thin"))
    ]  # fmt: skip
    record = made.record_of(*results)
    record.values["devices"] = {"pi4": {**made.BOARD, "emulated": True}}
    return with_samples(record)


def without_accuracy() -> RunRecord:
    """Metrics were asked for, and some results have none."""
    return with_samples(
        made.record_of(
            made.result_of(pareto=True), made.result_of("bare", metrics={}), made.result_of(ms=None)
        )
    )


def hostile() -> RunRecord:
    """Names that try to be more than names, wherever a name can stand."""
    results = [
        made.result_of(text, text, text, text, ms=1.0 + i, options={text: text}, pareto=i == 0,
                       metrics=dict.fromkeys(HOSTILE, 0.9), warnings=[text],
                       latency={"timed_by": text, "clean": False, "disturbances": [text]},
                       provenance={text: {text: text}}, extra={text: [text]},
                       passes=[{"pass": text, text: {text: [4, 2]}, "note": text}],
                       sensors=[{"time_s": float(t), "values": {text: t, "governor": text}}
                                for t in range(3)],
                       sustained=made.sustained_of(throttled_by=text),
                       **made.layered_of(made.layer_of(text, 1.0, text, type=text)))
        for i, text in enumerate(HOSTILE)
    ]  # fmt: skip
    results += [{**r, "name": r["name"] + " again"} for r in results]  # two: layers are compared
    results.append(made.result_of(HOSTILE[0], ms=None, error=HOSTILE[1]))
    return with_samples(
        made.record_of(
            *results,
            metrics=[{"name": text, "better": "higher", "unit": text} for text in HOSTILE],
            reference={"metrics": dict.fromkeys(HOSTILE, 1.0), "data": "evaluation"},
            gates=[made.gate_of(gate=text, reason=text, passed=False) for text in HOSTILE],
            plugins=[{"name": t, "distribution": t, "version": t, "module": t} for t in HOSTILE],
            manifest=HOSTILE[1],
            tag=HOSTILE[0],
            overrides=list(HOSTILE),
            manifest_text="\n".join(HOSTILE),
        )
    )


def many(targets: int = 200, *, layers: int = 60, sustained: bool = True) -> RunRecord:
    """A large run: variants x three backends x precisions on four boards, with all there is."""
    random = np.random.default_rng(1)
    boards = ("pi4", "pi5", "orin", "rk3588")
    backends = ("onnxruntime", "tflite", "ncnn")
    results = []
    for i in range(targets):
        board, backend = boards[i % 4], backends[i // 4 % 3]
        precision, variant = ("fp32", "int8")[i // 12 % 2], f"variant-{i // 24}"
        times = random.uniform(0.01, 0.5, layers).tolist()
        results.append(
            made.result_of(
                variant, backend, precision, board, ms=float(random.uniform(2, 40)),
                top1=float(random.uniform(0.93, 0.99)), energy_mj=float(random.uniform(5, 90)),
                size_bytes=int(random.integers(100_000, 4_000_000)),
                sensors=sensors(20, 100.0 + 60 * i),
                sustained=made.sustained_of() if sustained else None,
                **made.layered_of(*(made.layer_of(f"/block.{n}/conv/Conv", ms)
                                    for n, ms in enumerate(times))),
            )
        )  # fmt: skip
    for board in boards:
        group = [r for r in results if r["target"]["device"] == board]
        best = 0.0
        for result in sorted(group, key=lambda r: r["latency"]["median_ms"]):
            result["pareto"] = result["metrics"]["top1"] > best
            best = max(best, result["metrics"]["top1"])
    return with_samples(made.record_of(*results), count=1000)

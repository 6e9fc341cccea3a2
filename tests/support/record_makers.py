"""Records of runs, made by hand, for the tests of reports, gates and records."""

from __future__ import annotations

import copy

import numpy as np

from wherry.reports import RunRecord

BOARD = {
    "fingerprint": "ab" * 32,
    "hostname": "bench",
    "machine": "aarch64",
    "system": "Debian GNU/Linux 12 (bookworm)",
    "kernel": "6.6.20+rpt-rpi-v8",
    "python": "3.11.2",
    "python_executable": "/usr/bin/python3",
    "glibc": "2.36",
    "cpu": "Cortex-A72",
    "cores": 4,
    "memory_bytes": 8_000_000_000,
    "model": "Raspberry Pi 4 Model B Rev 1.5",
    "emulated": False,
    "identity": "cd" * 32,
    "facts": {"os_id": "debian"},
}
SPEC = {"name": "input", "dtype": "float32", "shape": [1, 1, 28, 28]}
METRIC = {"better": "higher", "unit": "", "definition": "12" * 32}
VALUES = {
    "schema_version": 1,
    "run_id": "20261124-040500-3f9a",
    "tag": None,
    "continues": None,
    "wherry": "0.1.0",
    "manifest": "manifests/quickstart.yaml",
    "overrides": [],
    "started": "2026-11-24T04:05:00+00:00",
    "finished": "2026-11-24T04:06:00+00:00",
    "host": {
        "hostname": "desk",
        "system": "Linux 6.12",
        "machine": "x86_64",
        "python": "3.12.3",
        "cores": 8,
    },
    "devices": {},
    "tagged": {},
    "model": {
        "digest": "cd" * 32,
        "opset": 17,
        "inputs": [SPEC],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [1, 10]}],
        "size_bytes": 388_190,
    },
    "data": {"evaluation": {"source": "mnist5k", "samples": 4800, "digest": "ef" * 32}},
    "measure": {
        "rounds": 3,
        "warmup_s": 0.3,
        "warmup_runs": 5,
        "duration_s": 1.0,
        "min_runs": 10,
        "max_runs": 20_000,
        "seed": 0,
        "stabilise": True,
        "power_mode": None,
        "sustained": 120.0,
        "layers": True,
        "convention": 1,
    },
    "metrics": [
        {**METRIC, "name": "top1", "against": "labels"},
        {**METRIC, "name": "agreement", "against": "original"},
    ],
    "reference": {"metrics": {"top1": 0.985, "agreement": 1.0}, "data": "evaluation"},
    "results": [],
    "gates": [],
    "steps": [
        {
            "id": "model",
            "kind": "model",
            "title": "read the model",
            "state": "done",
            "seconds": 0.12,
            "error": None,
        }
    ],
    "plugins": [
        {
            "name": "ncnn",
            "distribution": "wherry",
            "version": "0.1.0",
            "module": "wherry_ncnn.plugin",
        }
    ],
}


def latency_of(median_ms: float, **changes: object) -> dict:
    return {
        "median_ms": median_ms,
        "ci95_ms": [0.98 * median_ms, 1.03 * median_ms],
        "p90_ms": 1.1 * median_ms,
        "p99_ms": None,
        "min_ms": 0.9 * median_ms,
        "mean_ms": median_ms,
        "samples": 600,
        "outliers": 7,
        "load_ms": 12.5,
        "first_ms": 2.5,
        "with_copies_ms": 1.05 * median_ms,
        "timed_by": "agent",
        "clean": True,
        "disturbances": [],
        "emulated": False,
        "steady": True,
        "rounds": 3,
        "round_sizes": [200, 200, 200],
        **changes,
    }


def result_of(
    variant: str = "original",
    backend: str = "onnxruntime",
    precision: str = "fp32",
    device: str = "pi4",
    *,
    ms: float | None = 1.0,
    top1: float = 0.985,
    options: dict | None = None,
    latency: dict | None = None,
    **changes: object,
) -> dict:
    """A result; ``ms=None`` for one that was not measured."""
    options = {"threads": 1, **(options or {})}
    changed = {key: value for key, value in options.items() if (key, value) != ("threads", 1)}
    words = ", ".join(f"{key}={value}" for key, value in changed.items())
    measured = ms is not None
    return {
        "name": f"{variant}, {backend} {precision} on {device}" + (f" ({words})" if words else ""),
        "variant": variant,
        "target": {
            "backend": backend,
            "precision": precision,
            "device": device,
            "options": options,
        },
        "status": "ok" if measured else "failed",
        "error": None if measured else "it broke",
        "latency": latency_of(ms, **(latency or {})) if measured else None,
        "metrics": {"top1": top1, "agreement": 0.999} if measured else {},
        "evaluated": 4800 if measured else 0,
        "calibration": {"method": "minmax", "samples": 200} if measured else None,
        "parity": {"sqnr_db": 120.0, "cosine": 1.0} if measured else None,
        "size_bytes": 388_190 if measured else None,
        "packed_bytes": None,
        "gzip_bytes": None,
        "peak_memory_bytes": 13_529_088 if measured else None,
        "energy_mj": None,
        "sustained": None,
        "layers": None,
        "layers_sum_ms": None,
        "layers_runs": None,
        "speedup_vs_fp32": 1.0 if measured else None,
        "fp32": None,
        "speedup_vs_original": None,
        "pareto": False,
        "artifact": "sha256:" + "12" * 32 if measured else None,
        "cached": False,
        "measured_in": "20261124-040500-3f9a" if measured else None,
        "warnings": [],
        "sensors": [{"time_s": 12.5, "values": {"load_1m": 0.1, "governor.policy0": "performance"}}]
        if measured
        else [],
        "provenance": {"tool": backend},
        "passes": [{"pass": "prune.filters", "macs": 0.5}],
        "extra": {"runtime": {"version": "1.0"}},
        **changes,
    }


def sustained_of(throttled_s: float | None = 60.0, **changes: object) -> dict:
    """Two minutes, in which the board gets hot and slows down."""
    points = [
        {
            "time_s": float(second),
            "runs": 200,
            "median_ms": 4.2 if second < 60 else 5.25,
            "p90_ms": 4.6 if second < 60 else 5.8,
            "temperature_c": 50.0 + second / 4,
            "frequency_khz": 1_800_000 if second < 60 else 1_500_000,
            "power_w": None,
        }
        for second in range(1, 121)
    ]
    return {
        "duration_s": 120.0,
        "ratio": 1.25,
        "throttled_s": throttled_s,
        "throttled_by": None if throttled_s is None else "the board was throttled",
        "points": points,
        **changes,
    }


def layer_of(nodes: str, median_ms: float | None, name: str = "", **changes: object) -> dict:
    """A layer of the ONNX nodes that ``nodes`` names, with spaces between them."""
    return {
        "name": name or nodes.replace(" ", "+"),
        "type": "CONV_2D",
        "nodes": nodes.split(),
        "precision": "fp32",
        "median_ms": median_ms,
        "share": None,
        **changes,
    }


def layered_of(*layers: dict) -> dict:
    """The three fields of a result whose layers are timed."""
    total = sum(layer["median_ms"] or 0.0 for layer in layers)
    shares = [layer["median_ms"] and layer["median_ms"] / total for layer in layers]
    found = [{**layer, "share": share} for layer, share in zip(layers, shares, strict=True)]
    return {"layers": found, "layers_sum_ms": total, "layers_runs": 100}


def gate_of(passed: bool = True, **changes: object) -> dict:
    return {
        "gate": "top1 max_drop 0.01",
        "passed": passed,
        "value": 0.985,
        "result": "original, onnxruntime fp32 on pi4",
        "reason": "top1 0.985 against 0.985, no drop, at most 0.01",
        "location": "m.yaml:9:5",
        "against": None,
        "base": None,
        "allowed": [],
        **changes,
    }


def record_of(*results: dict, manifest_text: str = "wherry: 1\n", **changes: object) -> RunRecord:
    values = copy.deepcopy({**VALUES, "results": list(results), **changes})
    if "devices" not in changes:
        values["devices"] = {r["target"]["device"]: BOARD for r in results}
    samples = tuple(
        {"infer_ns": np.arange(3, dtype=np.uint64), "total_ns": np.arange(3, dtype=np.uint64)}
        if result["status"] == "ok"
        else {}
        for result in results
    )
    return RunRecord(values, samples, manifest_text)


def rich_record() -> RunRecord:
    """Something of everything."""
    busy = {"clean": False, "disturbances": ["Other processes kept 1.0 of 4 cores busy."]}
    busier = {"clean": False, "disturbances": ["Other processes kept 1.4 of 4 cores busy."]}
    slow = ["int8 is slower than fp32 here (x0.77)"]
    return record_of(
        result_of(
            "original",
            "onnxruntime",
            "fp32",
            ms=4.2,
            pareto=True,
            energy_mj=21.5,
            sustained=sustained_of(),
            **layered_of(
                layer_of("conv1 relu1", 3.0),
                layer_of("fc", 0.5, precision="fp16"),
                layer_of("flatten", None),
                layer_of("", 0.25, "reorder", type="", precision=None),
            ),
            extra={"energy": {"method": "rail", "source": "VDD_IN", "power_w": 5.1}},
        ),
        result_of("original", "onnxruntime", "fp16", ms=4.25, top1=0.9848, latency=busy),
        result_of("original", "ncnn", "fp32", ms=3.1, top1=0.9851, pareto=True, cached=True),
        result_of("original", "ncnn", "fp16", ms=3.12, top1=0.9851, options={"threads": 4}),
        result_of("original", "ncnn", "int8", ms=4.0, top1=0.979, warnings=slow, latency=busier),
        result_of(
            "slim", "tflite", "fp32", ms=2.2, top1=0.981, pareto=True, speedup_vs_original=1.42
        ),
        result_of("slim", "tflite", "int8", ms=None, status="skipped", error="no int8 GRU"),
        result_of("slim", "tflite", "fp16", ms=None, error="the tool ended:\nexit code 9"),
        result_of("original", "tflite", "fp32", "qemu", ms=90.0, latency={"emulated": True}),
        result_of("original", "ncnn", "fp32", "orin", ms=0.0071),
        gates=[gate_of(), gate_of(passed=False, gate="latency.median_ms max 2", reason="slow")],
        manifest_text="wherry: 1\nmodel: {path: net.onnx}\n",
        tag="nightly",
    )


class Makers:
    """The makers above, as the fixture ``make`` gives them."""

    result = staticmethod(result_of)
    record = staticmethod(record_of)
    gate = staticmethod(gate_of)
    sustained = staticmethod(sustained_of)
    layer = staticmethod(layer_of)
    layered = staticmethod(layered_of)
    rich = staticmethod(rich_record)

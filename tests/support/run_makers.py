"""Records with rounds, for the tests of comparisons: what a run measured, and what another did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from record_makers import record_of, result_of

from wherry.reports import RunRecord

QUIET = (1.0, 1.002, 0.998, 1.001, 0.999)
"""What rounds differ by."""


def measured(ms: float = 5.0, *names: str, rounds: Sequence[float] = QUIET, **changes) -> dict:
    """A result whose rounds scatter around ``ms``; `run_of` makes its samples."""
    result = result_of(*names, ms=ms, **changes)
    result["latency"] |= {"rounds": len(rounds), "round_sizes": [21] * len(rounds)}
    result["rounds_of_test"] = [ms * factor for factor in rounds]
    return result


def run_of(*results: dict, run_id: str = "20261124-040500-3f9a", **changes) -> RunRecord:
    """A run of results of `measured`, or of `record_makers.result_of`."""
    rounds = [result.pop("rounds_of_test", None) for result in results]
    record = record_of(*results, run_id=run_id, **changes)
    samples = []
    for result, medians, made in zip(record.values["results"], rounds, record.samples, strict=True):
        if result["status"] == "ok":
            result["measured_in"] = run_id
        if medians is None:
            samples.append(made)
            continue
        within = np.linspace(-0.003, 0.003, 21)
        infer = np.concatenate([ms * (1 + within) * 1e6 for ms in medians]).astype(np.uint64)
        result["latency"]["median_ms"] = float(np.median(infer)) / 1e6
        samples.append({"infer_ns": infer, "total_ns": infer + np.uint64(1000)})
    return replace(record, samples=tuple(samples))

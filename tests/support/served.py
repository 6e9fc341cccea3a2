"""What the tests of the server share: its token, and runs of a fortnight."""

from __future__ import annotations

import dataclasses

import numpy as np
from record_makers import record_of, result_of

from wherry.records.database import Records
from wherry.reports import RunRecord

TOKEN = "correct-horse-battery-staple"
_ROUNDS, _SIZE = 5, 40


def timed(record: RunRecord, seed: int = 0) -> RunRecord:
    """The record with rounds of samples around each median, measured in this very run."""
    random = np.random.default_rng(seed)
    samples = []
    for result in record.values["results"]:
        if result["status"] != "ok":
            samples.append({})
            continue
        result["latency"]["round_sizes"] = [_SIZE] * _ROUNDS
        result["measured_in"] = record.values["run_id"]
        median = 1e6 * result["latency"]["median_ms"]
        infer = (median * random.normal(1, 0.003, _ROUNDS * _SIZE)).astype(np.uint64)
        samples.append({"infer_ns": infer, "total_ns": infer + np.uint64(2000)})
    return dataclasses.replace(record, samples=tuple(samples))


def days(records: Records, count: int, **changes: object) -> list[str]:
    """A run a day, whose latency grows by a millisecond; returns the ids, the oldest first."""
    ids = []
    for day in range(1, count + 1):
        run_id = f"202611{day:02}-040500-{day:04x}"
        values = {"started": f"2026-11-{day:02}T04:05:00+00:00", "run_id": run_id, **changes}
        records.save(timed(record_of(result_of(ms=float(day), pareto=True), **values), seed=day))
        ids.append(run_id)
    return ids

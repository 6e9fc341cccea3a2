"""Calibration: the ranges of a model's activations, keyed by ONNX tensor name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wherry.errors import StoreError

Method = Literal["minmax", "percentile", "entropy", "mse"]
"""How ranges are chosen."""


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """What is asked of a calibration (the manifest's ``calibrate:``).

    Attributes:
        method: how the ranges are chosen.
        percentile: how many of a tensor's values its range has to hold, percent; for the method
            ``percentile`` alone.
    """

    method: Method = "minmax"
    percentile: float = 99.99

    def parts(self) -> dict[str, object]:
        """What decides the ranges, for the store's keys."""
        if self.method != "percentile":
            return {"method": self.method}
        return {"method": self.method, "percentile": self.percentile}


@dataclass(frozen=True)
class Calibration:
    """What the calibrate stage computed once and every backend writes in its own form.

    Attributes:
        method: how the ranges were chosen, e.g. ``minmax``.
        samples: how many samples were run.
        ranges: ONNX tensor name to (least, greatest) value, float32 activations only.
        thresholds: ONNX tensor name to the greatest |x|, for those who quantise without a zero
            point; empty where whoever calibrated knows ranges alone, see `threshold`.
    """

    method: str
    samples: int
    ranges: Mapping[str, tuple[float, float]]
    thresholds: Mapping[str, float] = field(default_factory=dict)

    FILE = "calibration.json"

    def threshold(self, name: str) -> float:
        """A tensor's threshold on |x|: the one that was chosen, or else its range's."""
        low, high = self.ranges[name]
        return self.thresholds.get(name, max(-low, high))

    @property
    def digest(self) -> str:
        """sha256 over all of it, hex."""
        text = json.dumps(self._values(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, directory: Path) -> None:
        """Write ``calibration.json`` into ``directory``."""
        (directory / self.FILE).write_text(json.dumps(self._values(), indent=1))

    def _values(self) -> dict[str, object]:
        return {
            "method": self.method,
            "samples": self.samples,
            "ranges": dict(self.ranges),
            "thresholds": dict(self.thresholds),
        }

    @classmethod
    def load(cls, directory: Path) -> Calibration:
        """The inverse of `save`; raises `StoreError`."""
        path = directory / cls.FILE
        try:
            values = json.loads(path.read_text())
            ranges = {name: (float(lo), float(hi)) for name, (lo, hi) in values["ranges"].items()}
            thresholds = {name: float(value) for name, value in values["thresholds"].items()}
            return cls(values["method"], int(values["samples"]), ranges, thresholds)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"not a calibration: {error!r}", where=str(path), remedy="Remove it and run again."
            ) from error

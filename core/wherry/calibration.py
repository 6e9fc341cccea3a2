"""Calibration: the ranges of a model's activations, keyed by ONNX tensor name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import StoreError


@dataclass(frozen=True)
class Calibration:
    """What the calibrate stage computed once and every backend writes in its own form.

    Attributes:
        method: how the ranges were chosen, e.g. ``minmax``.
        samples: how many samples were run.
        ranges: ONNX tensor name to (least, greatest) value, float32 activations only.
    """

    method: str
    samples: int
    ranges: Mapping[str, tuple[float, float]]

    FILE = "calibration.json"

    @property
    def digest(self) -> str:
        """sha256 over all of it, hex."""
        text = json.dumps(self._values(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, directory: Path) -> None:
        """Write ``calibration.json`` into ``directory``."""
        (directory / self.FILE).write_text(json.dumps(self._values(), indent=1))

    def _values(self) -> dict[str, object]:
        return {"method": self.method, "samples": self.samples, "ranges": dict(self.ranges)}

    @classmethod
    def load(cls, directory: Path) -> Calibration:
        """The inverse of `save`; raises `StoreError`."""
        path = directory / cls.FILE
        try:
            values = json.loads(path.read_text())
            ranges = {name: (float(lo), float(hi)) for name, (lo, hi) in values["ranges"].items()}
            return cls(values["method"], int(values["samples"]), ranges)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"not a calibration: {error!r}", where=str(path), remedy="Remove it and run again."
            ) from error

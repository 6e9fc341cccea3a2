"""Metrics: what a report says of an artifact's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np


class Metric(Protocol):
    """Accumulates over an evaluation set, one sample at a time, in bounded memory."""

    def update(
        self,
        outputs: Mapping[str, np.ndarray],
        reference: Mapping[str, np.ndarray],
        label: int | np.ndarray | None,
    ) -> None:
        """Take one sample.

        Args:
            outputs: the artifact's outputs, by ONNX name, in the ONNX shape (with the batch axis).
            reference: the original model's in fp32 on ONNX Runtime, likewise.
            label: the sample's label; raises `wherry.errors.DataError` where one is needed.
        """
        ...

    def result(self) -> float:
        """The value over all samples so far."""
        ...


@dataclass(frozen=True)
class MetricKind:
    """Descriptor of a metric, yielded by ``wherry_metrics``.

    Attributes:
        name: the word in manifests and reports.
        description: one line.
        better: whether ``higher`` or ``lower`` values are better.
        create: makes a fresh accumulator; ``output`` is the name of the output to look at, None:
            all of them (or the first, for metrics of one output).
        needs_labels: the dataset must have labels.
        unit: for the report; empty for a ratio.
        files: the plugin's files whose content decides the value; their bytes are part of the
            store's keys; empty: all of the plugin's Python files.
        version: raise it when the same outputs give another value for any other reason.
    """

    name: str
    description: str
    better: Literal["higher", "lower"]
    create: Callable[[str | None], Metric]
    needs_labels: bool = False
    unit: str = ""
    files: tuple[Path, ...] = ()
    version: int = 1

"""How much the outputs suffer when one group alone is narrowed: a table, measured on samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wherry.parity import compare
from wherry_compress.graph.channels import Channels
from wherry_compress.job import Data
from wherry_compress.prune.runs import outputs
from wherry_compress.prune.targets import lowest

LEVELS = (0.25, 0.5, 0.75)
"""Shares of a group that are cut to see what happens."""


def table(
    channels: Channels, scores: Sequence[np.ndarray], data: Data, samples: int
) -> list[list[float]]:
    """The signal-to-noise ratio of the outputs, dB, with a share of one group cut.

    Args:
        channels: of the network.
        scores: by which units of a group go.
        data: calibration.
        samples: of it, so many.

    Returns:
        For each group a value for each of `LEVELS`: the worst of all outputs.
    """
    reference = outputs(channels.proto, data, samples)
    full = np.array([len(group.units) for group in channels.groups])
    found = []
    for index in range(len(channels.groups)):
        row = []
        for level in LEVELS:
            counts = full.copy()
            counts[index] = max(1, round((1 - level) * full[index]))
            proto = channels.slice(lowest(scores, channels, counts))
            row.append(compare(outputs(proto, data, samples), reference).sqnr_db)
        found.append(row)
    return found


def errors(rows: Sequence[Sequence[float]], full: np.ndarray) -> list[np.ndarray]:
    """The error of the outputs, relative to their power, with 0, 1, ... units of a group cut.

    Between what was measured, and on to the last, it is taken to run straight; it never falls.

    Args:
        rows: what `table` gives.
        full: units of each group.
    """
    curves = []
    for row, count in zip(rows, full.tolist(), strict=True):
        noise = np.maximum.accumulate([0.0, *(10 ** (-np.array(row) / 10))])
        levels = [0.0, *LEVELS]
        last = noise[-1] + (noise[-1] - noise[-2]) * (1 - levels[-1]) / (levels[-1] - levels[-2])
        cut = np.arange(count) / count
        curves.append(np.interp(cut, [*levels, 1.0], [*noise, last]))
    return curves

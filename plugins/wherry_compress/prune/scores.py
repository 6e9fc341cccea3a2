"""How much each channel is worth: the criteria by which filters are cut.

- ``l1``, ``l2``: the norm of a channel's weights (Li et al., "Pruning filters for efficient
  convnets", ICLR 2017, section 3.1).
- ``fpgm``: how far a channel's weights are from those of all others; what is near the geometric
  median can be stood for by others (He et al., "Filter pruning via geometric median", CVPR 2019,
  section 3).
- ``activation``: how much the sums of the channel's readers lose without it on calibration data:
  the mean square of the channel times that of the weights that read it. What He et al. (ICCV 2017)
  and ThiNet minimise, for single channels.
- ``taylor``: what a loss loses, to first order (`taylor`, with torch).
- ``random``: the floor.

The papers look at the weights that make a channel. With batch norms folded these say little: their
scale made up for what came in, and a depthwise convolution behind them may take it back. Channels
come out alike, and how much each counts stands in the weights that read it; so these are looked at
unless ``makers`` are asked for (measured in ``tests/benchmarks/bench_prune.py``).

But for ``taylor``, which is of one loss, a score is relative to the mean of its node; a unit of
several nodes has the mean of theirs.
"""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from wherry_compress.graph.channels import Channels, Cut, Group
from wherry_compress.job import Data
from wherry_compress.prune.runs import second_moments


def scores(
    channels: Channels, criterion: str, norm_of: str, seed: int, data: Data | None
) -> tuple[np.ndarray, ...]:
    """For each group the worth of its units, float64 [units]; more is better.

    Args:
        channels: of the network.
        criterion: see the module.
        norm_of: ``readers`` or ``makers``.
        seed: for ``random``.
        data: for ``activation`` and ``taylor``.
    """
    if criterion == "random":
        generator = np.random.default_rng(seed)
        return tuple(generator.random(len(group.units)) for group in channels.groups)
    if criterion == "taylor":
        from wherry_compress.prune.taylor import taylor

        assert data is not None, "the pass needs it"
        return taylor(channels, data)
    role = "filters" if norm_of == "makers" else "reads"
    worth: list[list[np.ndarray]] = [[] for _ in channels.groups]
    arrays = {t.name: numpy_helper.to_array(t) for t in channels.proto.graph.initializer}
    moments = second_moments(channels, data) if criterion == "activation" and data else {}
    for cut in channels.cuts:
        if cut.role != role:
            continue
        rows = np.moveaxis(arrays[cut.tensor].astype(np.float64), cut.axis, 0)
        rows = rows.reshape(len(rows), -1)
        if criterion == "activation":
            each = (rows**2).sum(axis=1) * _tiled(moments[cut.node], len(rows))
        else:
            each = {"l1": _l1, "l2": _l2, "fpgm": _fpgm}[criterion](rows)
        each = each / max(float(each.mean()), np.finfo(np.float64).tiny)
        for index, group in enumerate(channels.groups):
            if (channels.roots[cut.ids] == group.units[0]).any():
                worth[index].append(_of_units(channels, cut, group, each, criterion))
    return tuple(np.mean(values, axis=0) if values else np.zeros(len(group.units))
                 for values, group in zip(worth, channels.groups, strict=True))  # fmt: skip


def _of_units(
    channels: Channels, cut: Cut, group: Group, each: np.ndarray, criterion: str
) -> np.ndarray:
    """A unit's channels together: what they lose adds up, norms are averaged."""
    values = each[channels.positions(cut, group)]
    found: np.ndarray = values.sum(axis=1) if criterion == "activation" else values.mean(axis=1)
    return found


def _tiled(moments: np.ndarray, rows: int) -> np.ndarray:
    """Of a grouped convolution's inputs, to the mean over the groups for a place in a group."""
    found: np.ndarray = moments.reshape(-1, rows).mean(axis=0)
    return found


def _l1(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.abs(rows).sum(axis=1)
    return found


def _l2(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.sqrt((rows**2).sum(axis=1))
    return found


def _fpgm(rows: np.ndarray) -> np.ndarray:
    """The sum of distances to all others, [rows], by a Gram matrix."""
    squares = (rows**2).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * rows @ rows.T
    found: np.ndarray = np.sqrt(np.maximum(distances, 0)).sum(axis=1)
    return found

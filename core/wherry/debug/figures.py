"""What is counted of each exposed tensor, sample by sample, in memory that does not grow.

Of each tensor there are three: the reference's, the deployed one, and what the piece that makes
it (`wherry.debug.graphs`) gives in fp32 from the *deployed* tensors that it reads. The first two
differ by all that went wrong so far (accumulated), the last two by what this piece does wrong
itself (own). Put alone into the reference, the own error shows what it does to the outputs
(effect).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from wherry.parity import CAP_DB, Difference

if TYPE_CHECKING:
    from wherry.artifact import Binding
    from wherry.debug.graphs import Graphs

FP16_END = 65504.0
"""The greatest value of float16."""


class Tally:
    """The sums over one tensor.

    Args:
        name: of the tensor.
        binding: as the artifact gives it.
        precision: that the layer computes in.

    Attributes:
        accumulated: deployed against the reference.
        own: deployed against what the piece gives in fp32.
        effects: output to the error that the own error alone makes there.
        reference_range: least and greatest value of the reference.
        deployed_range: likewise.
    """

    def __init__(self, name: str, binding: Binding, precision: str) -> None:
        self.accumulated = Difference(name)
        self.own = Difference(name)
        self.effects: dict[str, Difference] = {}
        self.reference_range = self.deployed_range = (np.inf, -np.inf)
        self._stored = self._added = 0.0  # powers: of the error of storing alone, of all own error
        self._clipped = 0
        self._binding = binding
        self._ends = _ends(binding, precision)

    def update(self, reference: np.ndarray, deployed: np.ndarray, own: np.ndarray) -> None:
        """Take one sample."""
        self.accumulated.update(deployed, reference)
        self.own.update(deployed, own)
        self.reference_range = _wider(self.reference_range, reference)
        self.deployed_range = _wider(self.deployed_range, deployed)
        if self._ends is None:
            return
        low, high, step = self._ends
        if own.size and (own.min() < low - step / 2 or own.max() > high + step / 2):
            self._clipped += int(np.count_nonzero((own < low - step / 2) | (own > high + step / 2)))
        if step:
            # the zero point is whole, so that steps from 0 are steps of the stored numbers
            nearest = np.clip(np.rint(own / np.float32(step)) * np.float32(step), low, high)
            self._stored += _power(nearest - own)
            self._added += _power(deployed - own)

    @property
    def saturation(self) -> float | None:
        """Share of the values that do not fit the deployed type's range.

        Values that are meant to lie at its end, as those that a Relu makes zero, do not count.
        None: the type has no range of its own.
        """
        if self._ends is None:
            return None
        return self._clipped / max(1, self.own.elements)

    @property
    def by_range(self) -> bool:
        """Whether the own error is that of storing the tensor: its range is what is wrong.

        Else weights or sums are. Both this piece and those that read the tensor have to stay in
        fp32 for it to be mended.
        """
        return 2 * self._stored >= self._added > 0

    @property
    def effect(self) -> float:
        """Noise over signal, as powers, at the output where the own error does the most."""
        return max(map(noise, self.effects.values()), default=0.0)


def noise(difference: Difference) -> float:
    """Power of the error over that of the signal; of whole numbers, the share that differs."""
    if difference.sqnr_db <= -CAP_DB and difference.finite:  # whole numbers, or a signal of zero
        return 1 - difference.cosine
    return 0.0 if difference.equal else float(10 ** (-difference.sqnr_db / 10))


def decibels(ratio: float) -> float:
    """Signal over noise, from noise over signal; +-300 dB at the ends, as everywhere."""
    return min(max(-10 * float(np.log10(max(ratio, 1e-300))), -CAP_DB), CAP_DB)


def count(
    graphs: Graphs,
    tallies: Mapping[str, Tally],
    samples: Iterable[Mapping[str, np.ndarray]],
    deployed: Iterator[Mapping[str, np.ndarray]],
    disturb: frozenset[int],
) -> Iterator[int]:
    """Feed the tallies; yields the number of samples done after each.

    Args:
        graphs: of the model that was converted.
        tallies: of ``graphs.tensors``.
        samples: what the model takes.
        deployed: what the device gave for each, all exposed tensors and outputs.
        disturb: the places of samples on which effects are found: each takes a run a tensor.
    """
    for place, (inputs, given) in enumerate(zip(samples, deployed, strict=True)):
        reference, own = graphs.reference(inputs), graphs.own(inputs, given)
        for name, tally in tallies.items():
            tally.update(reference[name], given[name], own[name])
            if place not in disturb or not graphs.takes_error(name):
                continue
            error = given[name].astype(own[name].dtype) - own[name]
            outputs = graphs.disturbed(inputs, name, error)
            for output in graphs.outputs:
                effect = tally.effects.setdefault(output, Difference(output))
                effect.update(outputs[output], reference[output])
        yield place + 1


def _ends(binding: Binding, precision: str) -> tuple[float, float, float] | None:
    """Least and greatest value that the deployed tensor can hold, and the step between values."""
    if binding.scale is not None:
        # a runtime may hand out its whole numbers as floats: they are of eight bits
        whole = np.dtype(binding.dtype).kind in "iu"
        limits = np.iinfo(binding.dtype if whole else np.int8)
        # symmetric schemes leave the least number out
        least = limits.min + (limits.min < 0 and binding.zero_point == 0)
        low, high = ((end - binding.zero_point) * binding.scale for end in (least, limits.max))
        return low, high, binding.scale
    return (-FP16_END, FP16_END, 0.0) if precision == "fp16" else None


def _power(error: np.ndarray) -> float:
    flat = error.ravel()
    return float(flat @ flat)


def _wider(known: tuple[float, float], array: np.ndarray) -> tuple[float, float]:
    if not array.size:
        return known
    flat = array.ravel()  # fmin and fmax pass over NaN, of which the differences tell
    return min(known[0], float(np.fmin.reduce(flat))), max(known[1], float(np.fmax.reduce(flat)))

"""Parity: how far an artifact's outputs are from the model's own in fp32.

Everything here is relative to the reference, so that the scale of a network's outputs does not
matter, and is a finite number whatever the outputs are: reports are JSON, which has no infinity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wherry.errors import ParityError

if TYPE_CHECKING:
    from wherry.target import ParityThreshold

CAP_DB = 300.0
"""Stands for an infinite signal-to-noise ratio; its negative for outputs that say nothing."""

NOISE = 1e-6
"""Root mean square below which an output is nothing but the rounding of float32 sums."""

WORST_ERROR = float(np.finfo(np.float32).max)
"""Stands for the error of an output that is not finite where the reference is."""


class Difference:
    """Sums over all elements of one output and all samples, in float64.

    - Signal-to-quantisation-noise ratio: ``10 log10(sum(reference^2) / sum((output -
      reference)^2))``, within +-300 dB.
    - Cosine of the angle between all outputs and all references, each as one vector.
    - Mean absolute error.

    Where output and reference are both smaller than `NOISE`, they are equal. Infinities in the
    reference have to be met exactly; any other value that is not finite makes the ratio -300 dB,
    the cosine -1 and the error `WORST_ERROR`. Whole numbers (class indices) have no distances:
    for them the cosine is the share of equal elements and the ratio is +-300 dB.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.elements = 0
        self.finite = True
        self._whole = False
        self._equal = 0
        self._reference = self._output = self._error = self._absolute = self._product = 0.0

    def update(self, output: np.ndarray, reference: np.ndarray) -> None:
        """Take one sample; raises `ParityError` where the shapes differ."""
        if output.shape != reference.shape:
            raise ParityError(
                f"output {self.name!r} has shape {output.shape}, and the model's has "
                f"{reference.shape}",
                remedy="The backend's converter or runner mixes up its outputs: report it.",
            )
        self.elements += reference.size
        if reference.dtype.kind != "f":
            self._whole = True
            self._equal += int(np.count_nonzero(output == reference))
        ours, theirs = output.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
        if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
            met = (ours == theirs) & ~np.isfinite(theirs)
            ours, theirs = ours[~met], theirs[~met]
            if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
                self.finite = False
                return
        error = ours - theirs
        self._reference += float(theirs @ theirs)
        self._output += float(ours @ ours)
        self._product += float(ours @ theirs)
        self._error += float(error @ error)
        self._absolute += float(np.abs(error).sum())

    @property
    def equal(self) -> bool:
        """All elements are the same, as far as float32 can tell."""
        noise = NOISE**2 * self.elements
        return self.finite and (
            self._error == 0 or (not self._whole and max(self._reference, self._output) < noise)
        )

    @property
    def sqnr_db(self) -> float:
        """See the class; decibels."""
        if self.equal:
            return CAP_DB
        if self._whole or not self.finite or self._reference == 0:
            return -CAP_DB
        ratio = 10 * (math.log10(self._reference) - math.log10(self._error))
        return min(max(ratio, -CAP_DB), CAP_DB)

    @property
    def cosine(self) -> float:
        """See the class; -1 to 1."""
        if self.equal:
            return 1.0
        if self._whole:
            return self._equal / self.elements
        if not self.finite:
            return -1.0
        norm = math.sqrt(self._reference) * math.sqrt(self._output)
        return min(max(self._product / norm, -1.0), 1.0) if norm else 0.0

    @property
    def mean_absolute_error(self) -> float:
        """See the class; in the output's own unit."""
        return self._absolute / max(self.elements, 1) if self.finite else WORST_ERROR


@dataclass(frozen=True)
class OutputParity:
    """One output.

    Attributes:
        sqnr_db: signal-to-quantisation-noise ratio; None for an output of whole numbers.
        cosine: for an output of whole numbers, the share of equal elements.
        mean_absolute_error: in the output's own unit.
        finite: no NaN and no infinity where the model has none.
    """

    sqnr_db: float | None
    cosine: float
    mean_absolute_error: float
    finite: bool


@dataclass(frozen=True)
class Parity:
    """All outputs of an artifact over the same samples as the model.

    Attributes:
        sqnr_db: of the worst output; 300 where all are of whole numbers.
        cosine: of the worst output.
        per_output: in the model's order.
        samples: how many were compared.
        warnings: why this comparison says less than it seems to, sentences.
    """

    sqnr_db: float
    cosine: float
    per_output: Mapping[str, OutputParity]
    samples: int
    warnings: tuple[str, ...] = ()


def compare(
    outputs: Iterable[Mapping[str, np.ndarray]], reference: Iterable[Mapping[str, np.ndarray]]
) -> Parity:
    """Compare an artifact's outputs with the model's, sample by sample.

    Args:
        outputs: per sample, ONNX output name to array in the ONNX shape.
        reference: likewise, from `wherry.reference`.

    Raises:
        ParityError: an output is missing or has another shape, or there are no samples.
    """
    differences: dict[str, Difference] = {}
    spreads: dict[str, _Spread] = {}
    samples = 0
    for ours, theirs in zip(outputs, reference, strict=True):
        samples += 1
        for name, expected in theirs.items():
            if name not in ours:
                raise ParityError(
                    f"the artifact gives no output {name!r}, only {sorted(ours)}",
                    remedy="The backend's converter or runner loses outputs: report it.",
                )
            differences.setdefault(name, Difference(name)).update(ours[name], expected)
            spreads.setdefault(name, _Spread(expected)).update(expected)
    if not samples:
        raise ParityError("there is no sample to compare", remedy="Give data with samples.")
    per_output = {
        name: OutputParity(
            difference.sqnr_db if theirs[name].dtype.kind == "f" else None,
            difference.cosine,
            difference.mean_absolute_error,
            difference.finite,
        )
        for name, difference in differences.items()
    }
    ratios = [entry.sqnr_db for entry in per_output.values() if entry.sqnr_db is not None]
    return Parity(
        sqnr_db=min(ratios, default=CAP_DB),
        cosine=min(entry.cosine for entry in per_output.values()),
        per_output=per_output,
        samples=samples,
        warnings=tuple(
            f"the model's output {name!r} is {problem}, so that its parity says little"
            for name, spread in spreads.items()
            if (problem := spread.problem(samples))
        ),
    )


class _Spread:
    """Whether a reference output says anything: a constant is easily met."""

    def __init__(self, first: np.ndarray) -> None:
        self._first = np.array(first, np.float64)
        self._power = self._change = 0.0
        self._elements = 0

    def update(self, array: np.ndarray) -> None:
        change = array - self._first
        self._power += float(np.square(array, dtype=np.float64).sum())
        self._change += float(np.square(change).sum())
        self._elements += array.size

    def problem(self, samples: int) -> str | None:
        if self._power < NOISE**2 * self._elements:
            return "zero for every sample"
        if samples > 1 and self._change <= NOISE**2 * self._power:
            return f"the same for all {samples} samples"
        return None


def check(
    parity: Parity, threshold: ParityThreshold, where: str, *, precision: str | None = None
) -> None:
    """Raise `ParityError` where an output is below the threshold.

    Args:
        parity: what `compare` found.
        threshold: the least that is accepted.
        where: the target, for the message.
        precision: the target's, for the remedy.
    """
    failing = {
        name: entry
        for name, entry in parity.per_output.items()
        if entry.cosine < threshold.cosine
        or (entry.sqnr_db is not None and entry.sqnr_db < threshold.sqnr_db)
    }
    if not failing:
        return
    name, worst = min(failing.items(), key=lambda item: (item[1].sqnr_db or 0, item[1].cosine))
    if worst.sqnr_db is None:
        figures = f"has {worst.cosine:.2%} of its elements equal"
        wanted = f"{threshold.cosine:.2%}"
    else:
        figures = f"has {worst.sqnr_db:.1f} dB SQNR and cosine {worst.cosine:.5f}"
        wanted = f"{threshold.sqnr_db:g} dB and {threshold.cosine:g}"
    others = (
        f"; {len(failing)} of {len(parity.per_output)} outputs fail" if len(failing) > 1 else ""
    )
    raise ParityError(
        f"output {name!r} {figures} against the model in fp32 over {parity.samples} samples, and "
        f"at least {wanted} are wanted{others}",
        where=where,
        remedy=_hint(worst, precision),
    )


def _hint(worst: OutputParity, precision: str | None) -> str:
    if precision == "fp32" and (worst.cosine >= 0.5 or not worst.finite):
        return (
            "In fp32 nothing but rounding may differ: the fault is in the backend's converter or "
            "its runner: report it."
        )
    if not worst.finite:
        return "It is not finite: values go beyond the precision's range. Try a wider precision."
    if worst.cosine < 0.5:
        return (
            "The values are unrelated: a layout, an order or a preprocessing is probably mixed up, "
            "which is the backend's fault: report it."
        )
    return "Try a wider precision, or better calibration data where it has any."

"""The metrics that wherry brings: top1, top5, agreement, sqnr_db, cosine, mae.

Classes lie along one axis of an output: axis 1 where it has four axes or more (ONNX's order, NCHW),
else the last; where a label is an array, the axis that fits it. What is left beside that axis are
places (pixels, tokens), and each place counts alike. An output of whole numbers holds the classes
themselves. Of several best classes the first counts, as with ``argmax``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from wherry import parity
from wherry.errors import DataError
from wherry.metrics import MetricKind
from wherry.parity import Difference

VOID = 255
"""In a label array of bytes, a place that does not count, as in PASCAL VOC; so does any below 0."""

_FILES = (Path(__file__), Path(parity.__file__))


def metrics() -> Iterable[MetricKind]:
    """For the host's plugin of built-ins."""
    yield MetricKind(
        "top1",
        "share of samples whose best class is the label",
        "higher",
        partial(TopK, "top1", 1),
        needs_labels=True,
        files=_FILES,
    )
    yield MetricKind(
        "top5",
        "share of samples whose label is among the five best classes",
        "higher",
        partial(TopK, "top5", 5),
        needs_labels=True,
        files=_FILES,
    )
    yield MetricKind(
        "agreement",
        "share of samples with the same best class as the original in fp32",
        "higher",
        Agreement,
        files=_FILES,
    )
    yield MetricKind(
        "sqnr_db",
        "signal-to-quantisation-noise ratio against the original in fp32; the worst output",
        "higher",
        partial(Distance, "sqnr_db", min, lambda difference: difference.sqnr_db),
        unit="dB",
        files=_FILES,
    )
    yield MetricKind(
        "cosine",
        "cosine similarity with the original in fp32; the worst output",
        "higher",
        partial(Distance, "cosine", min, lambda difference: difference.cosine),
        files=_FILES,
    )
    yield MetricKind(
        "mae",
        "mean absolute error against the original in fp32; the worst output",
        "lower",
        partial(Distance, "mae", max, lambda difference: difference.mean_absolute_error),
        files=_FILES,
    )


class _Share:
    """Counts places that are right; the base of metrics of one output."""

    def __init__(self, name: str, output: str | None) -> None:
        self.name = name
        self.output = output
        self._right = 0
        self._all = 0

    def _take(self, right: np.ndarray) -> None:
        self._right += int(np.count_nonzero(right))
        self._all += right.size

    def _select(self, outputs: Mapping[str, np.ndarray]) -> str:
        """The name of the output that is looked at."""
        return next(iter(outputs)) if self.output is None else self.output

    def result(self) -> float:
        """The share of places that are right; raises `DataError` where there were none."""
        if not self._all:
            raise _nothing(self.name)
        return self._right / self._all


class TopK(_Share):
    """The share of places whose label is among the ``k`` best classes."""

    def __init__(self, name: str, k: int, output: str | None) -> None:
        super().__init__(name, output)
        self.k = k

    def update(
        self,
        outputs: Mapping[str, np.ndarray],
        reference: Mapping[str, np.ndarray],  # noqa: ARG002 -- the protocol's
        label: int | np.ndarray | None,
    ) -> None:
        """See `wherry.metrics.Metric`."""
        if label is None:
            raise DataError(
                "the metric needs labels, and the data has none",
                where=f"metric {self.name}",
                remedy="Give the data labels, or use agreement, sqnr_db or cosine instead.",
            )
        output = _named(outputs, self._select(outputs), self.name)
        labels = np.asarray(label)
        if output.dtype.kind in "iub":
            self._take_classes(output, labels)
            return
        axis = class_axis(output.shape, labels)
        classes = output.shape[axis]
        if output.size > classes:  # several places: their classes go last
            output = np.moveaxis(output, axis, -1)
        places = output.reshape(-1, classes)
        wanted = labels.reshape(-1)
        if labels.dtype.kind not in "iub" or len(places) != len(wanted):
            raise self._misfit(output, labels)
        if classes <= self.k:
            raise DataError(
                f"the output has {classes} classes, so that any label is among the {self.k} best",
                where=f"metric {self.name}",
                remedy="Leave this metric out, or name the right output.",
            )
        if labels.ndim:
            counted = _counted(labels)
            places, wanted = places[counted], wanted[counted].astype(np.int64)
        beyond = (wanted < 0) | (wanted >= classes)
        if beyond.any():
            raise DataError(
                f"a label is {wanted[beyond][0]}, and the output has the classes 0 to "
                f"{classes - 1}",
                where=f"metric {self.name}",
                remedy="Correct the labels, or name the right output.",
            )
        if len(places) == 1:  # as of a classifier: without arrays of indices it is much sooner
            values, index = places[0], int(wanted[0])
            better = np.count_nonzero(values > values[index])
            better += np.count_nonzero(values[:index] == values[index])
            self._right += int(better < self.k and not np.isnan(values).any())
            self._all += 1
            return
        wanted = wanted[:, np.newaxis]
        own = places[np.arange(len(places))[:, np.newaxis], wanted]
        better = (places > own) | ((places == own) & (np.arange(classes) < wanted))
        self._take((better.sum(axis=1) < self.k) & ~np.isnan(places).any(axis=1))

    def _take_classes(self, output: np.ndarray, labels: np.ndarray) -> None:
        if self.k > 1 or output.size != labels.size or labels.dtype.kind not in "iub":
            raise self._misfit(output, labels)
        right = output.reshape(-1) == labels.reshape(-1)
        self._take(right[_counted(labels)] if labels.ndim else right)

    def _misfit(self, output: np.ndarray, labels: np.ndarray) -> DataError:
        return DataError(
            f"an output of shape {output.shape} ({output.dtype}) does not fit a label of shape "
            f"{labels.shape} ({labels.dtype})",
            where=f"metric {self.name}",
            remedy="Name the right output, or use another metric.",
        )


class Agreement(_Share):
    """The share of places with the same best class as the reference."""

    def __init__(self, output: str | None) -> None:
        super().__init__("agreement", output)

    def update(
        self,
        outputs: Mapping[str, np.ndarray],
        reference: Mapping[str, np.ndarray],
        label: int | np.ndarray | None,
    ) -> None:
        """See `wherry.metrics.Metric`."""
        name = self._select(reference)
        theirs, ours = (_named(side, name, self.name) for side in (reference, outputs))
        if ours.shape != theirs.shape:
            raise DataError(
                f"output {name!r} has shape {ours.shape}, and the original's has {theirs.shape}",
                where="metric agreement",
                remedy="Compare variants whose outputs have the same shape.",
            )
        if theirs.dtype.kind == "f":
            axis = class_axis(theirs.shape, None if label is None else np.asarray(label))
            valid = ~np.isnan(ours).any(axis)
            self._take((ours.argmax(axis) == theirs.argmax(axis)) & valid)
        else:
            self._take(ours == theirs)


class Distance:
    """A figure of `wherry.parity.Difference`, over all samples as one vector per output.

    Of the worst output, unless one is named; outputs of whole numbers have no distances and are
    left out.
    """

    def __init__(
        self,
        name: str,
        worst: Callable[[list[float]], float],
        figure: Callable[[Difference], float],
        output: str | None,
    ) -> None:
        self.name = name
        self.output = output
        self._worst = worst
        self._figure = figure
        self._differences: dict[str, Difference] = {}

    def update(
        self,
        outputs: Mapping[str, np.ndarray],
        reference: Mapping[str, np.ndarray],
        label: int | np.ndarray | None,  # noqa: ARG002 -- the protocol's
    ) -> None:
        """See `wherry.metrics.Metric`."""
        for name in reference if self.output is None else (self.output,):
            theirs = _named(reference, name, self.name)
            if theirs.dtype.kind == "f":
                difference = self._differences.setdefault(name, Difference(name))
                difference.update(_named(outputs, name, self.name), theirs)
        if not self._differences:
            raise DataError(
                f"all outputs are whole numbers: {', '.join(map(repr, reference))}"
                if self.output is None
                else f"output {self.output!r} is of whole numbers",
                where=f"metric {self.name}",
                remedy="Use agreement instead: it counts equal ones.",
            )

    def result(self) -> float:
        """The figure over all samples; raises `DataError` where there were none."""
        if not self._differences:
            raise _nothing(self.name)
        return self._worst([self._figure(each) for each in self._differences.values()])


def class_axis(shape: tuple[int, ...], label: np.ndarray | None) -> int:
    """The axis of an output along which the classes lie; see the top of this file.

    Args:
        shape: of the output, with the batch axis.
        label: the sample's label, where it has one.
    """
    usual = 1 if len(shape) > 3 else len(shape) - 1
    if label is not None and label.ndim:
        places = [side for side in label.shape if side != 1]
        axes: list[int] = [usual, *reversed(range(len(shape)))]
        for axis in axes:
            rest = [side for other, side in enumerate(shape) if other != axis and side != 1]
            if rest == places:
                return axis
    return usual


def _counted(labels: np.ndarray) -> np.ndarray:
    """Which places of a label array count."""
    flat: np.ndarray = labels.reshape(-1)
    return flat != VOID if labels.dtype == np.uint8 else flat >= 0


def _named(outputs: Mapping[str, np.ndarray], name: str, metric: str) -> np.ndarray:
    if name in outputs:
        return outputs[name]
    near = difflib.get_close_matches(name, outputs, 1)
    raise DataError(
        f"there is no output {name!r}; there are {', '.join(map(repr, outputs))}",
        where=f"metric {metric}",
        remedy=f"Did you mean {near[0]!r}?" if near else "Correct the metric's output.",
    )


def _nothing(metric: str) -> DataError:
    return DataError(
        "there was no sample to score", where=f"metric {metric}", remedy="Give data with samples."
    )

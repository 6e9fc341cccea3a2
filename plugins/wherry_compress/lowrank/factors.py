"""The decompositions: which chains a layer has at which rank, and the factors of each.

A scheme lists a layer's `Choice`s, ascending: a chain and the energy that it keeps. Without data,
energy is the kept share of the sum of squared weights; with a layer's `Moments`, that of the
variance of its results. `refit` then takes the last factor anew, as the least squares on the data
have it: whatever a chain computes before, this is the best last link (and bias) for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np

from wherry_compress.lowrank.layers import Chain, Factor, Layer, Shape, composed
from wherry_compress.lowrank.moments import Moments


@dataclass(frozen=True)
class Choice:
    """A chain for a layer.

    Attributes:
        ranks: one, or those of the inputs and of the outputs.
        chain: its links.
        energy: that it keeps, 0 to 1.
    """

    ranks: tuple[int, ...]
    chain: Chain
    energy: float


class Scheme(Protocol):
    """A way to decompose a layer; moments of it are given where data counts."""

    def suits(self, layer: Layer) -> str:
        """Why a layer cannot have this form; empty: it can."""
        ...

    def chain(self, layer: Layer, ranks: Sequence[int]) -> Chain:
        """The links at a rank."""
        ...

    def full(self, layer: Layer) -> tuple[int, ...]:
        """The rank from which on nothing is lost."""
        ...

    def choices(self, layer: Layer, moments: Moments | None, round_to: int, /) -> list[Choice]:
        """The ranks that count, multiples of a number, and what each keeps."""
        ...

    def factors(
        self, layer: Layer, moments: Moments | None, ranks: Sequence[int], /
    ) -> list[Factor]:
        """The links with their weights."""
        ...


def steps_of(full: int, round_to: int) -> list[int]:
    """The ranks that are tried: multiples, and the full one at the end."""
    return [*range(round_to, full, round_to), full]


def shares(squares: np.ndarray) -> np.ndarray:
    """Energy kept at rank 1, 2, ...: squares are descending and not negative."""
    total = float(squares.sum())
    return np.cumsum(squares) / total if total > 0 else np.ones(len(squares))


def response(layer: Layer, moments: Moments) -> np.ndarray:
    """The covariance of a layer's results, [outputs, outputs]."""
    rows = flat(layer)
    made: np.ndarray = rows @ moments.covariance @ rows.T
    return made


def flat(layer: Layer) -> np.ndarray:
    """Its weights, float64 [outputs, values of a patch]."""
    return layer.weights.reshape(len(layer.weights), -1).astype(np.float64)


def spectrum(matrix: np.ndarray) -> np.ndarray:
    """The squares of its singular values, descending; by the Gram matrix, which is much sooner."""
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    return np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)


def split(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Two factors, [rows, rank] and [rank, columns], whose product is nearest to a matrix."""
    rows, columns = matrix.shape
    if rows <= columns:
        left = _descending(matrix @ matrix.T)[1][:, :rank]
        return left, left.T @ matrix
    right = _descending(matrix.T @ matrix)[1][:, :rank]
    return matrix @ right, right.T


class Matrix:
    """``channel-svd`` and ``fc-svd``: the layer with fewer outputs, then a 1x1 one.

    Without data the singular vectors of [outputs, all else] (Denton et al. 2014, section 3.2.1);
    with data the eigenvectors of the results' covariance (Zhang et al. 2015, section 3.1, without
    the nonlinearity).
    """

    def suits(self, layer: Layer) -> str:
        """See `Scheme.suits`."""
        return "" if min(flat(layer).shape) > 1 else "its matrix has one row or column"

    def chain(self, layer: Layer, ranks: Sequence[int]) -> Chain:
        """See `Scheme.chain`."""
        outputs, inputs = layer.weights.shape[:2]
        axes = tuple(range(len(layer.kernel)))
        return Shape(ranks[0], inputs, takes=axes), Shape(outputs, ranks[0])

    def full(self, layer: Layer) -> tuple[int, ...]:
        """See `Scheme.full`."""
        return (min(flat(layer).shape),)

    def choices(self, layer: Layer, moments: Moments | None, round_to: int) -> list[Choice]:
        """See `Scheme.choices`."""
        rows = flat(layer)
        if moments is None:
            squares = spectrum(rows)
        else:
            squares = np.maximum(np.linalg.eigvalsh(response(layer, moments))[::-1], 0)
        kept = shares(squares)
        return [
            Choice((rank,), self.chain(layer, (rank,)), float(kept[rank - 1]))
            for rank in steps_of(self.full(layer)[0], round_to)
        ]

    def factors(self, layer: Layer, moments: Moments | None, ranks: Sequence[int]) -> list[Factor]:
        """See `Scheme.factors`."""
        rows, rank = flat(layer), ranks[0]
        if moments is None:
            last, first = split(rows, rank)
        else:
            last = np.linalg.eigh(response(layer, moments))[1][:, ::-1][:, :rank]
            first = last.T @ rows
        return shaped(layer, self.chain(layer, ranks), [first, last])


class Columns:
    """``spatial-svd``, scheme 2: a column [k, 1], then a row [1, k] (Jaderberg et al. 2014, 2.2).

    The filters' singular vectors are what their iterations end in. With data the columns are
    chosen by what columns of the input hold, the rows by least squares on the results.
    """

    def suits(self, layer: Layer) -> str:
        """See `Scheme.suits`."""
        wide = len(layer.kernel) == 2 and min(layer.kernel) > 1
        return "" if wide else "its kernel is not one of rows and columns"

    def chain(self, layer: Layer, ranks: Sequence[int]) -> Chain:
        """See `Scheme.chain`."""
        outputs, inputs = layer.weights.shape[:2]
        return Shape(ranks[0], inputs, takes=(0,)), Shape(outputs, ranks[0], takes=(1,))

    def full(self, layer: Layer) -> tuple[int, ...]:
        """See `Scheme.full`."""
        outputs, inputs, height, width = layer.weights.shape
        return (min(inputs * height, outputs * width),)

    def _matrix(self, layer: Layer) -> np.ndarray:
        """[inputs and rows of the kernel, outputs and its columns]."""
        outputs, inputs, height, width = layer.weights.shape
        turned = layer.weights.astype(np.float64).transpose(1, 2, 0, 3)
        return turned.reshape(inputs * height, outputs * width)

    def _root(self, layer: Layer, moments: Moments | None) -> np.ndarray | None:
        """L of the covariance L L^T of columns."""
        if moments is None:
            return None
        _, inputs, height, width = layer.weights.shape
        parts = moments.covariance.reshape(inputs, height, width, inputs, height, width)
        columns = np.einsum("ihwjkw->ihjk", parts) / width
        return np.linalg.cholesky(columns.reshape(inputs * height, inputs * height))

    def choices(self, layer: Layer, moments: Moments | None, round_to: int) -> list[Choice]:
        """See `Scheme.choices`."""
        matrix, root = self._matrix(layer), self._root(layer, moments)
        seen = matrix if root is None else root.T @ matrix
        kept = shares(spectrum(seen))
        return [
            Choice((rank,), self.chain(layer, (rank,)), float(kept[rank - 1]))
            for rank in steps_of(self.full(layer)[0], round_to)
        ]

    def factors(self, layer: Layer, moments: Moments | None, ranks: Sequence[int]) -> list[Factor]:
        """See `Scheme.factors`."""
        outputs, inputs, height, width = layer.weights.shape
        matrix, root, rank = self._matrix(layer), self._root(layer, moments), ranks[0]
        seen = matrix if root is None else root.T @ matrix
        columns, rows = split(seen, rank)
        if root is not None:
            columns = np.linalg.solve(root.T, columns)
        down = columns.T.reshape(rank, inputs, height, 1)
        across = rows.reshape(rank, outputs, width).transpose(1, 0, 2)[:, :, None]
        return shaped(layer, self.chain(layer, ranks), [down, across])


class Tucker:
    """``tucker2``: 1x1, the kernel between fewer channels, 1x1 (Kim et al. 2016, section 3.1).

    Both ranks keep the same energy of their own unfolding. Higher-order orthogonal iteration.
    """

    _TURNS = 4

    def suits(self, layer: Layer) -> str:
        """See `Scheme.suits`."""
        if prod(layer.kernel) < 2:
            return "its kernel is 1: channel-svd does the same in less"
        return "" if min(layer.weights.shape[:2]) > 1 else "it has one input or output channel"

    def chain(self, layer: Layer, ranks: Sequence[int]) -> Chain:
        """See `Scheme.chain`."""
        outputs, inputs = layer.weights.shape[:2]
        axes = tuple(range(len(layer.kernel)))
        few, many = ranks
        return Shape(few, inputs), Shape(many, few, takes=axes), Shape(outputs, many)

    def full(self, layer: Layer) -> tuple[int, ...]:
        """See `Scheme.full`."""
        outputs, inputs, *kernel = layer.weights.shape
        size = prod(kernel)
        return min(inputs, outputs * size), min(outputs, inputs * size)

    def _sides(self, layer: Layer) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of the inputs and of the outputs: the unfolding's energy by rank, and its vectors."""
        found = []
        for axis in (1, 0):
            values, vectors = _descending(_gram(layer.weights.astype(np.float64), axis))
            found.append((shares(values), vectors))
        return found

    def choices(self, layer: Layer, _moments: Moments | None, round_to: int) -> list[Choice]:
        """See `Scheme.choices`."""
        (ins, _), (outs, _) = self._sides(layer)
        kept = dict(zip((0, 1), (ins, outs), strict=True))
        steps = [steps_of(full, round_to) for full in self.full(layer)]
        levels = sorted({float(kept[side][rank - 1]) for side in (0, 1) for rank in steps[side]})
        made: dict[tuple[int, ...], Choice] = {}
        for level in levels:
            ranks = tuple(
                next((r for r in steps[side] if kept[side][r - 1] >= level), steps[side][-1])
                for side in (0, 1)
            )
            lost = sum(1 - float(kept[side][rank - 1]) for side, rank in enumerate(ranks))
            made.setdefault(ranks, Choice(ranks, self.chain(layer, ranks), max(0.0, 1 - lost)))
        return list(made.values())

    def factors(self, layer: Layer, _moments: Moments | None, ranks: Sequence[int]) -> list[Factor]:
        """See `Scheme.factors`."""
        weights = layer.weights.astype(np.float64)
        few, many = ranks
        (_, ins), (_, outs) = self._sides(layer)
        into, out = ins[:, :few], outs[:, :many]
        for _ in range(self._TURNS):
            out = _descending(_gram(_along(weights, into, 1), 0))[1][:, :many]
            into = _descending(_gram(_along(weights, out, 0), 1))[1][:, :few]
        core = _along(_along(weights, into, 1), out, 0)
        return shaped(layer, self.chain(layer, ranks), [into.T, core, out])


def _along(tensor: np.ndarray, matrix: np.ndarray, axis: int) -> np.ndarray:
    """A tensor times a matrix [size, rank] over one axis, which has the rank afterwards."""
    return np.moveaxis(np.tensordot(tensor, matrix, (axis, 0)), -1, axis)


def _gram(tensor: np.ndarray, axis: int) -> np.ndarray:
    rows = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    made: np.ndarray = rows @ rows.T
    return made


def _descending(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def shaped(layer: Layer, chain: Chain, weights: Sequence[np.ndarray]) -> list[Factor]:
    """Factors of a chain from their weights in any shape of the same order."""
    return [
        Factor(each.reshape(link.outputs, link.inputs // link.groups, *link.kernel(layer)), link)
        for link, each in zip(chain, weights, strict=True)
    ]


def refit(
    layer: Layer, factors: Sequence[Factor], moments: Moments
) -> tuple[list[Factor], np.ndarray | None]:
    """The last factor and the bias by least squares on the data; the others stay.

    Returns:
        The chain, and its bias where the layer's own does not do any more.
    """
    *before, last = factors
    features = _features(layer, composed(before), last)
    inner = features @ moments.covariance @ features.T
    wanted = features @ moments.covariance @ flat(layer).T
    solved = np.linalg.lstsq(inner, wanted, rcond=1e-10)[0].T
    fitted = [*before, Factor(solved.reshape(last.weights.shape), last.shape)]
    if not layer.intercept:
        return fitted, None
    bias = np.zeros(len(layer.weights)) if layer.bias is None else layer.bias.astype(np.float64)
    return fitted, bias + (flat(layer) - solved @ features) @ moments.mean


def _features(layer: Layer, before: np.ndarray, last: Factor) -> np.ndarray:
    """What the last factor sums over, in terms of a patch, [values it takes, values of a patch]."""
    inputs, kernel = layer.weights.shape[1], layer.kernel
    places = last.shape.kernel(layer)
    made = np.zeros((len(before), *places, inputs, *kernel))
    everything = slice(None)
    for place in np.ndindex(*places):
        at = [p if a in last.shape.takes else everything for a, p in enumerate(place)]
        made[(everything, *place, everything, *at)] = _thin(before, last.shape.takes)
    return made.reshape(len(before) * prod(places), -1)


def _thin(kernel: np.ndarray, taken: Sequence[int]) -> np.ndarray:
    return kernel.squeeze(axis=tuple(axis + 2 for axis in taken)) if taken else kernel


def even(factors: Sequence[Factor]) -> Iterator[Factor]:
    """The same chain with the channels before the last factor scaled so that both sides span alike.

    Half precision and eight bits then lose as little in one as in the other.
    """
    *first, before, last = factors
    made = np.sqrt((before.weights.reshape(len(before.weights), -1) ** 2).sum(axis=1))
    read = np.sqrt((last.weights**2).sum(axis=(0, *range(2, last.weights.ndim))))
    scale = np.sqrt(np.divide(read, made, out=np.ones_like(made), where=(made > 0) & (read > 0)))
    ones = [1] * (last.weights.ndim - 2)
    yield from first
    yield Factor(before.weights * scale.reshape(-1, 1, *ones), before.shape)
    yield Factor(last.weights / scale.reshape(1, -1, *ones), last.shape)


def error(layer: Layer, factors: Sequence[Factor], moments: Moments | None) -> float:
    """The share of the energy that a chain loses; see the module."""
    lost = flat(layer) - composed(factors).reshape(len(layer.weights), -1)
    whole = flat(layer)
    if moments is None:
        return float((lost**2).sum() / max(float((whole**2).sum()), 1e-300))
    part, all_of_it = (
        float(np.einsum("od,od->", rows @ moments.covariance, rows)) for rows in (lost, whole)
    )
    return part / max(all_of_it, 1e-300)

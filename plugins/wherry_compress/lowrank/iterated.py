"""Decompositions that are found by alternating least squares: shared bases, and CP.

Neither has a spectrum to read a rank from: every rank that is tried is solved, and its energy is
what came out.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from wherry_compress.job import Refusal
from wherry_compress.lowrank.factors import Choice, flat, shaped
from wherry_compress.lowrank.layers import Chain, Factor, Layer, Shape, chain_macs
from wherry_compress.lowrank.moments import Moments

_RIDGE = 1e-10  # of the mean of a Gram matrix's diagonal
_FLAT = 1e-6  # of the tensor's energy: a turn that gains less is the last


class Basis:
    """``spatial-svd``, scheme 1: a basis of separable filters for each input (Jaderberg, 2.1).

    Depthwise columns, depthwise rows, and a 1x1 convolution that combines them. The rank is the
    number of filters an input; with as many as the kernel has places, single places are a basis.
    """

    _TURNS = 100

    def suits(self, layer: Layer) -> str:
        """See `factors.Scheme.suits`."""
        wide = len(layer.kernel) == 2 and min(layer.kernel) > 1
        return "" if wide else "its kernel is not one of rows and columns"

    def chain(self, layer: Layer, ranks: Sequence[int]) -> Chain:
        """See `factors.Scheme.chain`."""
        outputs, inputs = layer.weights.shape[:2]
        many = inputs * ranks[0]
        return (
            Shape(many, inputs, inputs, (0,)),
            Shape(many, many, many, (1,)),
            Shape(outputs, many),
        )

    def full(self, layer: Layer) -> tuple[int, ...]:
        """See `factors.Scheme.full`."""
        return (prod(layer.kernel),)

    def choices(self, layer: Layer, _moments: Moments | None, _round_to: int) -> list[Choice]:
        """See `factors.Scheme.choices`."""
        made = []
        for rank in range(1, prod(layer.kernel) + 1):
            chain = self.chain(layer, (rank,))
            if chain_macs(layer, chain) >= layer.macs:
                break
            lost = self._solved(layer, rank)[1]
            made.append(Choice((rank,), chain, 1 - lost))
        return made

    def factors(self, layer: Layer, _moments: Moments | None, ranks: Sequence[int]) -> list[Factor]:
        """See `factors.Scheme.factors`."""
        (combined, down, across), _ = self._solved(layer, ranks[0])
        outputs = len(layer.weights)
        last = combined.transpose(2, 0, 1).reshape(outputs, -1)
        return shaped(layer, self.chain(layer, ranks), [down, across, last])

    def _solved(self, layer: Layer, rank: int) -> tuple[tuple[np.ndarray, ...], float]:
        """[inputs, rank, outputs], [inputs, rank, rows], [inputs, rank, columns]; and the loss."""
        outputs, inputs, height, width = layer.weights.shape
        tensor = layer.weights.astype(np.float64).transpose(1, 0, 2, 3)
        total = max(float((tensor**2).sum()), 1e-300)
        if rank >= height * width:
            places = np.arange(height * width)
            down = np.tile(np.eye(height)[places // width], (inputs, 1, 1))
            across = np.tile(np.eye(width)[places % width], (inputs, 1, 1))
            whole = tensor.reshape(inputs, outputs, -1).transpose(0, 2, 1)
            return (whole, down, across), 0.0
        # in the basis of their singular vectors the filters of an input are few
        left, values, right = np.linalg.svd(
            tensor.reshape(inputs, outputs, -1), full_matrices=False
        )
        small = (values[:, :, None] * right).reshape(inputs, -1, height, width)
        start = right[:, :rank].reshape(inputs, rank, height, width)
        if rank > start.shape[1]:
            raise Refusal(
                f"{rank} filters an input are asked, and {start.shape[1]} span all",
                where=layer.name,
                remedy="Ask for fewer.",
            )
        u, s, v = np.linalg.svd(start, full_matrices=False)
        parts = [np.empty((inputs, rank, small.shape[1])), u[..., 0] * s[..., :1], v[..., 0, :]]
        lost = _alternate(small, parts, total, self._TURNS)
        combined, down, across = parts
        return (np.einsum("irk,iok->iro", combined, left), down, across), lost


class Canonical:
    """``cp``: 1x1, depthwise columns, depthwise rows, 1x1 (Lebedev et al. 2015, section 3).

    Alternating least squares, started from vectors that are drawn as the weights spread along each
    axis. A best decomposition need not exist (de Silva and Lim 2008): parts then grow against each
    other without bound, and what is left of their sum is noise. Where they do, the rank is refused.
    """

    _TURNS = 60
    _GREATEST = 10.0  # norm of a part over that of all weights

    def suits(self, layer: Layer) -> str:
        """See `factors.Scheme.suits`."""
        wide = len(layer.kernel) == 2 and min(layer.kernel) > 1
        return "" if wide else "its kernel is not one of rows and columns"

    def chain(self, layer: Layer, ranks: Sequence[int]) -> Chain:
        """See `factors.Scheme.chain`."""
        outputs, inputs = layer.weights.shape[:2]
        (rank,) = ranks
        return (
            Shape(rank, inputs),
            Shape(rank, rank, rank, (0,)),
            Shape(rank, rank, rank, (1,)),
            Shape(outputs, rank),
        )

    def full(self, layer: Layer) -> tuple[int, ...]:
        """A rank that is enough for any weights: one part for each fibre of the longest axis."""
        sizes = layer.weights.shape
        return (prod(sizes) // max(sizes),)

    def choices(self, layer: Layer, _moments: Moments | None, round_to: int) -> list[Choice]:
        """A few ranks, each solved: this takes its time."""
        outputs, inputs, height, width = layer.weights.shape
        most = layer.weights.size / (outputs + inputs + height + width)
        ranks = {int(most * share) // round_to * round_to for share in (0.1, 0.2, 0.35, 0.55, 0.8)}
        made = []
        for rank in sorted(ranks - {0}):
            chain = self.chain(layer, (rank,))
            if rank > self.full(layer)[0] or chain_macs(layer, chain) >= layer.macs:
                continue
            parts, lost = self._solved(layer, rank)
            if not self._diverged(layer, parts):
                made.append(Choice((rank,), chain, 1 - lost))
        return made

    def factors(self, layer: Layer, _moments: Moments | None, ranks: Sequence[int]) -> list[Factor]:
        """See `factors.Scheme.factors`; raises `Refusal` where the iteration diverges."""
        (rank,) = ranks
        parts, _ = self._solved(layer, rank)
        if self._diverged(layer, parts):
            raise Refusal(
                f"the CP decomposition of rank {rank} diverges: parts of it cancel each other and "
                "grow without bound",
                where=layer.name,
                remedy="Ask for another rank, leave the node out, or use lowrank.tucker2.",
            )
        out, into, down, across = (part[0] for part in parts)
        return shaped(layer, self.chain(layer, ranks), [into, down, across, out.T])

    def _diverged(self, layer: Layer, parts: Sequence[np.ndarray]) -> bool:
        norms = np.prod([np.linalg.norm(part[0], axis=1) for part in parts], axis=0)
        whole = max(float(np.linalg.norm(flat(layer))), 1e-300)
        return not bool(np.isfinite(norms).all() and norms.max() <= self._GREATEST * whole)

    def _solved(self, layer: Layer, rank: int) -> tuple[list[np.ndarray], float]:
        """[1, rank, size] of each axis of the weights; and the loss."""
        tensor = layer.weights.astype(np.float64)
        sizes = tensor.shape
        if rank >= self.full(layer)[0]:
            return self._trivial(tensor, rank), 0.0
        generator = np.random.default_rng(0)
        parts = []
        for axis, size in enumerate(sizes):
            rows = np.moveaxis(tensor, axis, 0).reshape(size, -1)
            values, vectors = np.linalg.eigh(rows @ rows.T)
            spread = np.sqrt(np.maximum(values, 0) / max(float(values.max()), 1e-300))
            parts.append((generator.standard_normal((1, rank, size)) * spread) @ vectors.T)
        total = max(float((tensor**2).sum()), 1e-300)
        lost = _alternate(tensor[None], parts, total, self._TURNS)
        for number in range(rank):  # the same size on every axis
            norms = [float(np.linalg.norm(part[0, number])) for part in parts]
            if min(norms) > 0:
                even = prod(norms) ** 0.25
                for part, norm in zip(parts, norms, strict=True):
                    part[0, number] *= even / norm
        return parts, lost

    @staticmethod
    def _trivial(tensor: np.ndarray, rank: int) -> list[np.ndarray]:
        sizes = tensor.shape
        longest = int(np.argmax(sizes))
        others = [size for axis, size in enumerate(sizes) if axis != longest]
        places = list(np.unravel_index(np.arange(prod(others)), others))
        parts = []
        for axis, size in enumerate(sizes):
            part = np.zeros((1, rank, size))
            if axis == longest:
                part[0, : prod(others)] = np.moveaxis(tensor, axis, -1).reshape(-1, size)
            else:
                part[0, np.arange(prod(others)), places.pop(0)] = 1
            parts.append(part)
        return parts


def _alternate(tensor: np.ndarray, parts: list[np.ndarray], total: float, turns: int) -> float:
    """CP of many tensors at once by alternating least squares; the share of energy that is lost.

    Args:
        tensor: [many, size, size, ...].
        parts: of each axis [many, rank, size]; the first is solved first, so that its start does
            not count. They are changed in place.
        total: energy of the tensors.
        turns: the most.
    """
    letters = "abcdefg"[: len(parts)]
    before = np.inf
    for _ in range(turns):
        for axis in range(len(parts)):
            others = [i for i in range(len(parts)) if i != axis]
            gram = np.prod([parts[i] @ parts[i].transpose(0, 2, 1) for i in others], axis=0)
            rank = gram.shape[1]
            diagonal = np.einsum("nrr->n", gram) / rank
            gram[:, np.arange(rank), np.arange(rank)] += np.maximum(diagonal * _RIDGE, 1e-300)[
                :, None
            ]
            product = _products(tensor, parts, axis, letters)
            parts[axis] = np.linalg.solve(gram, product)
        # |T - sum|^2 = |T|^2 - 2 <T, sum> + |sum|^2, from the last axis's products
        gram = np.prod([part @ part.transpose(0, 2, 1) for part in parts], axis=0)
        lost = float(total - 2 * (product * parts[-1]).sum() + gram.sum()) / total
        if before - lost < _FLAT:
            break
        before = lost
    return min(max(lost, 0.0), 1.0) if np.isfinite(lost) else 1.0


def _products(
    tensor: np.ndarray, parts: Sequence[np.ndarray], axis: int, letters: str
) -> np.ndarray:
    """The tensors times the parts of all axes but one, [many, rank, size]."""
    others = [i for i in range(len(parts)) if i != axis]
    largest = max(others, key=lambda i: tensor.shape[1 + i])
    rest = [i for i in others if i != largest]
    # the largest first, as one product of matrices: what is left is small
    moved = np.moveaxis(tensor, 1 + largest, -1)
    flat_rows = moved.reshape(len(moved), -1, moved.shape[-1]) @ parts[largest].transpose(0, 2, 1)
    made = flat_rows.reshape(*moved.shape[:-1], -1)
    left = "".join(letters[i] for i in range(len(parts)) if i != largest)
    for index in rest:
        made = np.einsum(
            f"n{left}r,nr{letters[index]}->n{left.replace(letters[index], '')}r", made, parts[index]
        )
        left = left.replace(letters[index], "")
    turned: np.ndarray = made.transpose(0, 2, 1)
    return turned

"""Errors that codewords make are corrected on data: layer by layer, by what the layer gives.

After Wu et al., "Quantized Convolutional Neural Networks for Mobile Devices", CVPR 2016, section
3.2: what a layer gives in the network as quantised so far is to be what it gave in the original,
so that the errors of the layers before it are made up for. Alternately all codewords are fitted,
which is a least squares problem (solved by conjugate gradients), and each vector takes the codeword
that is best with all others as they are.

All that the data says stands in two matrices, of the patches x that a layer sums over now, and
those x0 of the same places in the original: the means of x x^T and of x x0^T.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx

from wherry.normalise.graph import attributes
from wherry_compress.graph.patches import Window, drawn
from wherry_compress.graph.taps import finite
from wherry_compress.job import Job, Refusal
from wherry_compress.share.books import Book, assembled
from wherry_compress.share.importance import values_of
from wherry_compress.share.layers import Layer, Network, short

_SAMPLES = 64
_LEAST = 3000  # patches of a layer
_MOST = 9000
_RIDGE = 1e-3  # of the mean square of an input: holds to the weights where data says nothing
_ROUNDS = 3
_TURNS = 12  # of conjugate gradients


@dataclass(frozen=True)
class Response:
    """What is known of what a layer gives; G convolution groups, n values of a patch in each.

    Attributes:
        given: float64 [G, n, n], means of x x^T.
        wanted: float64 [G, n, outputs / G], means of x y^T, y what the original gives.
        power: the mean of y^2, summed over the outputs.
    """

    given: np.ndarray
    wanted: np.ndarray
    power: float

    def stacked(self, matrix: np.ndarray) -> np.ndarray:
        """A layer's matrix as weights of groups, [G, outputs / G, n]."""
        groups, size = self.given.shape[:2]
        return matrix.reshape(groups, -1, size)

    def error_of(self, matrix: np.ndarray) -> float:
        """What other weights make of the results: the squared error, as a share of the squares.

        Args:
            matrix: of the layer, [outputs * places of the kernel, inputs].
        """
        weights = self.stacked(matrix)
        squares = np.sum((weights @ self.given) * weights)
        mixed = np.sum(weights * np.swapaxes(self.wanted, 1, 2))
        found = float(squares - 2 * mixed) + self.power
        return max(found, 0.0) / self.power if self.power else 0.0


class Corrector:
    """Tells of layer after layer, in the graph's order, what it is to give.

    Args:
        network: is changed by whoever corrects; its weights now are those of the original.
        job: has calibration data.
    """

    def __init__(self, network: Network, job: Job) -> None:
        self._network = network
        self._original = onnx.ModelProto()
        self._original.CopyFrom(network.proto)
        self._samples = list(job.data["calibration"].samples(_SAMPLES))
        self._seed = job.seed
        if not self._samples:
            raise Refusal("there is no sample to correct by", remedy="Give data with samples.")

    def response(self, layer: Layer, matrix: np.ndarray) -> Response | None:
        """Of a layer in the network as it is now; None: its results are no sums over patches.

        Args:
            layer: of the network.
            matrix: its weights in the original, [outputs * places of the kernel, inputs].
        """
        about, shape = attributes(layer.node), layer.values.shape
        window, groups, places = None, 1, 1
        if layer.node.op_type == "Conv":
            window, groups = Window.of(layer.node, shape[2:]), about.get("group", 1)
            places = prod(shape[2:])
        elif about.get("transA", 0) or about.get("alpha", 1.0) != 1.0:
            return None
        weights = matrix.reshape(groups, -1, places * matrix.shape[1])
        size = weights.shape[2]
        count = -(-min(max(_LEAST, 2 * size), _MOST) // len(self._samples))
        given = np.zeros((groups, size, size))
        wanted = np.zeros((groups, size, weights.shape[1]))
        power, many = 0.0, 0
        for index, pair in enumerate(self._inputs(layer.node.input[0])):
            patches = []
            for values in pair:
                chance = np.random.default_rng([self._seed, index])  # the same places in both
                part = drawn(values, window, count, chance).astype(np.float64)
                finite(part, layer.node.input[0])
                # channel by channel; the matrix has them place by place
                part = part.reshape(len(part), groups, -1, places).transpose(1, 0, 3, 2)
                patches.append(part.reshape(groups, -1, size))
            x, x0 = patches
            y = x0 @ np.swapaxes(weights, 1, 2)
            given += np.swapaxes(x, 1, 2) @ x
            wanted += np.swapaxes(x, 1, 2) @ y
            power += float(np.sum(y**2))
            many += x.shape[1]
        given, wanted, power = given / many, wanted / many, power / many
        ridge = _RIDGE * max(float(np.mean(np.einsum("gii->gi", given))), 1e-12)
        return Response(
            given + ridge * np.eye(size),
            wanted + ridge * np.swapaxes(weights, 1, 2),
            power + ridge * float(np.sum(weights**2)),
        )

    def _inputs(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """A tensor for each sample, in the network as it is now and in the original."""
        if name in {value.name for value in self._original.graph.input}:
            return ((sample[name], sample[name]) for sample in self._samples)
        both = (
            values_of(proto, [name], self._samples)
            for proto in (self._network.proto, self._original)
        )
        return ((now[name], before[name]) for now, before in zip(*both, strict=True))


def corrected(shape: tuple[int, ...], books: Sequence[Book], response: Response) -> Sequence[Book]:
    """Books whose sum gives what the layer is to give more nearly.

    Args:
        shape: of the layer's matrix, [outputs * places of the kernel, inputs].
        books: that stand for it.
        response: that is wanted.
    """
    best = found = books
    least = response.error_of(assembled(books, shape))
    for _ in range(_ROUNDS):
        found = _chosen(_fitted(found, shape, response), shape, response)
        error = response.error_of(assembled(found, shape))
        if error >= least:
            break
        best, least = found, error
    return best


def _fitted(books: Sequence[Book], shape: tuple[int, ...], response: Response) -> list[Book]:
    """The same vectors of better codewords, by conjugate gradients."""

    def gathered(gradient: np.ndarray) -> list[np.ndarray]:
        return [book.summed(gradient.reshape(shape)) for book in books]

    def applied(words: Sequence[np.ndarray]) -> np.ndarray:
        others = [book.with_words(w) for book, w in zip(books, words, strict=True)]
        made: np.ndarray = response.stacked(assembled(others, shape)) @ response.given
        return made

    words = [book.words for book in books]
    rest = gathered(np.swapaxes(response.wanted, 1, 2) - applied(words))
    direction, square = rest, _inner(rest, rest)
    for _ in range(_TURNS):
        moved = gathered(applied(direction))
        curvature = _inner(direction, moved)
        if curvature <= 0 or square <= 0:
            break
        step = square / curvature
        words = [w + step * d for w, d in zip(words, direction, strict=True)]
        rest = [r - step * m for r, m in zip(rest, moved, strict=True)]
        before, square = square, _inner(rest, rest)
        direction = [r + square / before * d for r, d in zip(rest, direction, strict=True)]
    return [
        book.with_words(short(w).astype(np.float64)) for book, w in zip(books, words, strict=True)
    ]


def _inner(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    return sum(float(np.sum(a * b)) for a, b in zip(one, other, strict=True))


def _chosen(books: Sequence[Book], shape: tuple[int, ...], response: Response) -> list[Book]:
    """The same codewords, each vector of the one that is best with all the others as they are."""
    groups, size = response.given.shape[:2]
    inputs = shape[1]
    places = size // inputs
    gradient = response.stacked(assembled(books, shape)) @ response.given
    gradient -= np.swapaxes(response.wanted, 1, 2)
    found = []
    for book in books:
        chosen = book.places.copy().reshape(groups, -1, places, len(book.columns))
        for group in range(groups):
            given = response.given[group]
            for place in range(places):
                for index, columns in enumerate(book.columns):
                    block = slice(place * inputs + columns.start, place * inputs + columns.stop)
                    own = given[block, block]
                    was = book.words[chosen[group, :, place, index]]
                    target = was @ own - gradient[group][:, block]
                    costs = np.sum((book.words @ own) * book.words, axis=1)
                    best = np.argmin(costs - 2 * target @ book.words.T, axis=1)
                    moved = book.words[best] - was
                    live = np.flatnonzero(moved.any(axis=1))
                    if len(live):
                        gradient[group][live] += moved[live] @ given[block]
                        chosen[group, :, place, index] = best
        found.append(book.with_places(chosen.reshape(book.places.shape)))
    return found

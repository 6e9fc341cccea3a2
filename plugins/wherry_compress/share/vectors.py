"""The passes ``share.vq``, ``share.pq`` and ``share.rq``: short vectors of weights share codewords.

A layer's weights are a matrix, a row for each output (and each place in a kernel), a column for
each input channel. Rows are cut into vectors of some columns, and each becomes the nearest of
2**bits codewords: of one codebook for the layer (``vq``), of one for each group of columns
(``pq``), or the sum of codewords of several codebooks, each for what the ones before left
(``rq``). After Gong et al., "Compressing deep convolutional networks using vector quantization",
2014, for dense layers; and Wu et al., "Quantized Convolutional Neural Networks for Mobile
Devices", CVPR 2016, section 3, for convolutions, with its correction of errors (correct.py).

A layer is chosen only where that pays, and where it does not cost more than was allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from wherry.normalise.graph import attributes
from wherry_compress.job import Done, Job, Refusal, tell
from wherry_compress.share.books import Book, assembled
from wherry_compress.share.correct import Corrector, corrected
from wherry_compress.share.layers import Layer, Network, short, told

_ROUNDS = 25
_CHUNK = 1 << 22  # distances that are held at a time
_PAYS = 0.5  # of the layer's bytes: codebooks and indices may be so many
_MATRICES = {"Conv", "Gemm", "MatMul"}


def apply_vq(job: Job) -> Done:
    """``share.vq``."""
    return _apply(job, "vq")


def apply_pq(job: Job) -> Done:
    """``share.pq``."""
    return _apply(job, "pq")


def apply_rq(job: Job) -> Done:
    """``share.rq``."""
    return _apply(job, "rq")


def _apply(job: Job, kind: str) -> Done:
    """The network with shared vectors in the layers where that pays."""
    network = Network(job.load())
    parameters = job.parameters
    settings = network.settings(parameters["bits"], parameters["layers"])
    random = np.random.default_rng(job.seed)
    corrector = Corrector(network, job) if parameters["correct"] else None
    changed: list[Layer] = []
    made, left, responses = {}, {}, {}
    helps = set()
    for number, layer in enumerate(network.layers):
        name = layer.node.name
        matrix = as_matrix(layer)
        if not settings[name]:
            left[name] = "as asked for"
        elif layer.values.size < parameters["least"]:
            left[name] = f"fewer than {parameters['least']} weights"
            helps.add("lower `least`")
        elif matrix is None or matrix.shape[1] < parameters["length"]:
            left[name] = f"fewer than {parameters['length']} weights to a vector"
            helps.add("take shorter vectors with `length`")
        elif why := _too_large(matrix.shape, kind, settings[name], parameters):
            left[name] = why
            helps.add("take fewer `bits`, so that the codebooks are smaller")
        else:
            tell(f"layer {number + 1} of {len(network.layers)}")
            books: Sequence[Book] = quantised(
                matrix, kind, parameters["length"], settings[name], parameters.get("stages", 1),
                random,
            )  # fmt: skip
            error = _error(assembled(books, matrix.shape), matrix)
            response = None if corrector is None else corrector.response(layer, matrix)
            if response is not None:
                before = response.error_of(assembled(books, matrix.shape))
                books = corrected(matrix.shape, books, response)
                error = response.error_of(assembled(books, matrix.shape))
            if error > parameters["most_error"]:
                left[name] = f"an error of {error:.3f}"
                helps.add("allow more with `most_error`, or take more bits or shorter vectors")
                continue
            if response is not None:
                responses[name] = {"before": round(before, 6), "after": round(error, 6)}
            changed.append(layer)
            made[layer.tensor] = from_matrix(layer, assembled(books, matrix.shape))
            network.replace(layer, made[layer.tensor])
    if not changed:
        raise Refusal(
            "no layer was shared: "
            + "; ".join(f"{name!r}: {why}" for name, why in list(left.items())[:5]),
            remedy=f"What may help: {'; '.join(sorted(helps) or ['name layers in `layers`'])}.",
        )
    network.round_biases(parameters["biases"])
    figures = {**told(network, changed, made), "left": left}
    return Done(network.proto, {**figures, "responses": responses} if responses else figures)


def _too_large(shape: tuple[int, ...], kind: str, bits: int, parameters: Mapping[str, Any]) -> str:
    """Why codebooks do not pay for a matrix; empty: they do."""
    size = expected_bytes(shape, kind, parameters["length"], bits, parameters.get("stages", 1))
    share = size / (4 * shape[0] * shape[1])
    return f"codebooks and indices would be {share:.0%} of it" if share > _PAYS else ""


def _error(made: np.ndarray, matrix: np.ndarray) -> float:
    """Squared, as a share of the squared weights."""
    power = float(np.sum(matrix**2))
    return float(np.sum((made - matrix) ** 2)) / power if power else 0.0


def as_matrix(layer: Layer) -> np.ndarray | None:
    """Rows [outputs (and places in the kernel), input channels], float64; None: it has none."""
    values, node = layer.values.astype(np.float64), layer.node
    if node.op_type not in _MATRICES or layer.tensor != node.input[1]:
        return None
    if node.op_type == "Conv":
        return np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])
    if values.ndim != 2:
        return None
    return values if _transposed(node) else values.T


def from_matrix(layer: Layer, matrix: np.ndarray) -> np.ndarray:
    """The inverse of `as_matrix`, float32."""
    shape, node = layer.values.shape, layer.node
    if node.op_type == "Conv":
        moved = matrix.reshape(shape[0], *shape[2:], shape[1])
        return np.moveaxis(moved, -1, 1).astype(np.float32)
    return (matrix if _transposed(node) else matrix.T).astype(np.float32)


def _transposed(node: onnx.NodeProto) -> bool:
    """Whether the weights are [outputs, inputs]."""
    return bool(attributes(node).get("transB", 0))


def expected_bytes(shape: tuple[int, ...], kind: str, length: int, bits: int, stages: int) -> float:
    """Of the codebooks, at two bytes a number, and the indices of a matrix."""
    rows, columns = shape
    groups = -(-columns // length)
    codebooks = {"vq": length, "pq": columns, "rq": stages * length}[kind] * (1 << bits)
    return 2 * codebooks + rows * groups * bits * (stages if kind == "rq" else 1) / 8


def quantised(
    matrix: np.ndarray, kind: str, length: int, bits: int, stages: int, random: np.random.Generator
) -> list[Book]:
    """Codebooks that stand for a matrix; see the module.

    Args:
        matrix: float64 [rows, columns].
        kind: ``vq``, ``pq`` or ``rq``.
        length: columns of a vector; the last group may have fewer, and its own codebook.
        bits: of an index.
        stages: codebooks that add up, of ``rq``.
        random: of the first codewords.
    """
    columns = matrix.shape[1]
    groups = [slice(at, min(at + length, columns)) for at in range(0, columns, length)]
    if kind == "pq":
        together = [[group] for group in groups]
    else:
        whole = [group for group in groups if group.stop - group.start == length]
        together = [whole] if whole else []
        together += [[group] for group in groups if group not in whole]
    books = []
    for members in together:
        rest = np.concatenate([matrix[:, group] for group in members])
        for _ in range(stages if kind == "rq" else 1):
            codebook, places = codewords(rest, 1 << bits, random)
            rest = rest - codebook[places]
            books.append(Book(tuple(members), codebook, places.reshape(len(members), -1).T))
    return books


def codewords(
    vectors: np.ndarray, count: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """k-means (Lloyd) from vectors that are drawn far apart (k-means++).

    Returns:
        Codewords [at most ``count``, columns], float64, to 11 bits; and each vector's.
    """
    distinct = np.unique(vectors, axis=0)
    if len(distinct) <= count:
        centres = distinct
    else:
        centres = _drawn(vectors, count, random)
        for _ in range(_ROUNDS):
            places, errors = _nearest(vectors, centres)
            many = np.bincount(places, minlength=len(centres))
            sums = np.stack(
                [np.bincount(places, column, len(centres)) for column in vectors.T], axis=1
            )
            moved = np.where(many[:, None] > 0, sums / np.maximum(many, 1)[:, None], centres)
            empty = np.flatnonzero(many == 0)
            moved[empty] = vectors[np.argsort(-errors, kind="stable")[: len(empty)]]
            if np.array_equal(moved, centres):
                break
            centres = moved
    centres = short(centres).astype(np.float64)
    return centres, _nearest(vectors, centres)[0]


def _drawn(vectors: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    chosen = [vectors[random.integers(len(vectors))]]
    errors = np.sum((vectors - chosen[0]) ** 2, axis=1)
    while len(chosen) < count and errors.any():
        mass = np.cumsum(errors)
        place = int(np.searchsorted(mass, random.random() * mass[-1], side="right"))
        chosen.append(vectors[min(place, len(vectors) - 1)])
        errors = np.minimum(errors, np.sum((vectors - chosen[-1]) ** 2, axis=1))
    return np.array(chosen)


def _nearest(vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest codeword of each vector, and its squared distance."""
    norms = np.sum(centres**2, axis=1)
    places, errors = np.zeros(len(vectors), np.int64), np.zeros(len(vectors))
    many = max(1, _CHUNK // len(centres))
    for start in range(0, len(vectors), many):
        block = vectors[start : start + many]
        distances = norms - 2 * block @ centres.T
        best = np.argmin(distances, axis=1)
        places[start : start + many] = best
        errors[start : start + many] = np.take_along_axis(distances, best[:, None], axis=1)[
            :, 0
        ] + np.sum(block**2, axis=1)
    return places, np.maximum(errors, 0.0)

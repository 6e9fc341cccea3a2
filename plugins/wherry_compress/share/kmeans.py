"""The pass ``share.kmeans``: the weights of a layer share few values.

After Han et al., "Deep Compression", ICLR 2016, section 3 (one codebook for a layer; linear,
density and random initialisation; the values trained, see codebook.py), and Choi et al., "Towards
the Limit of Network Quantization", ICLR 2017, section 3.3 (means weighted by the diagonal of the
Hessian).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wherry_compress.job import Done, Job
from wherry_compress.share.importance import importances
from wherry_compress.share.layers import Network, short, told

_ROUNDS = 200


def apply(job: Job) -> Done:
    """The network with shared weights."""
    network = Network(job.load())
    settings = network.settings(job.parameters["bits"], job.parameters["layers"])
    weighted = importances(network, job) if job.parameters["fisher"] else {}
    random = np.random.default_rng(job.seed)
    chosen = network.chosen(settings, job.parameters["least"])
    made = {}
    for layer in chosen:
        made[layer.tensor] = share(
            layer.values, 1 << settings[layer.node.name], job.parameters["start"], random,
            weighted.get(layer.tensor),
        )  # fmt: skip
        network.replace(layer, made[layer.tensor])
    figures = {}
    if job.parameters["train"] is not None:
        from wherry_compress.share.codebook import trained  # torch

        lesson = replace(job, parameters=job.parameters["train"])
        proto, figures["trained"] = trained(lesson, network.proto, made)
        network = Network(proto)
        for layer in network.layers:
            if layer.tensor in made:
                made[layer.tensor] = short(layer.values)
                network.replace(layer, made[layer.tensor])
    network.round_biases(job.parameters["biases"])
    return Done(network.proto, {**told(network, chosen, made), **figures})


def share(
    weights: np.ndarray,
    count: int,
    start: str,
    random: np.random.Generator,
    importance: np.ndarray | None = None,
) -> np.ndarray:
    """Weights of at most ``count`` values; zeros stay zeros, which then is one of the values.

    Args:
        weights: float32, any shape.
        count: of values, at least 2.
        start: ``linear``, ``density`` or ``random``.
        random: for ``random``.
        importance: of each weight, of the same shape; None: all alike.
    """
    flat = weights.ravel()
    live = np.flatnonzero(flat)
    zeros = len(live) < flat.size
    if not len(live):
        return weights
    values, places = np.unique(flat[live].astype(np.float64), return_inverse=True)
    places = places.reshape(-1)
    masses = np.bincount(places, None if importance is None else importance.ravel()[live])
    if len(values) <= count - zeros:
        return weights
    centres = means(values, masses, started(values, masses, count - zeros, start, random))
    shared = np.zeros_like(flat)
    shared[live] = short(centres)[_nearest(values, centres)][places]
    return shared.reshape(weights.shape)


def started(
    values: np.ndarray, masses: np.ndarray, count: int, start: str, random: np.random.Generator
) -> np.ndarray:
    """First centres, rising: evenly between the extremes, evenly over the mass, or drawn."""
    if start == "linear":
        return np.linspace(values[0], values[-1], count)
    if start == "density":
        mass = np.cumsum(masses)
        places = np.searchsorted(mass, mass[-1] * (np.arange(count) + 0.5) / count)
        return np.asarray(values[places])
    return np.sort(random.choice(values, count, replace=False))


def means(values: np.ndarray, masses: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """k-means of sorted numbers with masses (Lloyd), from given centres on; rising.

    A centre that no number is nearest to takes the place of the number that is farthest from its
    own, so that none is wasted.
    """
    mass = np.concatenate([[0.0], np.cumsum(masses)])
    moment = np.concatenate([[0.0], np.cumsum(masses * values)])
    centres = np.unique(centres)
    for _ in range(_ROUNDS):
        edges = np.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(values)]])
        weights = np.diff(mass[edges])
        own = np.diff(moment[edges]) / np.where(weights > 0, weights, 1)
        moved = np.where(weights > 0, own, centres)
        empty = np.diff(edges) == 0
        if empty.any():
            error = masses * (values - moved[_nearest(values, moved)]) ** 2
            far = np.argsort(-error, kind="stable")[: int(empty.sum())]
            moved[empty] = values[far]
        moved = np.unique(moved)
        if len(moved) == len(centres) and np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def _nearest(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest centre of each number; both rise."""
    return np.searchsorted((centres[1:] + centres[:-1]) / 2, values)

"""The pass ``share.ecsq``: what is shared costs as little as it can.

After Choi et al., "Towards the Limit of Network Quantization", ICLR 2017, section 4: a Huffman code
costs the entropy of the indices, so that it is the entropy that is to be small, not the number of
values. ``uniform``: a weight is the nearest multiple of a step, which at high rates loses a
quarter of a bit against the best (Gish and Pierce 1968). ``iterative`` (algorithm 1 there): weights
go where error + lambda * bits is least, values move to the means, bits follow the counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from wherry.packing import pack
from wherry_compress.job import Done, Job, Refusal
from wherry_compress.share.importance import importances
from wherry_compress.share.layers import Layer, Network, entropy_bits, multiples, short, told

_ROUNDS = 60
_TRIES = 16
_CLOSE = 0.004  # of a target
_SLOPE = 2 * np.log(2) / 12  # -d(error) / d(bits) of a step of 1, at high rates
_MOST_LEVELS = 1 << 12

Quantiser = Callable[[float], dict[str, np.ndarray]]
"""From a step, in root mean squares, to weights by tensor."""


def apply(job: Job) -> Done:
    """The network with weights of small entropy."""
    network = Network(job.load())
    parameters = job.parameters
    settings = network.settings(1.0, parameters["layers"])
    layers = network.chosen(settings, parameters["least"])
    weighted = importances(network, job) if parameters["fisher"] else {}
    units = _units(layers, weighted, settings, parameters["scope"])
    network.round_biases(parameters["biases"])

    def quantised(step: float) -> dict[str, np.ndarray]:
        steps = {name: np.float32(unit * step) for name, unit in units.items()}
        if parameters["method"] == "uniform":
            return {layer.tensor: _uniform(layer.values, steps[layer.tensor]) for layer in layers}
        return _iterative(layers, steps, weighted, parameters["scope"])

    made = _to_target(quantised, network, layers, parameters)
    for layer in layers:
        network.replace(layer, made[layer.tensor])
    return Done(network.proto, told(network, layers, made))


def _units(
    layers: list[Layer],
    weighted: Mapping[str, np.ndarray],
    settings: Mapping[str, float],
    scope: str,
) -> dict[str, float]:
    """What a step of 1 is for each tensor.

    With importances, steps that add the same error to the outputs for each weight: as one over
    the root of the layer's mean importance. Without, of each layer its root mean square; or of
    all layers together.
    """
    sizes = {each.tensor: float(np.mean(np.square(each.values, dtype=float))) for each in layers}
    whole = float(np.average(list(sizes.values()), weights=[each.values.size for each in layers]))
    importance = {name: float(each.mean()) for name, each in weighted.items()}
    mean = float(np.exp(np.mean(np.log(list(importance.values()))))) if importance else 1.0
    found = {}
    for layer in layers:
        square = sizes[layer.tensor] if scope == "layer" and not importance else whole
        square *= mean / importance.get(layer.tensor, mean)
        found[layer.tensor] = max(float(np.sqrt(square)), 1e-30) * settings[layer.node.name]
    return found


def _uniform(weights: np.ndarray, step: np.float32) -> np.ndarray:
    return multiples(np.rint(weights / np.float64(step)), step)


def _iterative(
    layers: list[Layer],
    steps: Mapping[str, np.float32],
    weighted: Mapping[str, np.ndarray],
    scope: str,
) -> dict[str, np.ndarray]:
    """ECSQ by layer, or with one set of values for all layers, in units of their steps."""
    groups = [[layer] for layer in layers] if scope == "layer" else [layers]
    found = {}
    for group in groups:
        scaled = [layer.values.ravel() / np.float64(steps[layer.tensor]) for layer in group]
        masses = [
            weighted[layer.tensor].ravel() / weighted[layer.tensor].mean()
            if layer.tensor in weighted
            else np.ones(layer.values.size)
            for layer in group
        ]
        made = ecsq(np.concatenate(scaled), np.concatenate(masses))
        ends = np.cumsum([layer.values.size for layer in group])[:-1]
        for layer, part in zip(group, np.split(made, ends), strict=True):
            codebook, places = np.unique(part, return_inverse=True)
            values = short(codebook * np.float64(steps[layer.tensor]))[places.reshape(-1)]
            found[layer.tensor] = values.reshape(layer.values.shape)
    return found


def ecsq(values: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Numbers quantised so that error + lambda * bits is least, as from a step of 1; zeros stay.

    Args:
        values: float64, any numbers.
        masses: of each number's squared error.
    """
    numbers = np.rint(values)
    levels, places = np.unique(numbers, return_inverse=True)
    places = places.reshape(-1)
    if len(levels) > _MOST_LEVELS:
        return np.asarray(numbers)
    slope = _SLOPE * float(masses.mean())
    for _ in range(_ROUNDS):
        counts = np.bincount(places, minlength=len(levels))
        sums = np.bincount(places, masses * values, len(levels))
        weights = np.bincount(places, masses, len(levels))
        kept = counts > 0
        centres = np.divide(sums, weights, out=levels.copy(), where=weights > 0)
        centres[levels == 0] = 0.0  # what is zero stays so, and what was pruned
        levels, bits = centres[kept], -np.log2(counts[kept] / len(values))
        before = np.cumsum(kept)[places] - 1
        places = _cheapest(values, masses, levels, slope * bits)
        if np.array_equal(before, places):
            break
    found: np.ndarray = levels[places]
    return found


def _cheapest(
    values: np.ndarray, masses: np.ndarray, levels: np.ndarray, costs: np.ndarray
) -> np.ndarray:
    """For each number the level where mass * error + cost is least: one of the near ones."""
    near = np.searchsorted(levels, values)
    best = np.zeros(len(values), np.int64)
    least = np.full(len(values), np.inf)
    zero = int(np.argmin(np.abs(levels)))
    offsets = [np.clip(near + shift, 0, len(levels) - 1) for shift in (-2, -1, 0, 1)]
    for place in [*offsets, np.full(len(values), zero)]:
        cost = masses * (values - levels[place]) ** 2 + costs[place]
        better = cost < least
        best[better], least[better] = place[better], cost[better]
    best[values == 0] = zero if levels[zero] == 0 else best[values == 0]
    return best


def _to_target(
    quantised: Quantiser, network: Network, layers: list[Layer], parameters: Mapping[str, object]
) -> dict[str, np.ndarray]:
    """Weights at the step that was asked for, or at the one that gives the bits or the bytes."""
    step, bits, size = (parameters[name] for name in ("step", "bits", "bytes"))
    if isinstance(step, float):
        return quantised(step)
    if isinstance(bits, float):
        total = sum(layer.values.size for layer in layers)

        def rate(made: dict[str, np.ndarray]) -> float:
            return sum(map(entropy_bits, made.values())) / total

        return _bisected(quantised, rate, bits)
    assert isinstance(size, int), "the parameters have one of the three"

    def packed(made: dict[str, np.ndarray]) -> float:
        for layer in layers:
            network.replace(layer, made[layer.tensor])
        return float(len(pack(network.proto.SerializeToString(deterministic=True))))

    return _bisected(quantised, packed, float(size))


def _bisected(
    quantised: Quantiser, cost: Callable[[dict[str, np.ndarray]], float], target: float
) -> dict[str, np.ndarray]:
    """The finest step whose cost is at most the target; raises `Refusal` where none is."""
    low, high = 2e-3, 16.0  # steps, in root mean squares: from 11 bits to nothing
    best = quantised(high)
    least = cost(best)
    if least > target:
        raise Refusal(
            f"the target of {target:g} cannot be reached: with all weights zero it is {least:g}",
            remedy="Ask for more, or set `biases` to fewer bits.",
        )
    for _ in range(_TRIES):
        middle = float(np.sqrt(low * high))
        made = quantised(middle)
        found = cost(made)
        if found <= target:
            best, high = made, middle
            if found >= target * (1 - _CLOSE):
                break
        else:
            low = middle
    return best

"""The pass ``prune.channels-lasso``: channels chosen by LASSO, what reads them fitted anew.

Group by group, in the graph's order: what the group's readers gave in the given network is to be
given again by fewer channels. Which, LASSO says: each channel's part in the sums gets a factor, and
the sum of the factors' sizes is weighed against the error, more and more, until as many are zero as
have to go. Then the readers' weights and biases are fitted to what is left by least squares. What
they read comes from the network as it is by then, so that errors of earlier groups are made up for.

After He, Zhang and Sun, "Channel pruning for accelerating very deep neural networks", ICCV 2017,
section 3.1. There single layers are cut; here whatever hangs together, several readers at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import numpy_helper

from wherry.normalise.graph import attributes
from wherry_compress.graph.channels import Channels, Group, trace
from wherry_compress.graph.patches import Window, taken
from wherry_compress.job import Data, Done, Job, Refusal
from wherry_compress.prune import targets
from wherry_compress.prune.budget import Budget, Measure, Step, ranked
from wherry_compress.prune.compensate import BIASED, with_biases, without_biases
from wherry_compress.prune.runs import tensors
from wherry_compress.prune.scores import scores

_RIDGE = 1e-3  # of the mean square of a column: holds weights where samples say nothing
_SWEEPS = 60
_BISECTIONS = 25


def apply(job: Job) -> Done:
    """The narrower network; its figures are what it costs, and each group's error that was left."""
    before = job.load()
    channels = trace(with_biases(before))
    data, about = job.data["calibration"], job.parameters
    worth = scores(channels, "activation", "readers", job.seed, data)

    def order(steps: list[Step], _budget: Budget, _measure: Measure) -> Iterable[Step]:
        return ranked(steps, [np.sort(values) for values in worth])

    counts, told = targets.counts_for(job, channels, order)
    fitter = _Fitter(channels, data, about["samples"], about["places"], job.seed)
    removed: list[int] = []
    left: dict[str, float] = {}
    for index in _in_order(channels):
        group, count = channels.groups[index], int(counts[index])
        if count == len(group.units):
            continue
        held = targets.held(channels, worth)
        gone, error = fitter.cut(group, count, worth[index], np.isin(group.units, list(held)))
        removed += gone
        if error is not None:
            left[group.name] = round(error, 4)
    after = without_biases(fitter.channels.slice(removed), before)
    done = targets.finished(channels, before, after, counts, told)
    figures = {**done.figures, "error_left": dict(list(left.items())[:12])}
    return Done(done.model, figures, done.warnings)


def _in_order(channels: Channels) -> list[int]:
    """Groups by their first reader."""
    place = {node.name: index for index, node in enumerate(channels.proto.graph.node)}
    firsts = [min((place[name] for name in g.readers), default=-1) for g in channels.groups]
    return sorted(range(len(firsts)), key=firsts.__getitem__)


@dataclass
class _Sums:
    """Of a reader, over all rows that were looked at; centred.

    Attributes:
        xx: products of its inputs, [channels, kernel, channels, kernel].
        xy: products of its inputs with what it gave, [channels, kernel, outputs].
        yy: the square of what it gave.
        x: means of its inputs, [channels, kernel].
        y: means of what it gave, [outputs].
    """

    xx: np.ndarray
    xy: np.ndarray
    yy: float
    x: np.ndarray
    y: np.ndarray


class _Fitter:
    """The network while its channels are cut.

    Args:
        channels: of the network, every reader with a bias.
        data: the samples.
        count: of them, so many.
        places: of each map and sample.
        seed: of the places.

    Attributes:
        channels: with weights as they are by now.
    """

    def __init__(self, channels: Channels, data: Data, count: int, places: int, seed: int) -> None:
        self.channels = channels
        self._data, self._count = data, count
        self._nodes = {node.name: node for node in channels.proto.graph.node}
        self._kept = np.ones(len(channels.roots), bool)
        self._cuts = {cut.node: cut for cut in channels.cuts if cut.role == "reads"}
        self._sizes = {t.name: math.prod(t.dims) for t in channels.proto.graph.initializer}
        self._places: dict[str, np.ndarray] = {}
        self._draw(np.random.default_rng(seed), places)
        self._wanted = self._outputs()

    def cut(
        self, group: Group, count: int, worth: np.ndarray, held: np.ndarray
    ) -> tuple[list[int], float | None]:
        """Choose the units of a group that go, and fit its readers.

        Args:
            group: to narrow.
            count: of units that stay.
            worth: of each unit, for groups none of whose readers can be fitted, [units].
            held: whether each has to stay, [units].

        Returns:
            The units, and the error left, relative to what the readers gave; None: not fitted.
        """
        readers = [name for name in group.readers if name in self._wanted]
        values = {t.name: numpy_helper.to_array(t) for t in self.channels.proto.graph.initializer}
        sums = self._gather(readers) if readers else {}
        if readers:
            order = self._by_lasso(group, count, sums, values)
        else:
            order = np.argsort(-worth, kind="stable")
        order = np.concatenate([order[held[order]], order[~held[order]]])
        gone = group.units[np.sort(order[count:])]
        self._kept &= ~np.isin(self.channels.roots, gone)
        changed: dict[str, np.ndarray] = {}
        lost = given = 0.0
        for name in readers:
            new, error = self._fitted(name, sums[name], values)
            changed |= new
            lost, given = lost + error, given + sums[name].yy
        self.channels = self.channels.changed(changed)
        return [int(unit) for unit in gone], lost / given if given else None

    # --- samples ---------------------------------------------------------------------------------

    def _draw(self, generator: np.random.Generator, places: int) -> None:
        """Where each reader that can be fitted is looked at: flat places of its output map."""
        for name in self._cuts:
            node = self._nodes[name]
            about, shape = attributes(node), self.channels.shapes[node.output[0]]
            plain = about.get("alpha", 1.0) == about.get("beta", 1.0) == 1.0
            if node.op_type not in BIASED or self._sizes.get(node.input[2]) != shape[1]:
                continue  # its bias is computed, or is not one number an output
            if node.op_type == "Gemm" and plain:
                self._places[name] = np.arange(shape[0])
            elif node.op_type == "Conv" and about.get("group", 1) == 1 and shape[0] == 1:
                size = int(np.prod(shape[2:]))
                drawn = generator.choice(size, min(places, size), replace=False)
                self._places[name] = np.sort(drawn)

    def _outputs(self) -> dict[str, np.ndarray]:
        """What the readers of the given network give at their places: node to [rows, outputs]."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in self._places}
        outputs = [self._nodes[name].output[0] for name in found]
        for sample in tensors(self.channels.proto, outputs, self._data, self._count):
            for name, rows in found.items():
                value = sample[self._nodes[name].output[0]].astype(np.float64)
                if self._nodes[name].op_type == "Conv":
                    value = value.reshape(value.shape[1], -1).T[self._places[name]]
                rows.append(value)
        return {name: np.concatenate(rows) for name, rows in found.items()}

    def _gather(self, readers: Sequence[str]) -> dict[str, _Sums]:
        """The sums of some readers, of what the network by now gives them."""
        rows: dict[str, list[np.ndarray]] = {name: [] for name in readers}
        inputs = [self._nodes[name].input[0] for name in readers]
        for sample in tensors(self.channels.proto, inputs, self._data, self._count):
            for name in readers:
                rows[name].append(self._taken(name, sample[self._nodes[name].input[0]]))
        return {name: self._sums(np.concatenate(each), name) for name, each in rows.items()}

    def _taken(self, name: str, value: np.ndarray) -> np.ndarray:
        """What the weights of a reader take at its places, float64 [places, channels, kernel]."""
        node, places = self._nodes[name], self._places[name]
        if node.op_type == "Gemm":
            rows: np.ndarray = value.astype(np.float64)[places][:, :, None]
            return rows
        weights = self._nodes[name].input[1]
        dims = next(t.dims for t in self.channels.proto.graph.initializer if t.name == weights)
        patches = taken(value, Window.of(node, dims[2:]), places)
        return patches.reshape(len(places), dims[1], -1).astype(np.float64)

    def _sums(self, x: np.ndarray, name: str) -> _Sums:
        """Of inputs [rows, channels, kernel]; channels that are cut by now are zero."""
        y = self._wanted[name]
        x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
        flat = (x - x_mean).reshape(len(x), -1)
        centred = y - y_mean
        shape = x.shape[1:]
        return _Sums(
            (flat.T @ flat).reshape(*shape, *shape),
            (flat.T @ centred).reshape(*shape, -1),
            float((centred**2).sum()),
            x_mean,
            y_mean,
        )

    # --- choosing and fitting --------------------------------------------------------------------

    def _weights(self, name: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Of a reader, [channels, kernel, outputs]."""
        cut = self._cuts[name]
        weights = np.moveaxis(values[cut.tensor].astype(np.float64), cut.axis, 0)
        weights = weights.reshape(*weights.shape[:2], -1)
        found: np.ndarray = weights.transpose(0, 2, 1)
        return found

    def _by_lasso(
        self,
        group: Group,
        count: int,
        sums: Mapping[str, _Sums],
        values: Mapping[str, np.ndarray],
    ) -> np.ndarray:
        """The units, those that stay first."""
        units = len(group.units)
        gram, target = np.zeros((units, units)), np.zeros(units)
        for name, each in sums.items():
            weights = self._weights(name, values)
            weights *= self._kept[self._cuts[name].ids][:, None, None]
            where = self.channels.positions(self._cuts[name], group)
            mine, per = where.reshape(-1), where.shape[1]
            inside = np.zeros(len(weights), bool)
            inside[mine] = True
            fixed = weights * ~inside[:, None, None]
            rest = each.xy - np.tensordot(each.xx, fixed, axes=([2, 3], [0, 1]))
            share = 1 / max(each.yy, np.finfo(np.float64).tiny)
            # the part of a channel in the sums, against that of each other
            flat = weights[mine].reshape(len(mine) * weights.shape[1], -1)
            parts = each.xx[mine][:, :, mine].reshape(len(flat), -1) * (flat @ flat.T)
            gram += share * parts.reshape(units, -1, units, len(flat) // units).sum(axis=(1, 3))
            own = np.einsum("cko,cko->c", weights[mine], rest[mine])
            target += share * own.reshape(units, per).sum(axis=1)
        factors = lasso(gram, target, count)
        return np.argsort(-np.abs(factors) * np.sqrt(np.diag(gram)), kind="stable")

    def _fitted(
        self, name: str, each: _Sums, values: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], float]:
        """New weights and bias of a reader, by constant's name, and the square of its error."""
        cut, node = self._cuts[name], self._nodes[name]
        weights = self._weights(name, values)
        kept = self._kept[cut.ids]
        weights[~kept] = 0
        size, outputs = int(kept.sum()) * weights.shape[1], weights.shape[2]
        xx = each.xx[kept][:, :, kept].reshape(size, size)
        old = weights[kept].reshape(size, outputs)
        residual = each.xy[kept].reshape(size, outputs) - xx @ old
        ridge = _RIDGE * max(float(np.trace(xx)) / size, np.finfo(np.float64).tiny)
        new = old + np.linalg.solve(xx + ridge * np.eye(size), residual)
        weights[kept] = new.reshape(-1, *weights.shape[1:])
        error = (
            each.yy
            - 2 * (new * each.xy[kept].reshape(size, outputs)).sum()
            + (new * (xx @ new)).sum()
        )
        bias = each.y - np.tensordot(each.x, weights, axes=([0, 1], [0, 1]))
        given = values[cut.tensor]
        shape = np.moveaxis(given, cut.axis, 0).shape
        back = np.moveaxis(weights.transpose(0, 2, 1).reshape(shape), 0, cut.axis)
        old_bias = values[node.input[2]]
        if not np.isfinite(back).all():
            raise Refusal(
                "the weights cannot be fitted: the samples do not determine them",
                where=f"node {name!r}",
                remedy="Give more calibration data, or exclude that node.",
            )
        return {
            cut.tensor: back.astype(given.dtype),
            node.input[2]: bias.reshape(old_bias.shape).astype(old_bias.dtype),
        }, max(0.0, float(error))


def lasso(gram: np.ndarray, target: np.ndarray, count: int) -> np.ndarray:
    """Factors b that make b'Gb/2 - t'b + p|b| least, for the greatest p that leaves ``count``.

    By coordinate descent; p is found by bisection, to the nearest that leaves as many or more.

    Args:
        gram: G, [n, n].
        target: t, [n].
        count: of factors that are not zero.
    """
    low, high = 0.0, float(np.abs(target).max()) if len(target) else 0.0
    best = start = np.ones(len(target))
    for _ in range(_BISECTIONS):
        penalty = (low + high) / 2
        found = _descended(gram, target, penalty, start)
        left = int((found != 0).sum())
        if left >= count:
            low, best = penalty, found
            start = found
            if left == count:
                break
        else:
            high = penalty
    return best


def _descended(
    gram: np.ndarray, target: np.ndarray, penalty: float, start: np.ndarray
) -> np.ndarray:
    """One penalty; factors that are zero and not pushed beyond it are passed over."""
    diagonal = np.diag(gram)
    usable = diagonal > 0
    factors = np.where(usable, start, 0.0)
    product = gram @ factors
    for _ in range(_SWEEPS):
        pushed = np.abs(target - product) > penalty
        most = 0.0
        for i in np.flatnonzero(usable & (pushed | (factors != 0))).tolist():
            old, curve = float(factors[i]), float(diagonal[i])
            free = float(target[i] - product[i]) + curve * old
            step = math.copysign(max(0.0, abs(free) - penalty) / curve, free) - old
            if step:
                product += gram[i] * step
                factors[i] = old + step
                most = max(most, abs(step))
        if most < 1e-4:
            break
    return factors

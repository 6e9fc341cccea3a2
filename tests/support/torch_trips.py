"""An exported network into torch and back, beside ONNX Runtime: what differs, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from wherry.model import Model
from wherry.normalise import normalise
from wherry_compress.train.network import Network

BATCH = 3


@dataclass(frozen=True)
class Trip:
    """One network's way there and back.

    Attributes:
        there: the greatest difference of torch from ONNX Runtime, over the outputs' rms.
        back: likewise of the exported network, and its weights were not changed.
        trained: likewise of the exported network from torch, after all weights were moved.
        spread: how far the outputs of different pictures are apart, over the outputs' rms.
        names: the nodes are those of the graph that was imported.
    """

    there: float
    back: float
    trained: float
    spread: float
    names: bool


def prepared(path: Path, folder: Path) -> onnx.ModelProto:
    """As the passes that train are given it."""
    folder.mkdir(exist_ok=True)
    static = Model.load(path).with_static_shapes({}, folder)
    (folder / "normal").mkdir(exist_ok=True)
    found = normalise(static, folder / "normal", {"keep batch norm"})
    assert not found.warnings, found.warnings
    return found.model.proto()


def outputs(proto: onnx.ModelProto, pictures: np.ndarray) -> np.ndarray:
    """Of ONNX Runtime, a picture at a time, [pictures, ...]."""
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    name = session.get_inputs()[0].name
    return np.stack([session.run(None, {name: picture[None]})[0] for picture in pictures])


def trip(path: Path, folder: Path) -> Trip:
    """There and back."""
    proto = prepared(path, folder)
    network = Network(proto).eval()
    (name, shape), *_ = network.inputs.items()
    (output,) = network.outputs
    pictures = np.random.default_rng(0).standard_normal((BATCH, *shape[1:])).astype(np.float32)
    original = onnx.load(path)
    wanted = outputs(original, pictures)

    def asked() -> np.ndarray:
        with torch.no_grad():
            return network({name: torch.from_numpy(pictures)})[output].numpy()

    there = _apart(asked(), wanted)
    exported = network.proto()
    onnx.checker.check_model(exported, full_check=True)
    back = _apart(outputs(exported, pictures), wanted)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.weights.values():
            weight.mul_(1 + 0.05 * torch.randn(weight.shape, generator=generator))
    moved = asked()
    assert _apart(moved, wanted) > 1e-3, "weights were moved, and the network was not"
    trained = _apart(outputs(network.proto(), pictures), moved)
    scale = np.sqrt(np.mean(wanted.astype(np.float64) ** 2))
    spread = float(wanted.std(0).mean() / scale)
    nodes = [[node.name for node in each.graph.node] for each in (proto, exported)]
    return Trip(there, back, trained, spread, nodes[0] == nodes[1])


def _apart(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    scale = np.sqrt(np.mean(wanted.astype(np.float64) ** 2))
    return float(np.abs(found.astype(np.float64) - wanted).max() / scale)

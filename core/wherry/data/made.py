"""Data that is made: random inputs, and what a function of the user's own gives."""

from __future__ import annotations

import hashlib
import importlib.util
import operator
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from wherry.artifact import hash_file
from wherry.data.arrays import as_label, check_numbers, hash_array, nearest
from wherry.dataset import DataContext, Dataset, Sample
from wherry.errors import DataError, WherryError


class RandomInput(BaseModel):
    """One input of ``source: random``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(description="of one sample")
    dtype: Literal["float32", "float16", "uint8", "int8", "int32", "int64", "bool"] = Field(
        default="float32", description="of the elements"
    )
    distribution: Literal["normal", "uniform"] = Field(
        default="normal",
        description="normal: mean 0, standard deviation 1 (floats alone); uniform: low to high",
    )
    low: float = Field(default=0.0, description="of a uniform distribution; included")
    high: float = Field(default=1.0, description="of a uniform distribution; excluded for floats")

    @model_validator(mode="after")
    def _in_order(self) -> RandomInput:
        if self.low > self.high:
            raise ValueError("low is greater than high")
        if not self.dtype.startswith("float"):
            least, greatest = (0, 1) if self.dtype == "bool" else _bounds(self.dtype)
            if not least <= self.low <= self.high <= greatest:
                raise ValueError(f"{self.dtype} holds {least} to {greatest}")
        return self

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """One array."""
        if self.distribution == "normal" and self.dtype.startswith("float"):
            return generator.standard_normal(self.shape, np.float32).astype(self.dtype)
        if self.dtype.startswith("float"):
            return generator.uniform(self.low, self.high, self.shape).astype(self.dtype)
        return generator.integers(int(self.low), int(self.high), self.shape, endpoint=True).astype(
            self.dtype
        )


def _bounds(dtype: str) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


class RandomParameters(BaseModel):
    """What may stand beside ``source: random``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: dict[str, RandomInput] = Field(
        min_length=1, description="the model's input to how its arrays are drawn"
    )
    samples: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=16, description="how many samples there are"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="the same seed, the same data")


class RandomDataset(Dataset):
    """Drawn when asked for, from a generator of each sample's own."""

    name = "random"

    def __init__(self, parameters: RandomParameters) -> None:
        self._parameters = parameters

    @property
    def digest(self) -> str:
        """See `Dataset`; over what decides the numbers: this code, numpy's version."""
        code = hash_file(Path(__file__))
        text = f"{self._parameters.model_dump_json()} {np.__version__} {code}"
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return self._parameters.samples

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        generator = np.random.default_rng((self._parameters.seed, index))
        return Sample(
            {name: each.draw(generator) for name, each in self._parameters.inputs.items()}
        )


def load_random(parameters: RandomParameters, context: DataContext) -> Dataset:  # noqa: ARG001 -- the signature of all sources
    """See `RandomParameters`."""
    return RandomDataset(parameters)


class PythonParameters(BaseModel):
    """What may stand beside ``source: python``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path = Field(description="a Python file of yours; it is run")
    function: str = Field(
        default="make",
        description="a function in it that returns a sequence of (inputs, label), or a Dataset",
    )
    arguments: dict[str, Any] = Field(default={}, description="keyword arguments for the function")


def load_python(parameters: PythonParameters, context: DataContext) -> Dataset:
    """Run the user's file and function; raises `DataError`, with the line that failed."""
    path = context.base / parameters.file.expanduser()
    if not path.is_file():
        raise DataError("there is no such file", where=str(path), remedy="Correct the data's file.")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    specification = importlib.util.spec_from_file_location(f"wherry_data_{digest}", path)
    if specification is None or specification.loader is None:
        raise DataError("not a Python file", where=str(path), remedy="Name a file ending in .py.")
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise _failed(path, error) from error
    function = getattr(module, parameters.function, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value)]
        raise DataError(
            f"there is no function {parameters.function!r}",
            where=str(path),
            remedy=nearest(parameters.function, names, "Correct the data's function."),
        )
    try:
        made = function(**parameters.arguments)
    except Exception as error:
        raise _failed(path, error) from error
    if isinstance(made, Dataset):
        return made
    where = f"{path}, {parameters.function}()"
    if isinstance(made, (str, bytes, Mapping)) or not all(
        hasattr(made, method) for method in ("__len__", "__getitem__")
    ):
        raise DataError(
            f"gave {type(made).__name__}, not a sequence of (inputs, label)",
            where=where,
            remedy="Return a list, or an object with __len__ and __getitem__.",
        )
    return PairDataset(f"python {path.name}", made, where)


def _failed(path: Path, error: Exception) -> DataError:
    """The user's code raised: say where, in the user's own file."""
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}:{error.lineno}"
    else:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path)
        ]
        where = f"{path}:{lines[-1]}" if lines else str(path)
    text = str(error) if isinstance(error, WherryError) else f"{type(error).__name__}: {error}"
    return DataError(f"your code raised {text}", where=where, remedy="Correct it.")


class PairDataset(Dataset):
    """A sequence of ``(inputs, label)``, or of `Sample`.

    ``inputs`` is an array (anything that numpy takes for one) or a mapping of input names to
    arrays; ``label`` is a whole number, an array, or None.
    """

    def __init__(self, name: str, pairs: Sequence[Any], where: str) -> None:
        self.name = name
        self._pairs = pairs
        self._where = where
        self._digest: str | None = None

    @property
    def digest(self) -> str:
        """See `Dataset`."""
        if self._digest is None:
            digest = hashlib.sha256()
            for sample in self:
                for name, array in sorted(sample.inputs.items()):
                    hash_array(digest, name, array)
                if sample.label is not None:
                    hash_array(digest, "label", np.asarray(sample.label))
            self._digest = digest.hexdigest()
        return self._digest

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        where = f"{self._where}[{index}]"
        try:
            made = self._pairs[index]
        except Exception as error:
            raise DataError(
                f"your code raised {type(error).__name__}: {error}",
                where=where,
                remedy="Correct it.",
            ) from error
        if isinstance(made, Sample):
            return made
        try:
            inputs, label = made
        except (TypeError, ValueError) as error:
            raise DataError(
                f"gave {type(made).__name__}, not a pair (inputs, label)",
                where=where,
                remedy="Return (inputs, None) where there is no label.",
            ) from error
        if not isinstance(inputs, Mapping):
            inputs = {"": inputs}
        arrays = {
            name: check_numbers(np.asarray(array), f"input {name!r}", where)
            for name, array in inputs.items()
        }
        return Sample(arrays, None if label is None else _label(label, where))


def _label(label: Any, where: str) -> int | np.ndarray:
    try:
        return operator.index(label)
    except TypeError:
        return as_label(check_numbers(np.asarray(label), "the label", where))

"""Views of datasets: a slice, the samples as a model takes them, and the check before any use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry import preprocess as preprocessing
from wherry.data.arrays import nearest
from wherry.dataset import Dataset, Sample
from wherry.errors import DataError

if TYPE_CHECKING:
    from wherry.model import Model, TensorSpec


class Sliced(Dataset):
    """The samples ``start`` to ``stop``, that one excluded, of another dataset.

    Args:
        dataset: the whole.
        start: None: from the first.
        stop: None: to the last.
        where: the place in the manifest, for the message.

    Raises:
        DataError: there are no such samples.
    """

    def __init__(
        self, dataset: Dataset, start: int | None, stop: int | None, *, where: str | None = None
    ) -> None:
        length = len(dataset)
        self._dataset = dataset
        self.classes = dataset.classes
        self._start = 0 if start is None else start
        self._stop = length if stop is None else stop
        self.name = f"{dataset.name}[{self._start}:{self._stop}]"
        if not 0 <= self._start < self._stop <= length:
            raise DataError(
                f"{dataset.name} has {length} samples, and no slice {self._start}:{self._stop}",
                where=where,
                remedy="Correct the slice: START:STOP, with 0 <= START < STOP <= the number of "
                "samples.",
            )

    @property
    def digest(self) -> str:
        """See `Dataset`; of the whole dataset and the slice."""
        if (self._start, self._stop) == (0, len(self._dataset)):
            return self._dataset.digest
        text = f"{self._dataset.digest} {self._start}:{self._stop}"
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._dataset[self._start + index]


class Preprocessed(Dataset):
    """The samples as a model takes them: preprocessed, in its shapes and types, under its names.

    Args:
        dataset: raw samples.
        specs: input name to its declared preprocessing; inputs may be missing.
        inputs: of the model, with static shapes.
    """

    def __init__(
        self,
        dataset: Dataset,
        specs: Mapping[str, Mapping[str, Any]],
        inputs: Sequence[TensorSpec],
    ) -> None:
        self.name = dataset.name
        self.classes = dataset.classes
        self._dataset = dataset
        self._specs = {name: dict(spec) for name, spec in specs.items()}
        self._inputs = tuple(inputs)
        self._shapes = {spec.name: spec.static_shape for spec in self._inputs}

    @property
    def digest(self) -> str:
        """See `Dataset`; of the raw data and all that changes it."""
        inputs = [[spec.name, spec.dtype, *spec.shape] for spec in self._inputs]
        text = json.dumps([self._dataset.digest, self._specs, inputs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        where = f"sample {index} of {self.name}"
        arrays = named_inputs(sample.inputs, self._inputs, where)
        ready = {}
        for spec in self._inputs:
            try:
                ready[spec.name] = preprocessing.apply(
                    arrays[spec.name],
                    self._specs.get(spec.name, {}),
                    self._shapes[spec.name],
                    spec.dtype,
                )
            except ValueError as error:
                raise DataError(
                    f"input {spec.name!r}: {error}",
                    where=where,
                    remedy="Correct the data, or `model.inputs."
                    f"{spec.name}.preprocess` in the manifest.",
                ) from error
        return Sample(ready, sample.label)


def named_inputs(
    arrays: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec], where: str
) -> Mapping[str, np.ndarray]:
    """A sample's arrays under the model's names: ``""`` stands for the only one.

    Raises:
        DataError: the names are not those of the model's inputs.
    """
    wanted = [spec.name for spec in inputs]
    if len(wanted) == 1 and list(arrays) == [""]:
        return {wanted[0]: arrays[""]}
    for name in arrays:
        if name not in wanted:
            raise DataError(
                f"the data has an input {name!r}, and the model has {', '.join(map(repr, wanted))}"
                if name
                else f"the data does not name its inputs, and the model has several: "
                f"{', '.join(map(repr, wanted))}",
                where=where,
                remedy=nearest(name, wanted, "Name the inputs in the manifest's data section."),
            )
    for name in wanted:
        if name not in arrays:
            raise DataError(
                f"the data has nothing for the model's input {name!r}",
                where=where,
                remedy="Give all inputs in the manifest's data section.",
            )
    return arrays


def check_dataset(
    dataset: Dataset,
    model: Model,
    preprocess: Mapping[str, Mapping[str, Any]],
    *,
    where: str,
    needs_labels: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Go through all samples once, before anything is paid for.

    Args:
        dataset: raw samples.
        model: with static shapes.
        preprocess: input name to its declared preprocessing.
        where: the place in the manifest, for messages.
        needs_labels: a metric wants labels: say so where there are none.
        progress: called with (samples done, samples in all).

    Raises:
        DataError: it is empty, its inputs are not the model's, a sample does not fit or holds NaN
            or infinity, a class index is beyond every output's classes, or labels are missing.
    """
    if not len(dataset):
        raise DataError(
            f"{dataset.name} has no samples", where=where, remedy="Correct its path or its slice."
        )
    for name in preprocess:
        if name not in {spec.name for spec in model.inputs}:
            names = [spec.name for spec in model.inputs]
            raise DataError(
                f"a preprocessing is declared for the input {name!r}, and the model has "
                f"{', '.join(map(repr, names))}",
                where=where,
                remedy=nearest(name, names, "Correct `model.inputs` in the manifest."),
            )
    classes = _classes(model)
    ready = Preprocessed(dataset, preprocess, model.inputs)
    for index in range(len(dataset)):
        try:
            sample = ready[index]
        except DataError as error:
            raise error.within(where) from error
        problem = _problem(sample, classes, needs_labels)
        if problem is not None:
            raise DataError(
                f"sample {index} of {dataset.name}: {problem[0]}", where=where, remedy=problem[1]
            )
        if progress is not None:
            progress(index + 1, len(dataset))


def _classes(model: Model) -> int | None:
    """The most classes that any output tells apart; None where it does not say."""
    from wherry.scoring import class_axis

    sizes = []
    for spec in model.outputs:
        if not spec.dtype.startswith("float"):
            return None
        if spec.shape:
            sizes.append(spec.static_shape[class_axis(spec.static_shape, None)])
    most = max(sizes, default=1)
    return most if most > 1 else None


def _problem(sample: Sample, classes: int | None, needs_labels: bool) -> tuple[str, str] | None:
    """What is wrong with a sample, and the remedy."""
    for name, array in sample.inputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            what = "NaN" if np.isnan(array).any() else "infinity"
            return f"input {name!r} holds {what}", "Correct the data or its preprocessing."
    label = sample.label
    if label is None:
        if needs_labels:
            return "it has no label, and a metric needs one", "Give labels, or other metrics."
    elif isinstance(label, int) and (label < 0 or (classes is not None and label >= classes)):
        text = f"the label is {label}"
        if classes is None or label < 0:
            return f"{text}, and classes count from 0", "Correct the labels."
        return (
            f"{text}, and the model has {classes} classes, 0 to {classes - 1}",
            "Correct the labels: classes count from 0.",
        )
    return None

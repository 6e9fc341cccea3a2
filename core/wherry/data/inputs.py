"""Samples as files, for tools that run in a process of their own and read them one at a time."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.errors import DataError

if TYPE_CHECKING:
    from wherry.dataset import Dataset
    from wherry.model import Model, TensorSpec


def write_inputs(
    model: Model, dataset: Dataset, folder: Path, role: str = "calibration"
) -> dict[str, str]:
    """One .npy file an input, [samples, *shape], written a sample at a time.

    Args:
        model: with static shapes.
        dataset: its samples, preprocessed (`wherry.data.views.Preprocessed`).
        folder: for the files.
        role: of the dataset, for errors.

    Returns:
        Input name to the path of its file.

    Raises:
        DataError: there are no samples, or one does not fit the model.
    """
    if not len(dataset):
        raise DataError(f"{role} needs at least one sample, and the dataset is empty")
    paths = {spec.name: folder / f"input{index}.npy" for index, spec in enumerate(model.inputs)}
    with ExitStack() as stack:
        # Written and not mapped: pages of a map count as memory, and a full disk ends the process.
        files = {name: stack.enter_context(path.open("wb")) for name, path in paths.items()}
        for spec in model.inputs:
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(spec.dtype)),
                "fortran_order": False,
                "shape": (len(dataset), *spec.static_shape),
            }
            np.lib.format.write_array_header_1_0(files[spec.name], header)
        for index, sample in enumerate(dataset):
            for spec in model.inputs:
                only = sample.inputs.get("") if len(model.inputs) == 1 else None
                value = sample.inputs.get(spec.name, only)
                files[spec.name].write(_checked(value, spec, f"{role} sample {index}").tobytes())
    return {name: str(path) for name, path in paths.items()}


def write_labels(dataset: Dataset, folder: Path) -> str | None:
    """Class indices as one .npy file, int64 [samples]; None where a sample has none."""
    labels = [sample.label for sample in dataset]
    if not all(isinstance(label, int | np.integer) for label in labels):
        return None
    path = folder / "labels.npy"
    np.save(path, np.array(labels, np.int64))
    return str(path)


def _checked(value: Any, spec: TensorSpec, where: str) -> np.ndarray:
    if value is None:
        raise DataError(f"the input {spec.name!r} is missing", where=where)
    array = np.asarray(value)
    shape = spec.static_shape
    fits = shape in (array.shape, (1, *array.shape))  # with the batch axis of 1, or without
    if not fits or array.dtype != np.dtype(spec.dtype):
        raise DataError(
            f"the input {spec.name!r} is {array.dtype}{list(array.shape)}, and the model takes "
            f"{spec.dtype}{list(spec.shape)}",
            where=where,
            remedy="Declare a preprocessing that gives this, or mend the data.",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"the input {spec.name!r} holds NaN or infinity", where=where)
    return array

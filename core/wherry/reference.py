"""The reference: a model's own outputs in fp32 on ONNX Runtime, one thread, same bits every time.

Accuracy of an artifact is judged against these outputs, by the parity check on the host and by the
metrics that compare with the original.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from wherry.errors import DataError, ModelError, StoreError
from wherry.npy import map_array

if TYPE_CHECKING:
    from wherry.dataset import Dataset
    from wherry.model import Model, TensorSpec

INDEX = "reference.json"
STANDARD = "Export the model again, with operators of ONNX alone."


class Reference:
    """A model with static shapes, loaded in ONNX Runtime on the host's processor.

    Raises:
        ModelError: ONNX Runtime refuses the model; the node is named where it says so.
    """

    def __init__(self, model: Model, *, threads: int = 1) -> None:
        self.model = model
        self._wanted = {spec.name: (spec.dtype, spec.shape) for spec in model.inputs}
        self._outputs = [spec.name for spec in model.outputs]
        self._where = where = str(model.path)
        try:
            self._session = open_session(where, threads=threads, where=where)
        except ModelError as error:
            custom = re.search(r"([\w.]+):(\w+)\(-?\d+\) is not a registered", error.message)
            if custom is None:
                raise
            raise ModelError(
                f"node {model.operators()['::'.join(custom.groups())][0]!r} is a "
                f"{custom[2]} of the domain {custom[1]}, which ONNX Runtime does not have",
                where=where,
                remedy=STANDARD,
            ) from error

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One inference.

        Args:
            inputs: ONNX input name to array, in the model's shapes and types.

        Returns:
            ONNX output name to array, in the model's order.

        Raises:
            DataError: the inputs are not those of the model.
            ModelError: the inference failed.
        """
        given = {name: (_name(array.dtype), array.shape) for name, array in inputs.items()}
        if given != self._wanted:
            raise DataError(
                f"the model wants the inputs {self._wanted}, and was given {given}",
                where=self._where,
                remedy="Correct the data or its preprocessing.",
            )
        return run_session(self._session, inputs, where=self._where, names=self._outputs)


@cache
def _name(dtype: np.dtype[Any]) -> str:
    """Of a type; numpy puts it together anew each time, which takes as long as a small network."""
    return dtype.name


def open_session(source: str | bytes, *, threads: int, where: str, as_written: bool = False) -> Any:
    """An ``onnxruntime.InferenceSession`` on the processor; raises `ModelError`.

    With ``as_written`` it computes the model node by node, without rewrites of its own.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what matters is raised
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except _runtime_errors() as error:
        raise _refused(error, "ONNX Runtime does not load the model", where, STANDARD) from error


def run_session(
    session: Any,
    inputs: Mapping[str, np.ndarray],
    *,
    where: str,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """One inference: output name to array; raises `ModelError`.

    ``names`` are those of the outputs, where they are known.
    """
    names = names or [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))
    except _runtime_errors() as error:
        raise _refused(
            error,
            "the inference failed on ONNX Runtime",
            where,
            "Correct the network or its inputs.",
        ) from error


def _runtime_errors() -> tuple[type[Exception], ...]:
    """The classes that ONNX Runtime raises: they have no common root of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = (kind for kind in vars(state).values() if isinstance(kind, type))
    return (RuntimeError, *(kind for kind in kinds if issubclass(kind, Exception)))


def _refused(error: Exception, what: str, where: str, remedy: str) -> ModelError:
    from wherry.onnx_file import shorten

    text = str(error)
    node = re.search(r"(?:[Nn]ode \(|[Nn]ame:? ?')(?P<name>[^')]+)['\)]", text)
    if node is not None:
        what = f"{what} (node {node['name']!r})"
    return ModelError(
        f"{what}: {shorten(text)}",
        where=where or None,
        remedy=remedy,
    )


def record_reference(
    reference: Reference,
    dataset: Dataset,
    directory: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Run every sample and write the outputs below ``directory``; memory does not grow.

    Args:
        reference: the original model.
        dataset: samples as the model takes them (`wherry.data.Preprocessed`).
        directory: an empty folder; see `load_reference`.
        progress: called with (samples done, samples in all).

    Raises:
        ModelError: an inference failed, gave NaN, or outputs of another shape than the first.
        StoreError: the folder cannot be written, a full disk for one.
    """
    names = [output.name for output in reference.model.outputs]
    try:
        with ExitStack() as stack:
            files = [
                stack.enter_context((directory / f"{position}.npy").open("wb"))
                for position in range(len(names))
            ]
            first: dict[str, np.ndarray] = {}
            for index, sample in enumerate(dataset):
                outputs = reference.run(sample.inputs)
                first = first or outputs
                for name, file in zip(names, files, strict=True):
                    _check_output(outputs[name], first[name], name, index, reference.model)
                    if index == 0:
                        _write_header(file, outputs[name], len(dataset))
                    file.write(outputs[name].tobytes())
                if progress is not None:
                    progress(index + 1, len(dataset))
        (directory / INDEX).write_text(json.dumps({"outputs": names}))
    except OSError as error:
        raise StoreError(
            f"the reference outputs cannot be written: {error.strerror}",
            where=str(directory),
            remedy="Free some space or choose another folder (WHERRY_HOME).",
        ) from error


def _check_output(
    array: np.ndarray, first: np.ndarray, name: str, index: int, model: Model
) -> None:
    if array.shape != first.shape:
        raise ModelError(
            f"output {name!r} has shape {array.shape} for sample {index} and {first.shape} for "
            "sample 0",
            where=str(model.path),
            remedy="wherry measures networks whose outputs have one shape: cut the network before.",
        )
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ModelError(
            f"output {name!r} of the model itself, in fp32, is NaN for sample {index}",
            where=str(model.path),
            remedy="Correct the network, the sample, or the preprocessing.",
        )


def _write_header(file: BinaryIO, array: np.ndarray, samples: int) -> None:
    # Written ahead of the arrays: a mapped file on a full disk would end the process by a signal.
    np.lib.format.write_array_header_1_0(
        file,
        {
            "descr": np.lib.format.dtype_to_descr(array.dtype),
            "fortran_order": False,
            "shape": (samples, *array.shape),
        },
    )


def load_reference(directory: Path) -> Callable[[int], Mapping[str, np.ndarray]]:
    """What `record_reference` wrote: sample index to (ONNX output name to array).

    The files are mapped, not read: any process may load them again.

    Raises:
        StoreError: the folder is not one of `record_reference`.
    """
    try:
        names: Sequence[str] = json.loads((directory / INDEX).read_text())["outputs"]
        arrays = {
            name: map_array(directory / f"{position}.npy") for position, name in enumerate(names)
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"not a folder of reference outputs: {error!r}",
            where=str(directory),
            remedy="Remove it and run again.",
        ) from error

    def outputs(index: int) -> Mapping[str, np.ndarray]:
        return {name: np.asarray(array[index]) for name, array in arrays.items()}

    return outputs


def random_inputs(
    inputs: Iterable[TensorSpec], count: int, seed: int = 0
) -> Iterable[dict[str, np.ndarray]]:
    """Made-up samples for a parity check where there is no data; the same for the same seed.

    Floats are drawn from the standard normal distribution, bytes from 0 to 255, other whole
    numbers are 0 or 1, so that as indices they stay within any table.
    """
    for index in range(count):
        generator = np.random.default_rng((seed, index))
        yield {
            spec.name: random_array(generator, spec.static_shape, np.dtype(spec.dtype))
            for spec in inputs
        }


def random_array(
    generator: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> np.ndarray:
    """See `random_inputs`."""
    if dtype.kind == "f":
        return generator.standard_normal(shape, np.float32).astype(dtype)
    return generator.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)

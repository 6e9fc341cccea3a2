"""Bindings: an ONNX tensor in the runtime's form and back.

A binding is what ``wherry.artifact.Binding`` says, as JSON values. An input is transposed by its
permutation and then loses its first axis where the runtime has no batch; outputs the other way.
Where the runtime takes whole numbers that stand for real ones, they are worked out here.

This file is shipped to boards, and into bundles, and loaded there by its path: Python 3.8, numpy,
nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    Preprocess = Callable[[np.ndarray, dict[str, Any], tuple[int, ...], str], np.ndarray]


class Input:
    """Turns one sample of one input into the runtime's form.

    Args:
        binding: see the module.
        spec: the declared preprocessing; empty: samples come as the model takes them.
        preprocess: ``wherry.preprocess.apply``, shipped beside the agent.
    """

    def __init__(
        self, binding: Mapping[str, Any], spec: dict[str, Any], preprocess: Preprocess
    ) -> None:
        self.onnx: str = binding["onnx"]
        self.runtime: str = binding["runtime"]
        self._dtype = np.dtype(binding["dtype"])
        self._shape = tuple(binding["shape"])
        self._permutation = binding.get("permutation")
        self._drop_batch = bool(binding.get("drop_batch"))
        self._scale = binding.get("scale")
        self._zero_point = binding.get("zero_point", 0)
        self._spec = spec
        self._preprocess = preprocess

    def prepare(self, raw: np.ndarray) -> np.ndarray:
        """A C-contiguous array for the runtime; raises ValueError where the sample does not fit."""
        dtype = "float32" if self._spec else str(raw.dtype)
        return self._to_runtime(self._preprocess(raw, self._spec, self._shape, dtype))

    def zeros(self) -> np.ndarray:
        """Zeros for the runtime."""
        return self._to_runtime(np.zeros(self._shape, self._dtype if self._scale is None else "f4"))

    def _to_runtime(self, array: np.ndarray) -> np.ndarray:
        if self._permutation is not None:
            array = array.transpose(self._permutation)
        if self._drop_batch:
            array = array[0, ...]
        if self._scale is not None:
            array = quantise(array, self._dtype, self._scale, self._zero_point)
        if array.dtype != self._dtype:
            array = cast(array, self._dtype, self.onnx)
        return np.asarray(array, order="C")


class Output:
    """Gathers one output of several samples in the ONNX form.

    Args:
        binding: see the module.
    """

    def __init__(self, binding: Mapping[str, Any]) -> None:
        self.onnx: str = binding["onnx"]
        self.runtime: str = binding["runtime"]
        self._shape = tuple(binding["shape"])
        self._permutation = binding.get("permutation") or range(len(self._shape))
        self._drop_batch = bool(binding.get("drop_batch"))
        self._scale = binding.get("scale")
        self._zero_point = binding.get("zero_point", 0)
        self._gathered = np.empty(0)
        self._slots = np.empty(0)

    def gather(self, index: int, count: int, value: np.ndarray) -> None:
        """Copy the runtime's ``value`` for sample ``index`` of ``count``; index 0 comes first.

        Raises:
            ValueError: its size is not that of the ONNX tensor.
        """
        if self._scale is not None:
            value = dequantise(value, self._scale, self._zero_point)
        if index == 0:
            self._gathered = np.empty((count, *self._shape), value.dtype)
            slots = self._gathered.transpose(0, *(axis + 1 for axis in self._permutation))
            self._slots = slots[:, 0] if self._drop_batch else slots
        slot = self._slots[index, ...]
        if value.shape != slot.shape:
            if value.size != slot.size:
                raise ValueError(
                    f"output {self.onnx!r} is {list(slot.shape)} in the runtime's form, "
                    f"the runtime gave {list(value.shape)}"
                )
            value = value.reshape(slot.shape)
        slot[...] = value

    def gathered(self) -> np.ndarray:
        """All samples, [count, *ONNX shape]."""
        return self._gathered


def returned(outputs: Mapping[str, Any], name: str) -> np.ndarray:
    """An output of a runner; raises ValueError where it gave none, or no array."""
    value = outputs.get(name)
    if isinstance(value, np.ndarray):
        return value
    if value is None:
        raise ValueError(f"get_outputs() gave no {name!r}, only {sorted(outputs)}")
    raise ValueError(f"get_outputs() gave {name!r} as {type(value).__name__}, not as an array")


def quantise(array: np.ndarray, dtype: np.dtype, scale: float, zero_point: int) -> np.ndarray:
    """Real values as whole numbers of ``dtype``: rounded to the nearest even, held in its range."""
    limits = np.iinfo(dtype)
    whole = np.rint(array.astype(np.float32) / np.float32(scale)) + zero_point
    quantised: np.ndarray = np.clip(whole, limits.min, limits.max).astype(dtype)
    return quantised


def dequantise(array: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """What whole numbers stand for, in float32."""
    real: np.ndarray = (array.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return real


def cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Another type for the same values.

    Between floating point types values are rounded; everything else has to be exact.

    Raises:
        ValueError: a value would become another, or infinite.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # found and named below
        result = array.astype(dtype)
        if array.dtype.kind == dtype.kind == "f":
            kept = bool((np.isfinite(result) | ~np.isfinite(array)).all())
        else:
            kept = bool((result == array).all())
    if not kept:
        raise ValueError(f"{name!r}: {array.dtype} values do not fit {dtype}")
    return result

"""From a raw sample to a model's input: float32 arithmetic with the same bits on every machine.

This file is shipped to boards and loaded there by its path: Python 3.8, numpy, nothing of ours.

A spec is a JSON object; each key may be missing::

    {"scale": 0.0039, "mean": [0.13], "std": [0.31], "layout": "nchw", "channels": "rgb"}

``(float32(x) * scale - mean) / std``, each operation rounded to float32 on its own. ``mean`` and
``std`` hold one value, or one per channel in the model's order. ``layout`` is that of the model's
input (``nchw`` unless said), ``channels`` the order of its colours (``rgb``, as raw samples have,
unless said).
"""

from __future__ import annotations

from typing import Any

import numpy as np

ARITHMETIC = ("scale", "mean", "std")


def apply(raw: np.ndarray, spec: dict[str, Any], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Make one input of a model.

    A uint8 array is a picture, HW or HWC, if the spec says anything and its sides fit so; every
    other array has the model's own order of axes. Axes of length 1 may be missing or added. A spec
    is applied whatever the array's type is.

    Args:
        raw: one sample's array.
        spec: the declared preprocessing, ``{}`` for none.
        shape: of the model's input, static, the batch axis of 1 included.
        dtype: of the model's input, numpy's name.

    Returns:
        A C-contiguous array of ``shape`` and ``dtype``; it may share memory with ``raw``.

    Raises:
        ValueError: it does not fit; the text says the shapes, the types, or the spec's key.
    """
    last = spec.get("layout", "nchw") == "nhwc"
    axis = len(shape) - 1 if last else min(1, len(shape) - 1)
    array = _arrange(raw, shape, last) if spec else _reshape(raw, shape)
    if spec.get("channels", "rgb") == "bgr":
        if shape[axis] != 3:
            raise ValueError(
                f"channels: bgr wants 3 channels, and axis {axis} of the input {_text(shape)} "
                f"has {shape[axis]} (layout: {'nhwc' if last else 'nchw'})"
            )
        array = np.flip(array, axis)
    array = np.asarray(array, order="C")  # bytes are moved faster than the floats made of them
    if not spec.keys().isdisjoint(ARITHMETIC):
        array = _normalise(array, spec, axis, dtype)
    return _cast(array, np.dtype(dtype))


def _arrange(raw: np.ndarray, shape: tuple[int, ...], last: bool) -> np.ndarray:
    """A picture in the model's order of axes; anything else as it is."""
    if raw.ndim > 2 and raw.dtype == np.uint8 and len(shape) == 4 and shape[0] == 1:
        height, width, channels = shape[1:] if last else (shape[2], shape[3], shape[1])
        if raw.shape in ((height, width, channels), (1, height, width, channels)):
            picture = raw.reshape(1, height, width, channels)
            return picture if last else picture.transpose(0, 3, 1, 2)
    return _reshape(raw, shape)


def _reshape(raw: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if raw.shape == shape:
        return raw
    added = len(shape) - raw.ndim
    if raw.shape == shape[added:] and shape[:added] == (1,) * added:  # the batch's axis, mostly
        return raw.reshape(shape)
    if [side for side in raw.shape if side != 1] != [side for side in shape if side != 1]:
        raise ValueError(
            f"an array of shape {_text(raw.shape)} does not fit an input of shape {_text(shape)}"
        )
    return raw.reshape(shape)


def _normalise(array: np.ndarray, spec: dict[str, Any], axis: int, dtype: str) -> np.ndarray:
    if np.dtype(dtype).kind != "f":
        key = next(key for key in ARITHMETIC if key in spec)
        raise ValueError(f"{key}: makes fractions, and the model's input is {dtype}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"an array of {array.dtype} cannot be normalised")
    if array.dtype.kind == "f":
        array = _cast(array, np.dtype(np.float32))
    # One pass and one allocation: numpy casts whole numbers to float32 first, in blocks.
    result: np.ndarray = np.multiply(array, np.float32(spec.get("scale", 1.0)), dtype=np.float32)
    if "mean" in spec:
        np.subtract(result, _per_channel(spec, "mean", result.shape, axis), out=result)
    if "std" in spec:
        np.divide(result, _per_channel(spec, "std", result.shape, axis), out=result)
    return result


def _per_channel(spec: dict[str, Any], key: str, shape: tuple[int, ...], axis: int) -> np.ndarray:
    values = spec[key]
    if len(values) == 1:
        return np.asarray(values[0], np.float32)
    if len(values) != shape[axis]:
        raise ValueError(
            f"{key}: has {len(values)} values, and axis {axis} of the input {_text(shape)} has "
            f"{shape[axis]} channels (layout: {spec.get('layout', 'nchw')})"
        )
    return np.array(values, np.float32).reshape((-1,) + (1,) * (len(shape) - 1 - axis))


def _cast(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """The same values in another type; fractions may be rounded, nothing else may change."""
    if array.dtype == dtype:
        return array
    if array.dtype.kind in "biu" and dtype.kind == "f":
        return array.astype(dtype)
    if array.dtype.kind == "f" and dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is too great becomes infinite; the host checks
            return array.astype(dtype)
    if array.dtype.kind in "biu" and dtype.kind in "iu":
        result = array.astype(dtype)
        if np.can_cast(array.dtype, dtype) or np.array_equal(result, array):
            return result
        raise ValueError(f"values of {array.dtype} go beyond the model's input type {dtype}")
    raise ValueError(f"an array of {array.dtype} does not fit an input of {dtype}")


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape) or "()"

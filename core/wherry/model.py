"""Models: an ONNX file with its typed inputs and outputs, identified by the hash of its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a model.

    Attributes:
        name: the ONNX name.
        dtype: numpy's name of the element type, e.g. ``float32``.
        shape: each axis a number, or the symbol of a dynamic one (``?`` where it has no name).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape, where every axis is a number; raises ValueError otherwise."""
        return tuple(int(axis) for axis in self.shape)


@dataclass(frozen=True)
class Model:
    """An ONNX file.

    Attributes:
        path: the file; external data lies beside it.
        digest: sha256, hex, over the file's bytes and those of its external data.
        inputs: without those that are initializers.
        outputs: in order.
        opset: version of ONNX's default domain.
        ir_version: of the file.
    """

    path: Path
    digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    ir_version: int

    @classmethod
    def load(cls, path: Path) -> Model:
        """Read and check a file; raises `wherry.errors.ModelError`."""
        raise NotImplementedError

    def proto(self) -> onnx.ModelProto:
        """The parsed file, external data loaded."""
        raise NotImplementedError

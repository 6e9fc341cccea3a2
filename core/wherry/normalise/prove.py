"""The proof that a rewritten model is the same: both on the same random inputs, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.reference import open_session, random_inputs, run_session

if TYPE_CHECKING:
    import onnx

    from wherry.model import TensorSpec

TRIALS = 2
RELATIVE = {2: 5e-3, 4: 1e-4, 8: 1e-4}
"""Bytes of a value to how far it may be off, relative to itself or to the root mean square of its
output: folded weights round differently."""


class Proof:
    """The outputs of a model on random inputs.

    Args:
        proto: the model as it was given.
        inputs: of it.

    Raises:
        ModelError: it does not run on random inputs.
    """

    def __init__(self, proto: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> None:
        self._samples = list(random_inputs(inputs, TRIALS))
        self._wanted = self._run(proto)

    def difference(self, changed: onnx.ModelProto) -> str:
        """The first output of another model that is not the same, in words; empty: none.

        Raises:
            ModelError: the other model does not load or run.
        """
        for found, wanted in zip(self._run(changed), self._wanted, strict=True):
            for name, theirs in wanted.items():
                ours = found[name]
                if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
                    return (
                        f"{name!r} became {ours.dtype}{list(ours.shape)} from "
                        f"{theirs.dtype}{list(theirs.shape)}"
                    )
                if not _same(ours, theirs):
                    return f"{name!r} has other values"
        return ""

    def _run(self, proto: onnx.ModelProto) -> list[dict[str, Any]]:
        session = open_session(proto.SerializeToString(), threads=1, where="", as_written=True)
        return [run_session(session, sample, where="") for sample in self._samples]


def _same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    if theirs.dtype.kind != "f":
        return bool(np.array_equal(ours, theirs))
    finite = theirs[np.isfinite(theirs)].astype(np.float64)
    scale = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    most = RELATIVE[theirs.itemsize]
    return bool(np.allclose(ours, theirs, rtol=most, atol=most * scale, equal_nan=True))

"""Inner tensors of a network on samples, by ONNX Runtime; and whether two networks are one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from wherry.reference import open_session, run_session
from wherry_compress.job import Data, Refusal

_TRIALS = 4


def tapped(proto: onnx.ModelProto, names: Sequence[str], *, as_written: bool = False) -> Any:
    """A session that gives some tensors, in their order, and computes nothing else.

    Args:
        proto: the network.
        names: of tensors that nodes make.
        as_written: as of `wherry.reference.open_session`.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return open_session(copy.SerializeToString(), threads=1, where="", as_written=as_written)


def finite(value: np.ndarray, tensor: str) -> None:
    """Raise `Refusal` where a tensor is not finite on some sample."""
    if not np.isfinite(value).all():
        raise Refusal(
            f"the tensor {tensor!r} becomes infinite or NaN on the calibration data",
            where=f"tensor {tensor!r}",
            remedy="Correct the network, the data or its preprocessing.",
        )


def prove(
    original: onnx.ModelProto, changed: onnx.ModelProto, data: Data, *, close: float, remedy: str
) -> None:
    """Raise `Refusal` unless both networks give the same on the first samples.

    Args:
        original: the network.
        changed: what was made of it.
        data: the samples.
        close: the greatest difference, over an output's root mean square.
        remedy: of the refusal.
    """
    before, after = (
        open_session(each.SerializeToString(), threads=1, where="", as_written=True)
        for each in (original, changed)
    )
    for sample in data.samples(_TRIALS):
        ours = run_session(after, sample, where="")
        for name, theirs in run_session(before, sample, where="").items():
            wanted = theirs.astype(np.float64)
            error = float(np.abs(ours[name] - wanted).max(initial=0))
            if not error <= close * max(float(np.sqrt(np.mean(wanted**2))), 1e-6):
                raise Refusal(
                    f"the output {name!r} would change by {error:.2g}", where=name, remedy=remedy
                )

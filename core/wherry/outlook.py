"""What a variant will be beside the manifest's model, as far as its passes' parameters tell.

For ``wherry plan``: nothing is made, and nothing is measured. What only a run can tell stays open.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

WHOLE = 32.0
"""Bits of a weight as it is in the file."""


@dataclass(frozen=True)
class Contents:
    """What there is in an ONNX file, nested graphs apart.

    Attributes:
        kernels: float32 numbers in constants of two axes and more.
        vectors: in those of fewer: biases, scales.
        rest: bytes of all else, deflated.
    """

    kernels: int
    vectors: int
    rest: int

    @classmethod
    def of(cls, proto: onnx.ModelProto) -> Contents:
        """Of a file, which is emptied."""
        tensors = list(proto.graph.initializer)
        for node in proto.graph.node:
            if node.op_type == "Constant":
                tensors += [each.t for each in node.attribute if each.name == "value"]
        kernels = vectors = 0
        for tensor in tensors:
            if tensor.data_type == tensor.FLOAT:
                size = math.prod(tensor.dims)
                if len(tensor.dims) > 1:
                    kernels += size
                else:
                    vectors += size
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
        return cls(kernels, vectors, len(zlib.compress(proto.SerializeToString())))


@dataclass(frozen=True, slots=True)
class Outlook:
    """A network, beside the model that the manifest names; None: only a run tells.

    Attributes:
        macs: multiply-accumulates that are asked for, as a share of the model's.
        weights: numbers in the file, zero or not, likewise.
        zeros: share of those in kernels and matrices that is zero.
        bits: that one of these which is not zero takes where the file is packed.
        vector_bits: that a number in biases and other vectors takes there.
        packed: the artifact travels packed (`wherry.packing`).

    Raises:
        ValueError: a figure cannot be.
    """

    macs: float | None = 1.0
    weights: float | None = 1.0
    zeros: float | None = 0.0
    bits: float | None = WHOLE
    vector_bits: float | None = WHOLE
    packed: bool = False

    def __post_init__(self) -> None:
        most = {"zeros": 1.0, "bits": WHOLE, "vector_bits": WHOLE}
        for field in fields(self)[:-1]:
            value = getattr(self, field.name)
            if value is not None and not 0 <= value <= most.get(field.name, math.inf):
                raise ValueError(f"{field.name} is {value!r}")

    def sent_bytes(self, contents: Contents) -> int | None:
        """About what a board is sent in fp32; None: only a run tells.

        Packed, a weight takes the entropy of being zero, and its bits where it is not: what a code
        for the lengths of the runs of zeros comes near to (Han et al., "Deep Compression", ICLR
        2016, sections 2 and 4). Codebooks are not counted.
        """
        if self.weights is None:
            return None
        if not self.packed:
            return round(4 * self.weights * (contents.kernels + contents.vectors))
        if self.zeros is None or self.bits is None or self.vector_bits is None:
            return None
        kernel_bits = min(WHOLE, _entropy(self.zeros) + (1 - self.zeros) * self.bits)
        bits = contents.kernels * kernel_bits + contents.vectors * self.vector_bits
        return round(self.weights * bits / 8) + contents.rest

    def words(self, contents: Contents, *, fp32: bool = True) -> str:
        """What is another, for people; empty where nothing is.

        Args:
            contents: of the model.
            fp32: the manifest has a target of this precision; what others are sent is not foretold.
        """
        from wherry.reports.words import bytes_text

        found = []
        if self.macs is None:
            found.append("how many multiplications are left is told by the run")
        elif self.macs != 1:
            found.append(f"{self.macs:.0%} of the multiplications are asked for")
        changed = (self.zeros, self.bits) != (0, WHOLE)
        before = 4 * (contents.kernels + contents.vectors)
        sent = self.sent_bytes(contents) if fp32 else None
        if before and (self.weights != 1 or (changed and self.packed)):
            if sent is None:
                found.append("how much is sent to boards is told by the run")
            else:
                found.append(
                    f"about {bytes_text(sent)} sent to boards in fp32, instead of "
                    f"{bytes_text(before)}"
                )
        # in whole numbers a target's weights share values anyway
        if before and changed and not self.packed and (fp32 or self.zeros != 0):
            found.append("zeros and shared values are sent in fewer bytes with `pack.huffman` last")
        return "; ".join(found)


UNKNOWN = Outlook(None, None, None, None, None)
"""After a pass that does not say what it leaves."""


def unchanged(_parameters: Any, before: Outlook) -> Outlook:
    """Of a pass that changes neither multiplications nor weights."""
    return before


def rescaled(_parameters: Any, before: Outlook) -> Outlook:
    """Of a pass that may multiply channels: zeros stay, and values that were shared part."""
    if (before.bits, before.vector_bits) == (WHOLE, WHOLE):
        return before
    return replace(before, bits=None, vector_bits=None)


def _entropy(share: float) -> float:
    """Bits of an event that has this chance, 0 to 1."""
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)

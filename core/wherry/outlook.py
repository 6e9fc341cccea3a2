"""What a variant will be beside the manifest's model, as far as its passes' parameters tell.

For ``wherry plan``: nothing is made, and nothing is measured. What only a run can tell stays open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outlook:
    """A network, beside the model that the manifest names.

    Attributes:
        macs: multiply-accumulates, as a share of the model's; None: only a run tells.
        weights: numbers in the file, zero or not, likewise.
        zeros: share of these that is zero, likewise.
        bits: that one which is not zero takes where the file is packed, likewise.
        packed: the artifact travels packed (`wherry.packing`).
    """

    macs: float | None = 1.0
    weights: float | None = 1.0
    zeros: float | None = 0.0
    bits: float | None = 32.0
    packed: bool = False

    def sent_bytes(self, weights: int) -> int | None:
        """About what a board is sent in fp32; None: only a run tells.

        Packed, a weight takes the entropy of being zero, and its bits where it is not: what a code
        for the lengths of the runs of zeros comes near to (Han et al., "Deep Compression", ICLR
        2016, sections 2 and 4). Codebooks and what else is in a file are not counted.

        Args:
            weights: numbers in the model's file.
        """
        if self.weights is None:
            return None
        left = weights * self.weights
        if not self.packed:
            return round(4 * left)
        if self.zeros is None or self.bits is None:
            return None
        return round(left * min(32.0, _entropy(self.zeros) + (1 - self.zeros) * self.bits) / 8)

    def words(self, weights: int) -> str:
        """What is another, for people; empty where nothing is.

        Args:
            weights: numbers in the model's file.
        """
        found = []
        if self.macs is None:
            found.append("how many multiplications are left is told by the run")
        elif self.macs != 1:
            found.append(f"about {self.macs:.0%} of the multiplications")
        sent, before = self.sent_bytes(weights), 4 * weights
        if sent is None:
            found.append("how much is sent to boards is told by the run")
        elif sent != before:
            found.append(
                f"about {_kilobytes(sent)} of weights sent to boards in fp32, "
                f"instead of {_kilobytes(before)}"
            )
        elif self.zeros != 0 or self.bits != 32:
            found.append("what is sent to boards is no smaller without `pack.huffman` at the end")
        return "; ".join(found)


def _entropy(share: float) -> float:
    """Bits of an event that has this chance, 0 to 1."""
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)


def _kilobytes(count: int) -> str:
    return f"{count / 1000:.3g} kB" if count < 1_000_000 else f"{count / 1e6:.3g} MB"

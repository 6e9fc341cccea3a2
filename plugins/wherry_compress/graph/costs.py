"""What a network costs (`wherry.costs`), for passes: what cannot be counted is a refusal."""

from __future__ import annotations

import onnx

from wherry import costs
from wherry.costs import Costs, positions
from wherry.errors import UnsupportedError
from wherry_compress.job import Refusal

__all__ = ["Costs", "measure", "positions"]


def measure(proto: onnx.ModelProto) -> Costs:
    """`wherry.costs.measure`; raises `Refusal` where a shape is not known."""
    try:
        return costs.measure(proto)
    except UnsupportedError as error:
        remedy = "Put `simplify` before this pass, or leave this pass out."
        raise Refusal(error.message, where=error.where, remedy=remedy) from error

"""Mixed precision: which nodes stay in fp32, as a manifest names them.

An entry of ``keep_fp32:`` is the name of an ONNX node, a pattern over such names (``*``, ``?`` and
``[...]`` as in a shell), or ``{op: Softmax}`` for all nodes of an operator. A name that is written
exactly is never taken for a pattern.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from wherry.errors import ModelError
from wherry.wording import some

if TYPE_CHECKING:
    from wherry.model import Model


class Operator(BaseModel):
    """All nodes of an operator."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    op: str = Field(
        min_length=1, description="an ONNX operator, e.g. Softmax, or com.microsoft::FusedConv"
    )


Keep = Annotated[str, Field(min_length=1)] | Operator
"""An entry of ``keep_fp32:``."""


def kept_nodes(model: Model, keep: Iterable[Keep]) -> frozenset[str]:
    """The names of the model's nodes that the entries mean.

    Args:
        model: whose nodes are named (`wherry.model.Model.with_static_shapes`).
        keep: the entries.

    Raises:
        ModelError: an entry means no node; the nearest name is in the remedy.
    """
    operators = model.operators()
    names = [name for nodes in operators.values() for name in nodes]
    known = frozenset(names)
    kept: set[str] = set()
    for entry in keep:
        if isinstance(entry, Operator):
            found: Iterable[str] = operators.get(entry.op, ())
        elif entry in known:
            found = (entry,)
        else:
            found = (name for name in names if fnmatchcase(name, entry))
        found = tuple(found)
        if not found:
            raise _no_node(entry, operators, names)
        kept.update(found)
    return frozenset(kept)


def _no_node(entry: Keep, operators: Iterable[str], names: Sequence[str]) -> ModelError:
    from wherry.data.arrays import nearest

    if isinstance(entry, Operator):
        what, remedy = (
            f"operator {entry.op}",
            nearest(entry.op, operators, f"It has {', '.join(sorted(operators))}."),
        )
    else:
        what, remedy = (
            f"node {entry!r}",
            nearest(entry, names, f"It has {some(names)}."),
        )
    return ModelError(
        f"keep_fp32 names the {what}, and the model has none like that", remedy=remedy
    )

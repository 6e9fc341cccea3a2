"""What a backend refuses of a normal form, told of the model that the user has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from wherry.model import Model
from wherry.target import Unsupported


def of_the_model(
    found: Iterable[Unsupported], sources: Mapping[str, Sequence[str]], model: Model
) -> tuple[Unsupported, ...]:
    """The same, by the names and operators of the model's own nodes.

    Args:
        found: by those of the normal form.
        sources: a node of the normal form to those of the model that it comes from.
        model: as it was given.
    """
    written = {name: kind for kind, names in model.operators().items() for name in names}
    told = []
    for each in found:
        node = next(iter(sources.get(each.node, ())), each.node)
        told.append(replace(each, node=node, op_type=_words(each.op_type, written.get(node))))
    return tuple(told)


def _words(said: str, operator: str | None) -> str:
    """The model's own operator, also where an input or output of its normal form is spoken of."""
    if operator is None or said.endswith(f" {operator}"):
        return said
    return f"{said} ({operator})" if " " in said else operator

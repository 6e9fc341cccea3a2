"""Parameters that mean something beside certain others alone: refused where they do nothing."""

from __future__ import annotations

from pydantic import BaseModel


def refuse_idle(given: BaseModel, names: str, means_something: bool, beside: str) -> None:
    """For a validator of parameters; raises ValueError.

    Args:
        given: the parameters; those that have their default are not looked at.
        names: of parameters, with blanks between them.
        means_something: whether they do, beside the others that are given.
        beside: what they are for, in the manifest's words.
    """
    if means_something:
        return
    fields = type(given).model_fields
    for name in names.split():
        if getattr(given, name) != fields[name].get_default(call_default_factory=True):
            raise ValueError(f"{name} is for `{beside}`: leave it out, or ask for that")

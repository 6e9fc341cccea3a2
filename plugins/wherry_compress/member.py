"""A pass of this plugin: its descriptor, and the function that does it."""

from __future__ import annotations

from dataclasses import dataclass

from wherry.passes import Pass


@dataclass(frozen=True)
class Member:
    """See the module.

    Attributes:
        descriptor: what wherry and its users see.
        function: ``module:name``; takes a `wherry_compress.job.Job`, gives a `Done` or raises a
            `Refusal`. It runs in a process of its own, and its module is imported there alone.
        also: packages outside of this plugin whose files decide what it makes.
        normal: it is given the model's normal form (`wherry.normalise`).
    """

    descriptor: Pass
    function: str
    normal: bool = True
    also: tuple[str, ...] = ()

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
        also: packages besides its family's whose files decide what it makes.
        normal: it is given the model's normal form (`wherry.normalise`).
        batch_norms: of the normal form: BatchNormalization nodes stay, and are not folded into the
            weights before them. For passes that put them there, need them or respect them.
    """

    descriptor: Pass
    function: str
    normal: bool = True
    batch_norms: bool = False
    also: tuple[str, ...] = ()

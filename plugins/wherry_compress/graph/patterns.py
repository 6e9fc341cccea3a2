"""Which nodes a pass's parameters mean: names, or patterns over them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from wherry.wording import some
from wherry_compress.job import Refusal


def matching(
    patterns: Iterable[str], names: Sequence[str], word: str, what: str = "node"
) -> dict[str, list[str]]:
    """Patterns to the names that they mean; one that is a name means that alone.

    Args:
        patterns: ``*`` stands for any characters.
        names: of the nodes that may be meant, in the graph's order.
        word: the parameter's name.
        what: kind of node.

    Raises:
        Refusal: a pattern means nothing.
    """
    found = {}
    for pattern in patterns:
        found[pattern] = (
            [pattern] if pattern in names else [n for n in names if fnmatchcase(n, pattern)]
        )
        if not found[pattern]:
            near = difflib.get_close_matches(pattern, names, 1)
            raise Refusal(
                f"{word} names {pattern!r}, and the network has no {what} like that",
                remedy=f"Did you mean {near[0]!r}?" if near else f"It has {some(names)}.",
            )
    return found


def meant(
    patterns: Iterable[str], names: Sequence[str], word: str, what: str = "node"
) -> frozenset[str]:
    """All names that patterns mean; see `matching`."""
    found = matching(patterns, names, word, what).values()
    return frozenset(name for each in found for name in each)

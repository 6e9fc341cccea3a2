"""The terminal as our verbs write to it: nothing in a name commands it.

Names come from models, boards and tools. What rich makes itself (colours, the moves of a bar) is
apart from the text, so that all text can be made harmless in one place.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich import console
from rich.segment import Segment

from wherry.reports.words import clean


class Console(console.Console):
    """Rich's, whose texts are cleaned (`wherry.reports.words.clean`)."""

    def render(
        self, renderable: console.RenderableType, options: console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """See rich."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else clean(text), style, control)

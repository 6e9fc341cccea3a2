"""Ages as options are given them: ``30d``."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Age(click.ParamType[timedelta]):
    """``30d``: a number and a unit."""

    name = "age"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Click's hook."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no age; write 12h, 30d or 2w", param, ctx)
        try:
            age = timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
            datetime.now(UTC) - age  # what asks for an age takes it from now
        except OverflowError:
            self.fail(f"{value!r} ago is before all calendars", param, ctx)
        return age

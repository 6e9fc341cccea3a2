"""What options of several verbs are given as: ages and sizes."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import click

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BYTES |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


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
        return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])


class Size(click.ParamType[int]):
    """``5GB``: a number and a unit, decimal (kB, MB, GB) or binary (KiB, MiB, GiB)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Click's hook."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*((?:[kmgt]i?)?)b?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no size; write 500MB, 5GB or 2GiB", param, ctx)
        return int(float(match[1]) * _BYTES[match[2]])

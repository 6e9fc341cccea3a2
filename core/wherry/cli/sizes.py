"""Sizes in bytes, as options of the command line."""

from __future__ import annotations

import re
from typing import Any

import click

_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BYTES |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Size(click.ParamType[int]):
    """``5GB``: a number and a unit, decimal (kB, MB, GB) or binary (KiB, MiB, GiB)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See click: the number of bytes."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*((?:[kmgt]i?)?)b?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no size; write 500MB, 5GB or 2GiB", param, ctx)
        return int(float(match[1]) * _BYTES[match[2]])

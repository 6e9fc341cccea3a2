"""Times every stage for all backends: a JSON line each, in the file that WHERRY_STOPWATCH names."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Generator

    from wherry.passes import PassStep
    from wherry.target import Target


@hookimpl(wrapper=True)
def wherry_optimize(step: PassStep) -> Generator[None, Any, Any]:
    """Time a pass."""
    with timed("optimize", step.name):
        return (yield)


@hookimpl(wrapper=True)
def wherry_calibrate(target: Target) -> Generator[None, Any, Any]:
    """Time a calibration."""
    with timed("calibrate", target.id):
        return (yield)


@hookimpl(wrapper=True)
def wherry_convert(target: Target) -> Generator[None, Any, Any]:
    """Time a conversion."""
    with timed("convert", target.id):
        return (yield)


@hookimpl(wrapper=True)
def wherry_profile(target: Target) -> Generator[None, Any, Any]:
    """Time a round of measuring."""
    with timed("profile", target.id):
        return (yield)


@contextmanager
def timed(stage: str, subject: str) -> Iterator[None]:
    """Write one line when the stage has ended, however it ended."""
    started = time.perf_counter()
    failed = True
    try:
        yield
        failed = False
    finally:
        took_s = time.perf_counter() - started
        path = os.environ.get("WHERRY_STOPWATCH")
        if path:
            entry = {"stage": stage, "of": subject, "seconds": took_s, "failed": failed}
            line = json.dumps(entry) + "\n"
            with Path(path).open(
                "a", encoding="utf-8"
            ) as file:  # one write a line: threads share it
                file.write(line)

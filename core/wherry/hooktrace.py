"""``WHERRY_TRACE_HOOKS=1``: every call of a hook is written to stderr."""

from __future__ import annotations

import os
import reprlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pluggy


def wanted() -> bool:
    """Whether the environment asks for a trace."""
    return os.environ.get("WHERRY_TRACE_HOOKS", "") not in {"", "0"}


def trace(manager: pluggy.PluginManager) -> None:
    """Write a line before and after each call: arguments, plugins, result, time.

    Values are shortened: a model or an image would fill the screen.
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    started: dict[int, float] = {}

    def before(
        hook: str, implementations: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]
    ) -> None:
        given = ", ".join(f"{name}={short.repr(value)}" for name, value in arguments.items())
        order = ", ".join(implementation.plugin_name for implementation in implementations[::-1])
        sys.stderr.write(f"hook {hook}({given}) calls {order or 'nobody'}\n")
        started[id(arguments)] = time.perf_counter()

    def after(
        outcome: pluggy.Result[Any],
        hook: str,
        implementations: Sequence[pluggy.HookImpl],  # noqa: ARG001 -- pluggy's signature
        arguments: Mapping[str, Any],
    ) -> None:
        took_ms = (time.perf_counter() - started.pop(id(arguments))) * 1e3
        if outcome.exception is None:
            ended = f"returned {short.repr(outcome.get_result())}"
        else:
            ended = f"raised {short.repr(outcome.exception)}"
        sys.stderr.write(f"hook {hook} {ended} after {took_ms:.1f} ms\n")

    manager.add_hookcall_monitoring(before, after)

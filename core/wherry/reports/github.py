"""Annotations for GitHub Actions, as workflow commands that nothing in a name can add to.

The commands and their escapes are described in GitHub's documentation, "Workflow commands for
GitHub Actions", and in ``command.ts`` of its actions/toolkit.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wherry.reports import RunRecord, comparison_words
from wherry.reports.words import clean

MOST = 4000
"""Characters of a message: GitHub cuts what is much longer."""


def run_annotations(record: RunRecord) -> list[str]:
    """A line for each gate that does not hold, each that holds within noise, each failed target."""
    values = record.values
    lines: list[str] = []
    for result in values["results"]:
        if result["status"] == "failed":
            text = f"{result['name']}: {result['error']}"
            lines.append(command("error", text, "target failed", values["manifest"]))
    for gate in values["gates"]:
        if not gate["passed"] or "within noise" in gate["reason"]:
            level = "notice" if gate["passed"] else "error"
            title = f"gate: {gate['gate']}"
            lines.append(command(level, gate["reason"], title, gate["location"]))
    return lines


def comparison_annotations(comparison: Mapping[str, Any]) -> list[str]:
    """A line for each failure; where nothing was to fail, a warning for each worse figure."""
    lines = [
        command("error", comparison_words.failure_text(each, comparison), "wherry compare")
        for each in comparison["failures"]
    ]
    if comparison["fail_on"] is None:
        lines += [
            command("warning", f"{result['name']}: {comparison_words.sentence(figure)}", "worse")
            for result in comparison["results"]
            for figure in result["figures"]
            if figure["verdict"] == "worse"
        ]
    return lines


def command(level: str, message: str, title: str, location: str = "") -> str:
    """``::error file=m.yaml,line=9,col=5,title=...::message``.

    Args:
        level: ``error``, ``warning`` or ``notice``.
        message: any text.
        title: any text.
        location: ``file``, ``file:line`` or ``file:line:column``; empty: none.
    """
    properties = {**_place(location), "title": title}
    shown = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {shown}::{_data(message[:MOST])}"


def _place(location: str) -> dict[str, str]:
    if not location:
        return {}
    file = location
    numbers: list[str] = []
    while len(numbers) < 2:
        head, colon, tail = file.rpartition(":")
        if not colon or not head or not (tail.isascii() and tail.isdigit()):
            break
        file, numbers = head, [tail, *numbers]
    path = Path(file)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        file = str(path.relative_to(Path.cwd()))  # GitHub's are relative to the checkout
    return {"file": file, **dict(zip(("line", "col"), numbers, strict=False))}


def _data(text: str) -> str:
    lines = "\n".join(re.split("[\u2028\u2029]", clean(text)))  # which end a line for some readers
    escaped = lines.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return escaped.encode("utf-8", "replace").decode()


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


@contextmanager
def unheard() -> Iterator[None]:
    """While this lasts, GitHub takes nothing that is printed for a command.

    The runner reads commands from every line that is printed: one in a model's name or in a tool's
    error is none of ours.
    """
    import click

    word = secrets.token_hex(16)
    click.echo(f"::stop-commands::{word}")
    try:
        yield
    finally:
        click.echo(f"::{word}::")

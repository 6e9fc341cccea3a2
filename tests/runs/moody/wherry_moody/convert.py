"""Writes the program, or does something else. Runs alone: ``convert.py REQUEST RESPONSE``."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path

MIB = 1 << 20


def main(request_path: str, response_path: str) -> None:
    """Answer one request in the mood that it asks for."""
    request = json.loads(Path(request_path).read_text())
    response, output = Path(response_path), Path(request["output"])
    (output / "program.json").write_text(json.dumps(request["program"]))
    MOODS[request["mood"]](response)
    if not response.exists():
        response.write_text(json.dumps({"tool": "moody"}))


def segfault(_response: Path) -> None:
    print("about to fall", flush=True)
    ctypes.string_at(0)


def hang(_response: Path) -> None:
    """Beside a child in a session of its own."""
    print("waiting for a licence", flush=True)
    if os.fork() == 0:
        os.setsid()
    elif "MOODY_HANGS" in os.environ:
        Path(os.environ["MOODY_HANGS"]).touch()
    while True:
        time.sleep(60)


def hog(_response: Path) -> None:
    """In steps, for at most 2 GiB: a test must not take the machine down."""
    kept = []
    for _ in range(64):
        kept.append(b"x" * (32 * MIB))
        time.sleep(0.02)


def chatter(_response: Path) -> None:
    """A hundred megabytes, and then all is well."""
    line = b"layer fused \x1b[32mok\x1b[0m " * 5000 + b"\n"
    for _ in range(100 * MIB // len(line)):
        os.write(1, line)


def half(response: Path) -> None:
    response.write_text('{"tool": "moody", "lay')


def fails(_response: Path) -> None:
    raise ValueError("axis 3 is out of bounds")


def refuses(response: Path) -> None:
    error = {
        "message": "moody has no MatMul of this size",
        "where": "node matmul",
        "remedy": "Take another backend.",
        "unsupported": True,
    }
    response.write_text(json.dumps({"error": error}))


MOODS = {
    "well": lambda response: None,
    "segfault": segfault,
    "hang": hang,
    "hog": hog,
    "chatter": chatter,
    "half": half,
    "fails": fails,
    "refuses": refuses,
}

if __name__ == "__main__":
    main(*sys.argv[1:])

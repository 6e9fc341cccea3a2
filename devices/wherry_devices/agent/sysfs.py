"""Reading /sys and /proc: what is not there, or not ours to read, is None or empty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    Value = float | int | str  # never evaluated on a board

_MOST_BYTES = 4096  # of one value; files of /sys are a page at most


class Sensor(NamedTuple):
    """A value of a reading, and the files that it is made of.

    Attributes:
        name: in the reading.
        paths: the files.
        parse: makes a value of a file's text; raises ValueError where it is none.
        combine: makes one value of all files', None for a file that did not answer.
    """

    name: str
    paths: tuple[str, ...]
    parse: Callable[[str], Any]
    combine: Callable[[Sequence[Any]], Value | None]

    def read(self) -> Value | None:
        """The value now; None where the board does not tell."""
        return self.combine([_value(path, self.parse) for path in self.paths])


def sensor(name: str, path: Path, parse: Callable[[str], Any]) -> Sensor:
    """A value that stands in one file."""
    return Sensor(name, (str(path),), parse, first)


def first(values: Sequence[Value | None]) -> Value | None:
    """The only value."""
    return values[0]


def total(values: Sequence[float | None]) -> Value | None:
    """The sum of those that answered; None where none did."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def product(values: Sequence[float | None]) -> Value | None:
    """All of them multiplied; None where one did not answer."""
    result = 1.0
    for value in values:
        if value is None:
            return None
        result *= value
    return result


def scaled(factor: float) -> Callable[[str], float]:
    """A parser of numbers in another unit."""
    return lambda text: float(text) * factor


def text(path: Path) -> str:
    """What a file says, without the white space and zeros around it."""
    return _value(str(path), str) or ""


def number(path: Path) -> float | None:
    """A file's number; None where it is none, as ``<unknown>``."""
    found: float | None = _value(str(path), float)
    return found


def names(folder: Path) -> list[str]:
    """What a folder holds, sorted."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:  # not there, or not ours to read
        return []


def folders(base: Path, prefix: str) -> list[Path]:
    """Folders named prefix and a number, in the numbers' order."""
    numbers = [name[len(prefix) :] for name in names(base) if name.startswith(prefix)]
    return [base / f"{prefix}{name}" for name in sorted(filter(str.isdigit, numbers), key=int)]


def _value(path: str, parse: Callable[[str], Any]) -> Any:
    try:
        with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 -- Path's costs twice as much
            return parse(stream.read(_MOST_BYTES).decode("utf-8", "replace").strip("\0\n\t "))
    except (OSError, ValueError):  # a sensor that does not answer is absent from the reading
        return None

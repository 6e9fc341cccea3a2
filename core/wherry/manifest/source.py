"""YAML read into a tree in which every value knows its place.

Only data is taken: one document of mappings, lists and scalars by the core schema of YAML 1.2.
Keys are text and stand once. Tags, recursive aliases and aliases that blow a small file up are
refused. ``${NAME}`` and ``${NAME:-default}`` in values come from the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wherry.errors import ManifestError

MAX_BYTES = 1 << 20
MAX_VALUES = 200_000
MAX_DEPTH = 50

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is written: a file (or an option of the command line), line and column.

    Lines and columns count from 1; a line of 0 means the whole of ``file``.
    """

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place: that of the key in a mapping, of the item in a list.

    Attributes:
        size: how many values it holds once its aliases are written out, itself included.
        height: how many levels of mappings and lists it has.
    """

    value: dict[str, Node] | list[Node] | Scalar
    place: Place
    size: int = 1
    height: int = 0

    def plain(self) -> Any:
        """The value without places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def below(self, word: str | int) -> Node | None:
        """The value under a key or at a number."""
        if isinstance(self.value, dict):
            return self.value.get(word) if isinstance(word, str) else None
        if isinstance(self.value, list) and isinstance(word, int) and 0 <= word < len(self.value):
            return self.value[word]
        return None

    def find(self, path: Sequence[str | int]) -> tuple[Node, int]:
        """The node at ``path``, or the deepest one on the way, and how many words led to it."""
        node = self
        for depth, word in enumerate(path):
            below = node.below(word)
            if below is None:
                return node, depth
            node = below
        return node, len(path)

    def at(self, path: Sequence[str | int]) -> Place:
        """The place of ``path``, or of the deepest part of it that is written down."""
        return self.find(path)[0].place

    def without(self, *keys: str) -> Node:
        """A mapping less some of its keys."""
        assert isinstance(self.value, dict)
        rest = {key: node for key, node in self.value.items() if key not in keys}
        return replace(self, value=rest)


def read_file(path: Path, env: Mapping[str, str], *, wanted_by: Place | None = None) -> Node:
    """Read a YAML file whose top is a mapping; raises `ManifestError`.

    Args:
        path: the file; places show it as it is given here.
        env: for ``${NAME}``.
        wanted_by: where the file is named, for the error that it cannot be read.
    """
    return parse(read_text(path, wanted_by=wanted_by), str(path), env)


def read_text(path: Path, *, wanted_by: Place | None = None) -> str:
    """The text of a file of at most `MAX_BYTES`; raises `ManifestError`."""
    where = str(wanted_by) if wanted_by else str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ManifestError(
            f"there is no file {path}",
            where=where,
            remedy="Check the path; `wherry init MODEL.onnx` writes a manifest."
            if wanted_by is None
            else "Check the path: it starts at the folder of the file that names it.",
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ManifestError(
            f"{path} cannot be read: {reason}", where=where, remedy="Check the path and its rights."
        ) from error
    if len(data) > MAX_BYTES:
        raise ManifestError(
            f"the file is larger than {MAX_BYTES >> 20} MiB",
            where=str(path),
            remedy="Is it the right file? Lists multiply, so that manifests stay short.",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"not a text file: byte {error.start} is not UTF-8",
            where=str(path),
            remedy="Give a YAML file, saved as UTF-8.",
        ) from error


def parse(text: str, file: str, env: Mapping[str, str]) -> Node:
    """Parse a document whose top is a mapping; raises `ManifestError`."""
    root = parse_value(text, file, env)
    if root is None:
        raise ManifestError(
            "the file is empty", where=file, remedy="`wherry init MODEL.onnx` writes a manifest."
        )
    if not isinstance(root.value, dict):
        raise ManifestError(
            "the file must hold keys with values at its top",
            where=str(root.place),
            remedy="Begin with the line `wherry: 1`.",
        )
    return root


def parse_value(text: str, file: str, env: Mapping[str, str]) -> Node | None:
    """Parse one document, whatever it holds; None where it holds nothing."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return _Builder(YAML(typ="safe", pure=True).parse(text), file, env).document()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file)
        raise ManifestError(
            f"not valid YAML: {error.problem or error.context}",
            where=str(place),
            remedy="Look at the indentation (spaces, no tabs), the colons and the brackets there.",
        ) from error
    except (YAMLError, ValueError, OverflowError) as error:  # the scanner lets bad escapes through
        raise ManifestError(
            f"not valid YAML: {' '.join(str(error).split())}",
            where=file,
            remedy="Look for control characters and escapes that mean no character.",
        ) from error


class _Builder:
    """Builds nodes from the events of one stream."""

    def __init__(self, events: Iterator[Any], file: str, env: Mapping[str, str]) -> None:
        self.events = events
        self.file = file
        self.env = env
        self.anchors: dict[str, Node | None] = {}  # None: still being read

    def document(self) -> Node | None:
        from ruamel.yaml.events import DocumentStartEvent, StreamEndEvent

        root = None
        for event in self.events:
            if isinstance(event, StreamEndEvent):
                break
            if isinstance(event, DocumentStartEvent):
                if root is not None:
                    raise ManifestError(
                        "a second document begins here",
                        where=str(self.place(event)),
                        remedy="One file is one manifest: remove the line `---` and what follows.",
                    )
                root = self.node(next(self.events), 0)
        return root

    def place(self, event: Any) -> Place:
        return Place(self.file, event.start_mark.line + 1, event.start_mark.column + 1)

    def node(self, event: Any, depth: int) -> Node:
        from ruamel.yaml.events import AliasEvent, MappingStartEvent, ScalarEvent

        place = self.place(event)
        alias = self.alias(event.anchor, place) if isinstance(event, AliasEvent) else None
        if depth + (alias.height if alias else 0) > MAX_DEPTH:
            raise ManifestError(
                f"nested deeper than {MAX_DEPTH} levels",
                where=str(place),
                remedy="No manifest needs that: look for brackets that are not closed.",
            )
        if alias:
            return replace(alias, place=place)
        if event.tag is not None and not (
            event.tag == "tag:yaml.org,2002:str" and isinstance(event, ScalarEvent)
        ):
            raise ManifestError(
                f"the tag {event.tag.replace('tag:yaml.org,2002:', '!!')!r} is not taken",
                where=str(place),
                remedy="A manifest holds data alone; the only tag that it knows is !!str.",
            )
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        if isinstance(event, ScalarEvent):
            node = Node(self.scalar(event, place), place)
        elif isinstance(event, MappingStartEvent):
            node = self.mapping(place, depth)
        else:
            node = self.sequence(place, depth)
        if node.size > MAX_VALUES:
            raise ManifestError(
                f"more than {MAX_VALUES} values once the aliases are written out",
                where=str(place),
                remedy="Use fewer aliases of aliases; lists of a target multiply by themselves.",
            )
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def alias(self, name: str, place: Place) -> Node:
        if name not in self.anchors:
            raise ManifestError(
                f"there is no anchor &{name} before this alias",
                where=str(place),
                remedy="Put quotes around text that begins with *.",
            )
        node = self.anchors[name]
        if node is None:
            raise ManifestError(
                f"the alias *{name} stands inside what it names",
                where=str(place),
                remedy="Write the value out.",
            )
        return node

    def mapping(self, place: Place, depth: int) -> Node:
        from ruamel.yaml.events import MappingEndEvent, ScalarEvent

        entries: dict[str, Node] = {}
        size = 1
        while not isinstance(event := next(self.events), MappingEndEvent):
            key_place = self.place(event)
            if not isinstance(event, ScalarEvent):
                raise ManifestError(
                    "a key must be a word",
                    where=str(key_place),
                    remedy="Put quotes around text that begins with [, {, & or *.",
                )
            key = _clean(event.value, key_place)
            if key == "<<" and event.style is None:
                raise ManifestError(
                    "merge keys (<<) are not part of YAML 1.2",
                    where=str(key_place),
                    remedy="Use `include:`, or an alias for the whole value.",
                )
            if key in entries:
                raise ManifestError(
                    f"the key {key!r} is given twice; first at {entries[key].place}",
                    where=str(key_place),
                    remedy="Remove one of them.",
                )
            node = self.node(next(self.events), depth + 1)
            size += node.size
            entries[key] = replace(node, place=key_place)
        height = 1 + max((node.height for node in entries.values()), default=0)
        return Node(entries, place, size, height)

    def sequence(self, place: Place, depth: int) -> Node:
        from ruamel.yaml.events import SequenceEndEvent

        items: list[Node] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            items.append(self.node(event, depth + 1))
        size = 1 + sum(item.size for item in items)
        return Node(items, place, size, 1 + max((item.height for item in items), default=0))

    def scalar(self, event: Any, place: Place) -> Scalar:
        text = _clean(event.value, place)
        whole = False
        if "$" in text:
            whole = _WHOLE.fullmatch(text) is not None
            text = _clean(_substitute(text, self.env, place), place)
        if event.tag is not None or not (event.style is None or whole):
            return text
        return resolve(text)


def _clean(text: str, place: Place) -> str:
    """Refuse what is no text: half a surrogate pair, the character NUL."""
    if text.isprintable():
        return text
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ManifestError(
            "a character that is no text stands here",
            where=str(place),
            remedy="Remove the escape \\0 or the half of a surrogate pair (\\ud800 to \\udfff).",
        )
    return text


_WHOLE = re.compile(r"\$\{[^}]*\}")
_REFERENCE = re.compile(r"\$(?:\$|\{(?P<inside>[^}]*)(?P<closed>\}?))")
_INSIDE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)


def _substitute(text: str, env: Mapping[str, str], place: Place) -> str:
    """Put variables of the environment in; ``$$`` is a dollar sign."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        inside = _INSIDE.fullmatch(match["inside"]) if match["closed"] else None
        if inside is None:
            raise ManifestError(
                f"{match[0]!r} is not ${{NAME}} nor ${{NAME:-default}}",
                where=str(place),
                remedy="Write $$ for a dollar sign.",
            )
        name, default = inside["name"], inside["default"]
        found = env.get(name)
        if default is not None:
            return found or default
        if found is None:
            raise ManifestError(
                f"the environment variable {name} is not set",
                where=str(place),
                remedy=f"Set it, or give a default: ${{{name}:-value}}.",
            )
        return found

    return _REFERENCE.sub(value, text)


_INTEGER = re.compile(r"[-+]?[0-9]{1,300}")
_BASED = re.compile(r"0o[0-7]{1,100}|0x[0-9a-fA-F]{1,100}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"(?P<sign>[-+]?)\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: Mapping[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def resolve(text: str) -> Scalar:
    """The value of a plain scalar by the core schema (YAML 1.2.2, chapter 10.3.2)."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if special := _SPECIAL.fullmatch(text):
        return float("nan") if special["sign"] is None else float(f"{special['sign']}inf")
    return text

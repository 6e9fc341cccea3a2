"""Files that include files, and ``--set`` on top of them: one tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from wherry.errors import ManifestError, UsageError
from wherry.manifest.source import Node, Place, parse, parse_value, read_text

MAX_FILES = 200


def read_merged(
    path: Path, env: Mapping[str, str], overrides: Sequence[str] = ()
) -> tuple[Node, str, tuple[Path, ...]]:
    """Read a manifest with what it includes and what the command line sets.

    Returns:
        The tree without ``include``, the text of ``path`` as it is written, and all files read,
        ``path`` first.
    """
    reader = _Reader(env)
    root = reader.read(path, ())
    for override in overrides:
        root = _set(root, override, env)
    return root, reader.texts[path.resolve()], tuple(reader.texts)


class _Reader:
    """Reads each file once, however often it is included."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self.texts: dict[Path, str] = {}
        self.done: dict[Path, Node] = {}

    def read(self, path: Path, chain: tuple[Path, ...], wanted_by: Place | None = None) -> Node:
        real = path.resolve()
        if real in {file.resolve() for file in chain}:
            names = " -> ".join(str(file) for file in (*chain, path))
            raise ManifestError(
                f"the includes go in a circle: {names}",
                where=str(wanted_by),
                remedy="Remove one of them; put what both need into a third file.",
            )
        if real in self.done:
            return self.done[real]
        text = read_text(path, wanted_by=wanted_by)
        self.texts[real] = text
        if len(self.texts) > MAX_FILES:
            raise ManifestError(
                f"more than {MAX_FILES} files are included",
                where=str(wanted_by),
                remedy="Put them together.",
            )
        root = parse(text, str(path), self.env)
        merged = Node({}, root.place)
        for name, place in _includes(root):
            below = self.read(path.parent / name, (*chain, path), place)
            merged = merge(merged, below)
        self.done[real] = merged = merge(merged, root.without("include"))
        return merged


def _includes(root: Node) -> list[tuple[str, Place]]:
    """The names under ``include:``, a word or a list of words, with their places."""
    assert isinstance(root.value, dict)
    include = root.value.get("include")
    if include is None:
        return []
    items = include.value if isinstance(include.value, list) else [include]
    names: list[tuple[str, Place]] = []
    for item in items:
        if not isinstance(item.value, str) or not item.value:
            raise ManifestError(
                "include must be the name of a file, or a list of them",
                where=str(item.place),
                remedy="Names start at the folder of this file.",
            )
        names.append((item.value, item.place))
    return names


def merge(under: Node, over: Node) -> Node:
    """Mappings are merged key by key; anything else of ``over`` replaces what is ``under``."""
    if not (isinstance(under.value, dict) and isinstance(over.value, dict)):
        return over
    entries = dict(under.value)
    for key, node in over.value.items():
        entries[key] = merge(entries[key], node) if key in entries else node
    return replace(over, value=entries)


def _set(root: Node, override: str, env: Mapping[str, str]) -> Node:
    """Apply ``key.path=value``; items of a list are named by their number, from 0."""
    place = Place(f"--set {override}")
    path, equals, text = override.partition("=")
    words = [word.replace("\0", ".") for word in path.replace(r"\.", "\0").split(".")]
    if not equals or not all(words):
        raise UsageError(
            f"--set {override!r} is not KEY.PATH=VALUE",
            remedy=r"For example: --set targets.0.threads=4; a dot within a key is written \.",
        )
    if words[0] == "include":
        raise UsageError(
            f"--set {override!r}: includes are already done when this is applied",
            remedy="Change the file, or write one that includes it and others.",
        )
    value = parse_value(text, str(place), env) or Node(None, place)
    return _put(root, words, _placed(value, place), place)


def _put(node: Node, words: Sequence[str], value: Node, place: Place) -> Node:
    """A copy of ``node`` with ``value`` below it; mappings on the way are made."""
    if not words:
        return value
    word, *rest = words
    if isinstance(node.value, list):
        if not (word.isascii() and word.isdigit() and int(word) < len(node.value)):
            raise UsageError(
                f"{place}: {word!r} names no item of the list at {node.place}",
                remedy=f"Its items are 0 to {len(node.value) - 1}."
                if node.value
                else "The list is empty: give all of it.",
            )
        items = list(node.value)
        items[int(word)] = _put(items[int(word)], rest, value, place)
        return replace(node, value=items)
    if not isinstance(node.value, dict):
        raise UsageError(
            f"{place}: there is no {word!r} below the value at {node.place}",
            remedy="Give a shorter path, and a mapping for its value.",
        )
    below = node.value.get(word, Node({}, place))
    return replace(node, value={**node.value, word: _put(below, rest, value, place)})


def _placed(node: Node, place: Place) -> Node:
    """The same value, all of it from ``place``: a line of an option says nothing."""
    value = node.value
    if isinstance(value, dict):
        value = {key: _placed(below, place) for key, below in value.items()}
    elif isinstance(value, list):
        value = [_placed(below, place) for below in value]
    return replace(node, value=value, place=place)

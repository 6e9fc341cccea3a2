"""Targets and rows: lists multiply, excludes take out, doubles are refused."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, get_args, get_origin

from wherry.manifest.problems import Path, Problems, suggest, unknown_key, validate
from wherry.manifest.schema import TargetForm, Where
from wherry.manifest.sections import Selector
from wherry.manifest.source import Node, Place
from wherry.tags import is_tagged, tagged, tags_of
from wherry.target import PRECISIONS, Backend, RuntimeOptions, Target, of_some_precisions

if TYPE_CHECKING:
    from wherry.device import DeviceSpec
    from wherry.host import Host

MAX_ROWS = 20_000
"""Of a manifest, before `exclude:`."""


@dataclass(frozen=True)
class Row:
    """A line of the report, and the entry of ``targets:`` that it comes from."""

    variant: str
    target: Target
    path: Path


def option_place(root: Node, entry: Path, backend: str, option: str) -> Place:
    """Where an entry of ``targets:`` says an option: in the backend's block, or beside it."""
    own: Path = (*entry, backend, option)
    written = root.find(own)[1] == len(own)
    return root.at(own if written else (*entry, option))


class Expander:
    """Knows the words that targets, excludes and gates may use; notes what is wrong."""

    def __init__(
        self,
        root: Node,
        host: Host,
        variants: Sequence[str],
        devices: Mapping[str, DeviceSpec],
        problems: Problems,
    ) -> None:
        self.root = root
        self.host = host
        self.problems = problems
        self._targets: dict[tuple[str, ...], Target] = {}
        self._rows_so_far = 0
        self._devices = devices
        self.known = {
            "variant": variants,
            "backend": list(host.backends),
            "precision": PRECISIONS,
            "device": list(devices),
        }

    def rows(self, targets: Sequence[Node], excludes: Sequence[Node]) -> list[Row]:
        """Multiply out the targets, without what is excluded; variants outermost."""
        before = len(self.problems)
        rows = [row for index, node in enumerate(targets) for row in self._entry(index, node)]
        right, any_before = len(self.problems) == before, bool(rows)
        for index, node in enumerate(excludes):
            path: Path = ("exclude", index)
            chosen = self.selector(node, path)
            if chosen is None:
                continue
            kept = [row for row in rows if not chosen.matches(row.variant, row.target)]
            if len(kept) == len(rows) and right:
                self.problems.add(
                    self.root.at(path),
                    "this entry excludes nothing",
                    "No target is like that, or an entry before took it out: correct or remove it.",
                )
            rows = kept
        if any_before and not rows:
            self.problems.add(
                self.root.at(("exclude",)),
                "no target is left: the entries of exclude take all out",
                "Remove some of them.",
            )
        self._check_precisions(rows)
        self._check_mixed(rows)
        self._check_doubles(rows)
        order = {variant: index for index, variant in enumerate(self.known["variant"])}
        return sorted(rows, key=lambda row: order[row.variant])

    def selector(self, node: Node, path: Path) -> Selector | None:
        """The rows that an entry of ``exclude:`` or a ``where:`` means; None: it is wrong."""
        form = validate(Where, node, self.root, path, self.problems)
        if form is None:
            return None
        chosen: dict[str, frozenset[Any]] = {}
        right = True
        for kind in sorted(form.model_fields_set):
            values = getattr(form, kind)
            if kind != "threads":
                right &= len(self._checked(kind, values, (*path, kind))) == len(values)
            chosen[kind] = frozenset(values)
        return Selector(**chosen) if right else None

    def _checked(self, kind: str, words: Sequence[str], path: Path) -> list[str]:
        """The words that are known; the others are noted."""
        known = self.known[kind]
        right = [
            self._has_tags(word, (*path, index))
            if kind == "device" and is_tagged(word)
            else word in known
            for index, word in enumerate(words)
        ]
        for index, word in enumerate(words):
            if not (right[index] or is_tagged(word)):
                remedy = suggest(word, known)
                if kind == "device":
                    remedy += " Others can be named in a devices.yaml beside the manifest."
                self.problems.add(self.root.at((*path, index)), f"unknown {kind} {word!r}", remedy)
        return [word for word, is_right in zip(words, right, strict=True) if is_right]

    def _has_tags(self, word: str, path: Path) -> bool:
        """Whether some device has all tags of a word; else that is noted."""
        tags = tags_of(word)
        every = dict.fromkeys(tag for spec in self._devices.values() for tag in spec.tags)
        unknown = [tag for tag in tags if tag not in every]
        for tag in unknown:
            self.problems.add(
                self.root.at(path), f"no device has the tag {tag!r}", suggest(tag, every)
            )
        if unknown:
            return False
        if tagged(word, self._devices):
            return True
        some = [
            f"{name} has {', '.join(had)}"
            for name, spec in self._devices.items()
            if (had := [tag for tag in tags if tag in spec.tags])
        ]
        self.problems.add(
            self.root.at(path),
            f"no device has all of the tags {', '.join(tags)}",
            f"Of them, {'; '.join(some)}.",
        )
        return False

    def _entry(self, index: int, node: Node) -> Iterator[Row]:
        """The rows of one entry of ``targets:``."""
        path: Path = ("targets", index)
        form = validate(TargetForm, node, self.root, path, self.problems)
        if form is None:
            return
        self._check_blocks(form, path)
        backends = self._checked("backend", form.backend, (*path, "backend"))
        devices = self._checked("device", form.device, (*path, "device"))
        precisions = self._checked("precision", form.precision or (), (*path, "precision"))
        variants = (
            self.known["variant"]
            if form.variants is None
            else self._checked("variant", form.variants, (*path, "variants"))
        )
        for name in backends:
            backend = self.host.backends[name]
            offered = precisions if form.precision else backend.precisions[:1]
            self._check_meant(backend, offered, node, path)
            settings = list(self._settings(backend, node))
            count = len(offered) * len(devices) * len(settings) * len(variants)
            if self._too_many(count, node.place):
                return
            self._rows_so_far += count
            for precision, device in product(offered, devices):
                # what means nothing for a precision makes no second row of it
                for options in _distinct(options.of(precision) for options in settings):
                    target = self._target(Target(name, precision, device, options))
                    for variant in variants:
                        yield Row(variant, target, path)

    def _target(self, target: Target) -> Target:
        """The one object for all targets that are equal."""
        key = (target.backend, target.precision, target.device, target.options.model_dump_json())
        return self._targets.setdefault(key, target)

    def _check_blocks(self, form: TargetForm, path: Path) -> None:
        """Keys beside ours must be blocks of options for backends of this entry."""
        for key in form.model_extra or {}:
            place = self.root.at((*path, key))
            if key in form.backend:
                continue
            if key in self.host.backends:
                self.problems.add(
                    place,
                    f"options for {key}, which is not in this entry's backend list",
                    f"Remove them, or add {key} to `backend:`.",
                )
            else:
                self.problems.add(
                    place, *unknown_key(key, [*TargetForm.model_fields, *form.backend])
                )

    def _settings(self, backend: Backend, entry: Node) -> Iterator[RuntimeOptions]:
        """All combinations of a backend's options; those that are wrong are noted."""
        assert isinstance(entry.value, dict)
        block = entry.value.get(backend.name, Node({}, entry.place))
        if not isinstance(block.value, dict):
            validate(
                backend.options, block, Node({backend.name: block}, block.place), (backend.name,),
                self.problems,
            )  # fmt: skip
            return
        choices: dict[str, list[Node]] = {}
        if "threads" in entry.value:
            choices["threads"] = _choices(entry.value["threads"], listed=False)
        if "keep_fp32" in entry.value:
            choices["keep_fp32"] = [entry.value["keep_fp32"]]
        for key, node in block.value.items():
            info = backend.options.model_fields.get(key)
            choices[key] = _choices(node, listed=info is not None and _is_list(info.annotation))
            if not choices[key]:
                self.problems.add(
                    node.place,
                    f"{backend.name}.{key} is an empty list",
                    "Give a value, or remove the key.",
                )
        if self._too_many(math.prod(map(len, choices.values())), entry.place):
            return
        for values in product(*choices.values()):
            written = Node(dict(zip(choices, values, strict=True)), block.place)
            root = Node({backend.name: written}, block.place)
            options = validate(backend.options, written, root, (backend.name,), self.problems)
            if options is not None:
                yield options

    def _check_meant(
        self, backend: Backend, precisions: Sequence[str], entry: Node, path: Path
    ) -> None:
        """An option of some precisions is for one at least of those that the entry asks for."""
        if not precisions:  # all of them are misspelt
            return
        block = entry.below(backend.name)
        said = {**(block.value if block and isinstance(block.value, dict) else {})}
        if (keep := entry.below("keep_fp32")) is not None:
            said.setdefault("keep_fp32", keep)
        for option, able in of_some_precisions(backend.options).items():
            if option in said and said[option].value and set(able).isdisjoint(precisions):
                self.problems.add(
                    option_place(self.root, path, backend.name, option),
                    f"{option} means nothing in {_listed(precisions)}",
                    f"It is for {_listed(able)}: add a precision, or remove it.",
                )

    def _too_many(self, count: int, place: Place) -> bool:
        """Note an entry that would take for ever to multiply out."""
        if self._rows_so_far + count > MAX_ROWS:
            self.problems.add(
                place,
                f"the lists of this entry multiply to {count} rows",
                f"A manifest may have {MAX_ROWS} in all: shorten the lists.",
            )
            return True
        return False

    def _check_precisions(self, rows: Sequence[Row]) -> None:
        asked = dict.fromkeys((row.path, row.target.backend, row.target.precision) for row in rows)
        for path, name, precision in asked:
            backend = self.host.backends[name]
            if precision in backend.precisions:
                continue
            node = self.root.find((*path, "precision"))[0]
            words = node.value if isinstance(node.value, list) else [node]
            place = next(word.place for word in words if word.value == precision)
            offers = f"It offers {', '.join(backend.precisions)}."
            reason = backend.refusals.get(precision)
            self.problems.add(
                place,
                f"{name} does not offer {precision}"
                + (f": {reason.rstrip('.')}" if reason else ""),
                f"{offers} Take the combination out with `exclude:`, or write two entries.",
            )

    def _check_mixed(self, rows: Sequence[Row]) -> None:
        """Nodes are kept in fp32 by backends that can."""
        asked = dict.fromkeys(
            (row.path, row.target.backend, row.target.precision)
            for row in rows
            if row.target.options.keep_fp32
        )
        for path, name, precision in asked:
            backend = self.host.backends[name]
            if precision in backend.mixed or precision not in backend.precisions:
                continue
            able = [each.name for each in self.host.backends.values() if precision in each.mixed]
            self.problems.add(
                option_place(self.root, path, name, "keep_fp32"),
                f"{name} {precision} cannot keep single nodes in fp32",
                f"In {precision} {_listed(able)} can: write an entry of its own for them.",
            )

    def _check_doubles(self, rows: Sequence[Row]) -> None:
        seen: dict[tuple[str, int], Path] = {}
        told: set[tuple[Path, Path]] = set()
        for row in rows:
            key = (row.variant, id(row.target))
            if key not in seen:
                seen[key] = row.path
                continue
            pair = (seen[key], row.path)
            if pair in told:
                continue
            told.add(pair)
            both = (
                "twice in this entry"
                if pair[0] == pair[1]
                else (f"here and at {self.root.at(pair[0])}")
            )
            self.problems.add(
                self.root.at(row.path),
                f"variant {row.variant} with {row.target.describe()} stands {both}",
                "Remove one of them, or take it out with `exclude:`.",
            )


def _distinct(options: Iterable[RuntimeOptions]) -> Iterator[RuntimeOptions]:
    """Each once, in order."""
    yield from {each.model_dump_json(): each for each in options}.values()


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "no backend"


def _choices(node: Node, *, listed: bool) -> list[Node]:
    """The values that an option is given; a list is one value where the option takes lists."""
    if not isinstance(node.value, list):
        return [node]
    if listed and not any(isinstance(item.value, list) for item in node.value):
        return [node]
    return node.value


def _is_list(annotation: Any) -> bool:
    """Whether a field takes lists, alone or among other things."""
    origin = get_origin(annotation) or annotation
    if isinstance(origin, type) and issubclass(origin, list | tuple | set | frozenset | Sequence):
        return not issubclass(origin, str | bytes)
    return any(_is_list(part) for part in get_args(annotation))

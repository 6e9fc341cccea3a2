"""Everything that is wrong with a file, collected, and pydantic's findings in our words."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from wherry.errors import ManifestError
from wherry.manifest.source import Node, Place

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Path = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

SHOWN = 40
"""How many problems one error lists."""


class Problems:
    """Collects; `check` raises one `ManifestError` that lists them in the order of the file."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int, int, str], ManifestError] = {}

    def add(self, place: Place, message: str, remedy: str | None = None) -> None:
        """Note a problem; the same one at the same place counts once."""
        key = (place.file, place.line, place.column, message)
        self._found.setdefault(key, ManifestError(message, where=str(place), remedy=remedy))

    def __len__(self) -> int:
        return len(self._found)

    def check(self) -> None:
        """Raise if anything was found."""
        if not self._found:
            return
        first, *others = (self._found[key] for key in sorted(self._found))
        if not others:
            raise first
        lines = [str(error) for error in (first, *others[: SHOWN - 1])]
        if len(others) >= SHOWN:
            lines.append(f"and {len(others) - SHOWN + 1} more")
        message = "\n".join(lines).removeprefix(f"{first.where}: ")
        raise ManifestError(message, where=first.where)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    folded = {name.casefold(): name for name in known}
    found = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def suggest(word: str, known: Collection[str]) -> str:
    """A remedy for an unknown word: the nearest one, and all that there are."""
    if not known:
        return "There is none: no plugin or file brings one."
    near = nearest(word, known)
    those = f"There are: {', '.join(known)}."
    return f"Did you mean {near!r}? {those}" if near else those


def unknown_key(key: str, known: Collection[str]) -> tuple[str, str]:
    """Message and remedy for a key that does not belong: the nearest one, else all."""
    near = nearest(key, known)
    if near:
        remedy = f"Did you mean {near!r}?"
    elif known:
        remedy = f"The keys here are: {', '.join(known)}."
    else:
        remedy = "Nothing can be set here: remove it."
    return f"unknown key {key!r}", remedy


def show(value: object) -> str:
    """A value as an error shows it, short."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def validate(
    model: type[M], node: Node, root: Node, path: Path, problems: Problems, *, empty: bool = False
) -> M | None:
    """Make a model of what is written; None where that was noted as a problem.

    Values are taken as they are typed in the file: text is no number, 1 is not true.

    Args:
        model: of wherry or of a plugin; keys that it does not name are problems unless it says
            ``extra="allow"``, whatever else it says of them.
        node: the value.
        root: the tree that ``path`` starts at, for places.
        path: where ``node`` stands in it.
        problems: takes what is wrong.
        empty: nothing at all means no parameters.
    """
    plain = {} if empty and node.value is None else node.plain()
    lax = model.model_config.get("extra") in (None, "ignore")
    if lax and isinstance(plain, dict):
        names = key_names(model)
        for key in [key for key in plain if key not in names]:
            problems.add(root.at((*path, key)), *unknown_key(key, names))
            del plain[key]
    text = json.dumps(plain)
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        # Below a validator of a plugin the strict mode refuses lists for tuples and text for paths
        # too; only what it says of scalars counts.
        found = [
            details
            for details in error.errors(include_url=False)
            if details["type"] in _SCALARS and isinstance(details["input"], str | int | float)
        ]
    try:
        made = model.model_validate_json(text)
    except ValidationError as error:
        found += error.errors(include_url=False)
    else:
        if not found:
            return made
    _explain(found, model, root, path, problems)
    return None


_SCALARS = frozenset({"int_type", "int_from_float", "float_type", "bool_type", "string_type"})


def key_names(model: type[BaseModel]) -> list[str]:
    """The keys that a model takes, as a file writes them."""
    names: list[str] = []
    for name, info in model.model_fields.items():
        alias = info.validation_alias or info.alias
        if alias is None or model.model_config.get("populate_by_name"):
            names.append(name)
        choices = getattr(alias, "choices", [alias])
        names.extend(choice for choice in choices if isinstance(choice, str))
    return names


def _explain(
    findings: Iterable[ErrorDetails],
    model: type[BaseModel],
    root: Node,
    path: Path,
    problems: Problems,
) -> None:
    """Note pydantic's findings; those of a union's members on one value become one sentence."""
    found: dict[Path, list[ErrorDetails]] = {}
    for details in findings:
        loc = details["loc"]
        whole: Path = (*path, *loc)
        if details["type"] == "extra_forbidden":
            below = _model_at(model, loc[:-1])
            known = key_names(below) if below else []
            problems.add(root.at(whole), *unknown_key(str(loc[-1]), known))
        elif details["type"] == "missing":
            text = _description(model, loc)
            remedy = f"Add it: {text}." if text else "Add it."
            problems.add(root.at(whole), f"{show(loc[-1])} is missing", remedy)
        elif details["type"] != "too_short" or _is_short(details):
            found.setdefault(whole[: root.find(whole)[1]], []).append(details)
    for place, reasons in found.items():
        problems.add(root.at(place), *_sentence(dotted(place), reasons, model))


def _is_short(details: ErrorDetails) -> bool:
    """A list whose items are wrong counts as short too, in a union; that says nothing new."""
    value = details["input"]
    return not (isinstance(value, list) and len(value) >= details["ctx"]["min_length"])


def _sentence(
    name: str, findings: Sequence[ErrorDetails], model: type[BaseModel]
) -> tuple[str, str | None]:
    """Message and remedy for all that was found at one place."""
    contexts = [details.get("ctx", {}) for details in findings]
    wants = " or ".join(
        dict.fromkeys(
            _wanted(details["type"], details["msg"], context)
            for details, context in zip(findings, contexts, strict=True)
        )
    )
    value = findings[0]["input"]
    if findings[0]["type"] in _OWN_WORDS:
        message = f"{name}: {wants}" if name else wants
    else:
        message = f"{name or 'this'} {wants}; found {show(value)}"
    choices = [word for context in contexts for word in _QUOTED.findall(str(context))]
    near = nearest(value, choices) if isinstance(value, str) else None
    if near:
        return message, f"Did you mean {near!r}?"
    text = _description(model, findings[0]["loc"])
    return message, f"It stands for: {text}." if text else None


_QUOTED = re.compile(r"'([^']*)'")

_OWN_WORDS = frozenset({"value_error", "assertion_error"})
"""Kinds whose message was written by a validator, as a sentence of its own."""

_WANTS = {
    "whole number": ("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
    "number": ("float_type", "float_parsing", "decimal_type"),
    "text": ("string_type", "path_type", "url_type", "bytes_type"),
    "list": ("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type"),
    "mapping (key: value)": (
        "dict_type", "model_type", "model_attributes_type", "dataclass_type", "mapping_type",
    ),
}  # fmt: skip
_KINDS = {kind: wanted for wanted, kinds in _WANTS.items() for kind in kinds}


def _wanted(kind: str, original: str, context: Mapping[str, Any]) -> str:
    """What was wanted, as the end of a sentence."""
    if kind in _OWN_WORDS:
        return str(context.get("error", original))
    if kind in _KINDS:
        return f"must be {'' if _KINDS[kind] == 'text' else 'a '}{_KINDS[kind]}"
    templates = {
        "bool_type": "must be true or false",
        "bool_parsing": "must be true or false",
        "literal_error": "must be {expected}",
        "enum": "must be {expected}",
        "greater_than": "must be more than {gt}",
        "greater_than_equal": "must be at least {ge}",
        "less_than": "must be less than {lt}",
        "less_than_equal": "must be at most {le}",
        "finite_number": "must be a finite number",
        "too_short": "must have at least {min_length} entries",
        "too_long": "must have at most {max_length} entries",
        "string_too_short": "must have at least {min_length} letters",
        "string_too_long": "must have at most {max_length} letters",
        "none_required": "must be empty",
    }
    if kind in templates:
        whole = {
            key: int(value) if isinstance(value, float) and value.is_integer() else value
            for key, value in context.items()
        }
        return templates[kind].format(**whole)
    return re.sub(r"^[A-Z][a-z]+ should\b", "must", original)


def dotted(path: Sequence[str | int]) -> str:
    """``targets[0].threads``."""
    text = ""
    for word in path:
        text += f"[{word}]" if isinstance(word, int) else f".{word}"
    return text.removeprefix(".")


def _description(model: type[BaseModel], loc: Sequence[str | int]) -> str | None:
    """What the field says of itself."""
    for depth in range(len(loc), 0, -1):
        below = _model_at(model, loc[: depth - 1])
        info = below.model_fields.get(str(loc[depth - 1])) if below else None
        if info is not None and info.description:
            return info.description.rstrip(".")
    return None


def _model_at(model: type[BaseModel], loc: Sequence[str | int]) -> type[BaseModel] | None:
    """The model at a place that pydantic names; words for members of a union are passed over."""
    here: list[Any] = [model]
    for word in loc:
        models = [kind for kind in here if _is_model(kind)]
        fields = [kind.model_fields[word] for kind in models if word in kind.model_fields]
        if fields:
            here = _parts(fields[0].annotation)
        elif any(_is_model(kind) and kind.__name__ == word for kind in here):
            here = [kind for kind in here if _is_model(kind) and kind.__name__ == word]
    models = [kind for kind in here if _is_model(kind)]
    return models[0] if len(models) == 1 else None


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _parts(annotation: Any) -> list[Any]:
    """An annotation and all that it is made of."""
    return [annotation, *(part for below in get_args(annotation) for part in _parts(below))]

"""The manifest's JSON Schema for editors, made from the plugins in use.

wherry's own sections come from `wherry.manifest.schema`; the options of backends and the
parameters of passes, datasets and designs from the plugins' models. Draft 2020-12.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from wherry.errors import PluginError
from wherry.manifest.schema import (
    DataForm,
    GateForm,
    ManifestForm,
    MetricForm,
    TargetForm,
    Where,
    ZooForm,
)
from wherry.manifest.sections import MEASURED

if TYPE_CHECKING:
    from wherry.host import Host

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


class _Generate(GenerateJsonSchema):
    """Without a title for every field, which says its name again."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 -- the base's
        return False


def manifest_schema(host: Host) -> Schema:
    """The JSON Schema of manifests, as this host's plugins make it.

    Raises:
        PluginError: a plugin's model has a field that JSON cannot describe.
    """
    owned: dict[str, type[BaseModel]] = {
        **{f"backend {name}": backend.options for name, backend in host.backends.items()},
        **{f"pass {name}": known.parameters for name, known in host.passes.items()},
        **{f"dataset source {name}": known.parameters for name, known in host.datasets.items()},
        **{f"network design {name}": known.parameters for name, known in host.models.items()},
        **{f"tracker {name}": known.parameters for name, known in host.trackers.items()},
    }
    for name, model in owned.items():
        try:
            model.model_json_schema(schema_generator=_Generate)
        except PydanticInvalidForJsonSchema as error:
            raise PluginError(
                f"{name}: {model.__name__} cannot be described by a JSON Schema: {error.message}",
                remedy="Its author has to give the field a type that JSON has.",
            ) from error
    forms = (ManifestForm, TargetForm, DataForm, ZooForm, MetricForm, GateForm, Where)
    models: list[type[BaseModel]] = list(dict.fromkeys((*forms, *owned.values())))
    refs, whole = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/$defs/{model}",
        schema_generator=_Generate,
    )
    definitions: dict[str, Schema] = whole["$defs"]
    names = {
        model: str(refs[model, "validation"]["$ref"]).removeprefix("#/$defs/") for model in models
    }
    for model in owned.values():
        definitions[names[model]].setdefault("additionalProperties", False)
    composer = _Composer(host, definitions, names)
    composer.targets()
    composer.named(DataForm, "source", {k: v.parameters for k, v in host.datasets.items()})
    composer.named(ZooForm, "name", {k: v.parameters for k, v in host.models.items()})
    composer.metrics()
    composer.variants()
    composer.trackers()
    composer.top()
    root = definitions.pop(names[ManifestForm])
    definitions = {name: _substitutable(part) for name, part in definitions.items()}
    definitions["Substitution"] = _SUBSTITUTION
    return {
        "$schema": DIALECT,
        **_substitutable(root),
        "title": "A manifest of wherry",
        "$defs": definitions,
    }


class _Composer:
    """Puts what plugins offer into the definitions of our own sections."""

    def __init__(
        self,
        host: Host,
        definitions: dict[str, Schema],
        names: Mapping[type[BaseModel], str],
    ) -> None:
        self.host = host
        self.definitions = definitions
        self.names = names

    def definition(self, model: type[BaseModel]) -> Schema:
        return self.definitions[self.names[model]]

    def targets(self) -> None:
        """The words for backends and precisions, and a block of options for each backend."""
        backends = list(self.host.backends)
        precisions = dict.fromkeys(
            precision for backend in self.host.backends.values() for precision in backend.precisions
        )
        for form in (TargetForm, Where):
            properties = self.definition(form)["properties"]
            for key, words in (("backend", backends), ("precision", list(precisions))):
                properties[key] |= _one_or_many({"enum": words})
        target = self.definition(TargetForm)
        target["additionalProperties"] = False
        for name, backend in self.host.backends.items():
            block = copy.deepcopy(self.definition(backend.options))
            for option, said in block.get("properties", {}).items():
                outer = {key: said.pop(key) for key in _ANNOTATIONS if key in said}
                block["properties"][option] = _one_or_many(said) | outer
            block["description"] = f"options of {name}; lists multiply"
            target["properties"][name] = block

    def named(self, form: type[BaseModel], key: str, known: Mapping[str, type[BaseModel]]) -> None:
        """A section whose ``key`` names what decides which other keys it has."""
        section = self.definition(form)
        own = section["properties"]
        own[key]["enum"] = list(known)
        branches: list[Schema] = []
        for name, parameters in known.items():
            branch = copy.deepcopy(self.definition(parameters))
            branch["properties"] = dict.fromkeys(own, True) | branch.get("properties", {})
            condition = {"properties": {key: {"const": name}}, "required": [key]}
            branches.append({"if": condition, "then": branch})
        if branches:
            section["allOf"] = branches

    def metrics(self) -> None:
        """Metrics in their list, and their names in gates."""
        names = list(self.host.metrics)
        root = self.definition(ManifestForm)["properties"]
        root["metrics"]["items"] = self._word_or_mapping(dict.fromkeys(names, MetricForm))
        gated: list[Schema] = [{"enum": [*names, *MEASURED]}]
        if names:
            escaped = "|".join(map(re.escape, names))
            gated.append({"type": "string", "pattern": rf"^(?:{escaped})\..+"})
        metric = self.definition(GateForm)["properties"]["metric"]
        metric.pop("type")
        metric["anyOf"] = gated

    def variants(self) -> None:
        """Passes, with their parameters."""
        variants = self.definition(ManifestForm)["properties"]["variants"]
        step = self._word_or_mapping(
            {name: known.parameters for name, known in self.host.passes.items()}
        )
        for pattern in variants["patternProperties"].values():
            pattern["items"] = step
        variants["properties"] = {
            "original": {"type": "array", "maxItems": 0, "description": "the model as it is"}
        }
        variants["additionalProperties"] = False

    def trackers(self) -> None:
        """Trackers, with their parameters."""
        track = self.definition(ManifestForm)["properties"]["track"]
        track["properties"] = {
            name: {"anyOf": [{"$ref": f"#/$defs/{self.names[known.parameters]}"}, {"type": "null"}]}
            for name, known in self.host.trackers.items()
        }
        track["additionalProperties"] = False

    def top(self) -> None:
        """What another file may bring need not be there."""
        root = self.definition(ManifestForm)
        root["required"] = ["wherry"]
        root["anyOf"] = [{"required": ["model", "targets"]}, {"required": ["include"]}]

    def _word_or_mapping(self, known: Mapping[str, type[BaseModel]]) -> Schema:
        """A word, or one word with its parameters below."""
        bare = [name for name, model in known.items() if not self.definition(model).get("required")]
        properties: dict[str, Schema] = {}
        for name, model in known.items():
            ref = {"$ref": f"#/$defs/{self.names[model]}"}
            properties[name] = {"anyOf": [ref, {"type": "null"}]} if name in bare else ref
        mapping = {
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        }
        return {"anyOf": [{"enum": bare}, mapping]}


_ANNOTATIONS = ("description", "default", "title", "examples", "deprecated", "stage")
_SUBSTITUTION: Schema = {
    "type": "string",
    "pattern": r"\$\{[^}]*\}",
    "description": "a variable of the environment: ${NAME} or ${NAME:-default}",
}


def _one_or_many(schema: Schema) -> Schema:
    many = {"type": "array", "items": schema, "minItems": 1}
    return {"anyOf": [schema, many]}


def _substitutable(schema: Any) -> Any:
    """The same schema, where ``${NAME}`` may stand for every scalar that is not free text."""
    if not isinstance(schema, dict):
        return schema
    made: Schema = {}
    for key, below in schema.items():
        if key in {"properties", "patternProperties"}:
            made[key] = {name: _substitutable(part) for name, part in below.items()}
        elif key in {"items", "additionalProperties", "then"}:
            made[key] = _substitutable(below)
        elif key in {"anyOf", "oneOf", "allOf", "prefixItems"}:
            made[key] = [_substitutable(part) for part in below]
        elif key == "default" and below is None:
            pass  # keys that are not written have no value; editors would write it
        else:
            made[key] = below
    if not _is_narrow(schema):
        return made
    outer = {key: made.pop(key) for key in _ANNOTATIONS if key in made}
    return {"anyOf": [made, {"$ref": "#/$defs/Substitution"}], **outer}


def _is_narrow(schema: Schema) -> bool:
    """Whether a schema is of scalars, and not of any text."""
    if "enum" in schema or "const" in schema:
        return True
    kinds = schema.get("type")
    if kinds == "string":
        return not _TEXT_LIMITS.isdisjoint(schema)
    return kinds in {"integer", "number", "boolean"}


_TEXT_LIMITS = frozenset({"pattern", "format", "maxLength"})

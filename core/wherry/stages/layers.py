"""What layers are timed with: a dissection of an artifact, made once and kept in the store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from wherry.errors import PluginError
from wherry.stages.context import FILES, HostContext, take_or_build
from wherry.stages.convert import ARTIFACT_FILE, read_artifact
from wherry.stages.keys import own_lock, plugin_code
from wherry.stages.services import Services
from wherry.store import Key

if TYPE_CHECKING:
    from wherry.artifact import Artifact
    from wherry.target import Backend


def dissect_key(artifact: Artifact, backend: Backend, services: Services) -> Key:
    """All that decides a dissection."""
    converter = backend.converter
    return Key(
        "dissect",
        {
            "artifact": artifact.to_json(),
            "format_version": backend.format_version,
            "code": plugin_code(services, "backends", backend.name, backend.convert_files),
            "tool": None if converter is None else services.environment_lock(converter),
            "host": own_lock(),
        },
    )


def dissected(artifact: Artifact, backend: Backend, context: HostContext) -> Artifact:
    """What the backend's runner times the layers of; the artifact itself where that will do.

    Raises:
        PluginError: the backend made something else of it.
    """
    dissect, services = backend.dissect, context.services
    if dissect is None:
        return artifact

    def build(inner: HostContext) -> None:
        (inner.output / FILES).mkdir()
        files = HostContext(
            services, inner.step, inner.output / FILES, inner.scratch, inner.log, inner.warnings
        )
        made = dissect(artifact, files)
        same = (made.inputs, made.outputs) == (artifact.inputs, artifact.outputs)
        if not same or made.directory.resolve() != files.output.resolve():
            raise PluginError(
                f"the backend {backend.name} dissected an artifact into one with other inputs or "
                "outputs, or outside of context.output",
                remedy="Report this to the author of the plugin.",
            )
        (inner.output / ARTIFACT_FILE).write_text(json.dumps(made.to_json(), indent=1))

    key = dissect_key(artifact, backend, services)
    entry, _, told = take_or_build(services, f"{context.step}:dissect", key, build)
    context.warnings.extend(told)
    return read_artifact(entry)

"""What every backend has to hold: descriptor, options, runner, pre-flight, and right results."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from wherry.artifact import Artifact
from wherry.errors import ToolError, UnsupportedError
from wherry.host import Host
from wherry.model import Model
from wherry.parity import check, compare
from wherry.reference import Reference
from wherry.requirements import Requirements
from wherry.target import (
    PRECISIONS,
    Backend,
    RuntimeOptions,
    Target,
    Unsupported,
    no_preflight,
    split_options,
)
from wherry.testing.networks import NETWORKS, build, build_unknown, samples
from wherry.testing.workshop import Workshop

MOST_OF_WHOLE, SLACK_NS = 20.0, 5e6
"""What layers may add up to: so many times the whole inference, and more. A unit mistaken for
another is found; what timing them costs, and a busy machine, are not held against a runner."""


class BackendSuite:
    """Derive a class whose name begins with ``Test``, and say which backend it is about.

    Attributes:
        name: of the backend.
        plugin: the plugin's module or object, where it is not installed; None: it is found by its
            entry point.
        refuses: the networks of `wherry.testing.networks` that the backend's pre-flight refuses;
            it has to convert all others.
    """

    name: ClassVar[str]
    plugin: ClassVar[object | None] = None
    refuses: ClassVar[frozenset[str]] = frozenset()

    @pytest.fixture(scope="class")
    @classmethod
    def host(cls) -> Host:
        """The plugins as wherry loads them."""
        return Host.load(extra=() if cls.plugin is None else (cls.plugin,))

    @pytest.fixture
    def backend(self, host: Host) -> Backend:
        """The descriptor."""
        causes = "\n".join(f"{skipped.plugin}: {skipped.cause}" for skipped in host.skipped)
        assert self.name in host.backends, f"not found; skipped plugins:\n{causes or 'none'}"
        return host.backends[self.name]

    def test_descriptor(self, backend: Backend) -> None:
        """Its words are words, and its sets fit together."""
        assert backend.description
        assert "\n" not in backend.description
        assert backend.artifact_format
        assert backend.format_version >= 1
        assert backend.precisions
        assert len(set(backend.precisions)) == len(backend.precisions)
        assert set(backend.precisions) <= set(PRECISIONS)
        assert backend.calibrated <= set(backend.precisions)
        assert set(backend.parity) <= set(backend.precisions)
        assert set(backend.refusals) <= set(PRECISIONS) - set(backend.precisions)
        assert all(backend.refusals.values()), "a refusal needs a reason"

    def test_files(self, backend: Backend) -> None:
        """The files that it names exist; ``convert_files`` are part of the store's keys."""
        for path in (*backend.board_code, *backend.convert_files):
            assert path.is_absolute()
            assert path.is_file()
        assert backend.convert_files, "name the files whose content decides the artifact"

    def test_requirements(self, backend: Backend) -> None:
        """They are PEP 508 and PEP 440."""
        sets = [*backend.runtime, *([backend.converter] if backend.converter else [])]
        for requirements in sets:
            assert isinstance(requirements, Requirements)
            for text in (*requirements.packages, *requirements.no_deps):
                Requirement(text)
            SpecifierSet(requirements.python)

    def test_options(self, backend: Backend) -> None:
        """They have defaults and descriptions, refuse what they do not know, and survive JSON."""
        assert issubclass(backend.options, RuntimeOptions)
        assert backend.options.model_config.get("extra") == "forbid"
        assert backend.options.model_config.get("frozen")
        for name, field in backend.options.model_fields.items():
            assert not field.is_required(), f"{name} needs a default"
            assert field.description, f"{name} needs a description"
        options = backend.options()
        values = json.loads(json.dumps(options.model_dump(mode="json")))
        assert backend.options.model_validate(values) == options
        convert, run = split_options(options)
        assert convert.keys() | run.keys() == values.keys()
        json.dumps(backend.options.model_json_schema())

    def test_owner(self, host: Host, backend: Backend) -> None:
        """The plugin that yields the backend converts for it."""
        assert host.worker("wherry_convert", backend.name) == host.owner("backends", backend.name)

    def test_runner(self, host: Host, backend: Backend) -> None:
        """It runs on Python 3.8 with nothing of ours and nothing of the plugin's."""
        package = host.owner("backends", backend.name).module.partition(".")[0]
        absent = {"wherry", "pydantic", package}
        shipped = {f".{path.stem}" for path in backend.runner_files}
        trees = [
            ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
            for path in backend.board_code
        ]
        for tree in trees:
            imported = set(_imported(tree))
            assert not absent & {name.partition(".")[0] for name in imported}
            beside = {name for name in imported if name.startswith(".")}
            assert beside <= shipped, "what it imports from beside it is named by runner_files"
            assert not _new_annotations(tree), "add `from __future__ import annotations`"
        body = trees[0].body
        loads = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == "load"]
        assert loads, "it has to define load(directory, artifact, options)"
        assert len(loads[0].args.posonlyargs + loads[0].args.args) == 3

    def test_unknown_operator(self, backend: Backend, tmp_path: Path) -> None:
        """The pre-flight, where there is one, names it, counts it, and says what to do."""
        build_unknown(tmp_path / "model.onnx")
        for found in _preflight(backend, tmp_path / "model.onnx"):
            unknown = [item for item in found if item.op_type.endswith("NoSuchOperator")]
            assert [(item.count, item.node) for item in unknown] == [(2, "/NoSuchOperator/h")]

    @pytest.mark.parametrize("network", NETWORKS)
    def test_preflight(self, network: str, backend: Backend, tmp_path: Path) -> None:
        """It refuses the networks that ``refuses`` names, and no other."""
        build(network, tmp_path / "model.onnx")
        for found in _preflight(backend, tmp_path / "model.onnx"):
            assert bool(found) == (network in self.refuses), found

    @pytest.mark.parametrize("network", NETWORKS)
    def test_parity(self, network: str, host: Host, backend: Backend, tmp_path: Path) -> None:
        """In every precision it converts, runs, and agrees with ONNX Runtime in fp32."""
        build(network, tmp_path / "model.onnx")
        model = Model.load(tmp_path / "model.onnx")
        given = samples(model, 4)
        workshop = Workshop(host, tmp_path)
        for precision in backend.precisions if network not in self.refuses else ():
            target = Target(backend.name, precision, "local", backend.options())
            artifact = workshop.convert(model, target, given)
            _check_artifact(artifact, model, backend, precision)
            if not backend.runs_on_host:
                continue
            *outputs, again = workshop.run(artifact, target, [*given, given[0]])
            for name, values in again.items():
                assert np.array_equal(values, outputs[0][name]), "the same input, another output"
            reference = Reference(model)
            figures = compare(outputs, [reference.run(sample) for sample in given])
            where = f"{network} in {precision}"
            check(figures, backend.threshold(precision), where, precision=precision)
            if network == next(name for name in NETWORKS if name not in self.refuses):
                _check_layers(artifact, *workshop.time_layers(artifact, target, given[0]))

    def test_unknown_operator_is_not_converted(
        self, host: Host, backend: Backend, tmp_path: Path
    ) -> None:
        """What gets past the pre-flight ends in an error for users, not in a wrong artifact."""
        build_unknown(tmp_path / "model.onnx")
        model = Model.load(tmp_path / "model.onnx")
        target = Target(backend.name, backend.precisions[0], "local", backend.options())
        with pytest.raises((UnsupportedError, ToolError)):
            Workshop(host, tmp_path).convert(model, target, samples(model, 1))


def _check_artifact(artifact: Artifact, model: Model, backend: Backend, precision: str) -> None:
    assert (artifact.backend, artifact.precision) == (backend.name, precision)
    assert artifact.format == backend.artifact_format
    assert artifact.files
    for bindings, specs in ((artifact.inputs, model.inputs), (artifact.outputs, model.outputs)):
        bound = [(binding.onnx, binding.shape) for binding in bindings]
        assert bound == [(spec.name, spec.static_shape) for spec in specs]
    values = json.loads(json.dumps(artifact.to_json()))
    assert Artifact.from_json(values, artifact.directory).digest == artifact.digest


def _check_layers(
    artifact: Artifact, times: Mapping[str, np.ndarray] | None, whole_ns: np.ndarray
) -> None:
    """The times of layers, where the runner tells them, are of the layers, and add up."""
    names = [layer.name for layer in artifact.layers]
    assert len(set(names)) == len(names), "the names of layers are not unique"
    if times is None:
        return
    assert times, "it times layers, and there were none"
    if names:
        assert set(names) & set(times), f"it timed {list(times)}; the artifact has {names}"
    total = sum(float(np.mean(values)) for values in times.values())
    assert 0 < total < MOST_OF_WHOLE * float(np.median(whole_ns)) + SLACK_NS, (
        f"the layers take {total:.0f} ns, an inference {np.median(whole_ns):.0f} ns"
    )


def _preflight(backend: Backend, path: Path) -> Iterator[list[Unsupported]]:
    """What it answers for every precision, checked; nothing where there is no pre-flight."""
    model = Model.load(path)
    for precision in backend.precisions if backend.preflight is not no_preflight else ():
        target = Target(backend.name, precision, "local", backend.options())
        found = list(backend.preflight(model, target))
        for item in found:
            assert isinstance(item, Unsupported)
            assert item.op_type
            assert item.count >= 1
            assert item.node, "name the first node"
            assert item.remedy.endswith("."), "say in a sentence what the user can do"
        yield found


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ("." * node.level + name for name in names)


def _new_annotations(tree: ast.Module) -> list[str]:
    """Annotations that Python 3.8 cannot evaluate, where it would: ``list[int]``, ``int | str``."""
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    if any(node.module == "__future__" for node in imports):
        return []
    found = []
    for node in ast.walk(tree):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            for part in ast.walk(annotation) if annotation is not None else ():
                union = isinstance(part, ast.BinOp) and isinstance(part.op, ast.BitOr)
                generic = (
                    isinstance(part, ast.Subscript)
                    and isinstance(part.value, ast.Name)
                    and part.value.id in {"dict", "frozenset", "list", "set", "tuple", "type"}
                )
                if union or generic:
                    found.append(ast.unparse(part))
    return found

"""From a file to a `Manifest`: every name checked, everything that is wrong told at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from wherry.calibration import CalibrationSettings
from wherry.errors import ManifestError, UsageError
from wherry.manifest.expand import Expander, Row
from wherry.manifest.gates import read_gates
from wherry.manifest.merge import read_merged
from wherry.manifest.problems import Path as Keys
from wherry.manifest.problems import Problems, show, suggest, unknown_key, validate
from wherry.manifest.schema import (
    NAME,
    ROLES,
    VERSION,
    Calibrate,
    DataForm,
    Limits,
    ManifestForm,
    Measure,
    MetricForm,
    ModelForm,
    Parity,
    Section,
    Seed,
)
from wherry.manifest.sections import (
    ORIGINAL,
    DataSection,
    LimitsSection,
    Manifest,
    MetricSection,
    ModelSection,
    ParitySection,
)
from wherry.manifest.source import Node, Place
from wherry.measurement import MeasureSettings
from wherry.passes import MeasuredOn, PassStep
from wherry.target import ParityThreshold, Target

if TYPE_CHECKING:
    from pydantic import BaseModel

    from wherry.host import Host

S = TypeVar("S", bound=Section)


def load_manifest(
    path: Path,
    host: Host,
    *,
    overrides: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Manifest:
    """Read and check a manifest, its includes and the inventory beside it.

    Nothing but these files is read: whether the model and the data hold what they should is
    found out when the run is planned.

    Args:
        path: the YAML file.
        host: knows the backends, passes, metrics, ... that the manifest may name.
        overrides: ``key.path=value``, applied to the file in turn.
        env: for ``${NAME}``; None: the process's own.

    Raises:
        ManifestError: something is wrong; all problems are listed, each with its place.
        UsageError: an override names nothing that can be set.
    """
    from wherry.inventory import load_inventory

    env = os.environ if env is None else env
    root, text, files = read_merged(path, env, overrides)
    _check_version(root, path)
    base = path.absolute().parent
    inventory = load_inventory(path.parent, host, env=env)
    reader = _Reader(root, host)
    problems = reader.problems
    reader.check_keys()
    model = reader.model(base)
    data = reader.data()
    metrics = reader.metrics()
    variants = reader.variants()
    expander = Expander(root, host, list(variants), inventory.devices, problems)
    before = len(problems)
    rows = expander.rows(reader.items("targets"), reader.items("exclude"))
    right = len(problems) == before
    reader.check_calibration(rows)
    if right and rows:
        reader.check_measured([row.target for row in rows])
    gates = read_gates(reader.items("gates"), metrics, rows if right else None, expander, base)
    seed = reader.seed()
    calibrate = reader.section("calibrate", Calibrate)
    measure = reader.section("measure", Measure)
    parity = reader.section("parity", Parity)
    limits = reader.section("limits", Limits)
    track = reader.track()
    problems.check()
    return Manifest(
        path=path.absolute(),
        base=base,
        text=text,
        files=files,
        merged=root.plain(),
        model=model,
        data=data,
        metrics=metrics,
        variants=variants,
        targets=tuple({id(row.target): row.target for row in rows}.values()),  # one object each
        rows=tuple((row.variant, row.target) for row in rows),
        origins={(row.variant, row.target.id): tuple(row.path) for row in rows},
        gates=gates,
        calibrate=CalibrationSettings(calibrate.method, calibrate.percentile),
        measure=MeasureSettings(**measure.model_dump(), seed=seed),
        parity=ParitySection(
            parity.samples,
            {
                precision: ParityThreshold(threshold.sqnr_db, threshold.cosine)
                for precision, threshold in parity.thresholds.items()
            },
        ),
        limits=LimitsSection(limits.time_s, limits.memory_mb),
        track=track,
        seed=seed,
        inventory=inventory,
        root=root,
    )


def _check_version(root: Node, path: Path) -> None:
    """Before all else: another version would make every other message wrong."""
    assert isinstance(root.value, dict)
    version = root.value.get("wherry")
    if version is None:
        raise ManifestError(
            "'wherry' is missing: the version of the manifest's form",
            where=str(Place(str(path), 1, 1)),
            remedy=f"Begin with the line `wherry: {VERSION}`.",
        )
    if type(version.value) is not int or version.value != VERSION:
        newer = type(version.value) is int and version.value > VERSION
        raise ManifestError(
            f"wherry must be {VERSION}, the version of the form that this wherry reads; "
            f"found {show(version.value)}",
            where=str(version.place),
            remedy="Install a newer wherry: `python -m pip install --upgrade wherry`."
            if newer
            else f"Write `wherry: {VERSION}`.",
        )


class _Reader:
    """Reads the sections of one tree; what is wrong goes to ``problems``."""

    def __init__(self, root: Node, host: Host) -> None:
        assert isinstance(root.value, dict)
        self.root = root
        self.top = root.value
        self.host = host
        self.problems = Problems()
        self._measured: list[tuple[str, MeasuredOn, Place]] = []

    def check_keys(self) -> None:
        """The keys of the top, and the kind of value of those that hold several entries."""
        for key, node in self.top.items():
            if key not in ManifestForm.model_fields:
                self.problems.add(node.place, *unknown_key(key, [*ManifestForm.model_fields]))
        for key in ("model", "targets"):
            if key not in self.top:
                purpose = ManifestForm.model_fields[key].description
                self.problems.add(
                    replace(self.root.place, line=1, column=1),
                    f"{key!r} is missing",
                    f"Add it: {purpose}.",
                )
        for key, kind in _CONTAINERS.items():
            node_or_none = self.top.get(key)
            if node_or_none is not None and not isinstance(node_or_none.value, kind):
                wanted = "a list" if kind is list else "a mapping (key: value)"
                self.problems.add(
                    node_or_none.place,
                    f"{key} must be {wanted}; found {show(node_or_none.plain())}",
                    f"It stands for: {ManifestForm.model_fields[key].description}.",
                )
        for key in ("targets", "variants"):
            if key in self.top and not self.top[key].value and self.top[key].value is not None:
                self.problems.add(
                    self.top[key].place, f"{key} must not be empty", "Give at least one."
                )

    def items(self, key: str) -> list[Node]:
        """The items of a list of the top; empty where it is not there or no list."""
        node = self.top.get(key)
        return node.value if node is not None and isinstance(node.value, list) else []

    def entries(self, key: str) -> dict[str, Node]:
        """The entries of a mapping of the top; empty where it is not there or no mapping."""
        node = self.top.get(key)
        return node.value if node is not None and isinstance(node.value, dict) else {}

    def section(self, key: str, form: type[S]) -> S:
        """A section that may be left out; its defaults where it is wrong."""
        node = self.top.get(key)
        made = validate(form, node, self.root, (key,), self.problems) if node else None
        return made or form()

    def track(self) -> dict[str, BaseModel]:
        """The trackers, with their parameters."""
        found: dict[str, BaseModel] = {}
        for name, node in self.entries("track").items():
            if name not in self.host.trackers:
                self.problems.add(
                    node.place, f"unknown tracker {name!r}", suggest(name, self.host.trackers)
                )
                continue
            form = self.host.trackers[name].parameters
            made = validate(form, node, self.root, ("track", name), self.problems, empty=True)
            if made is not None:
                found[name] = made
        return found

    def seed(self) -> int:
        """The plain number of the top."""
        if "seed" not in self.top:
            return Seed().seed
        node = Node({"seed": self.top["seed"]}, self.root.place)
        return (validate(Seed, node, self.root, (), self.problems) or Seed()).seed

    def model(self, base: Path) -> ModelSection:
        """The file or design, and what is said of inputs."""
        node = self.top.get("model")
        form = validate(ModelForm, node, self.root, ("model",), self.problems) if node else None
        if form is None:
            return ModelSection()
        shapes = {
            name: tuple(said.shape) for name, said in form.inputs.items() if said.shape is not None
        }
        preprocess = {
            name: said.preprocess.values()
            for name, said in form.inputs.items()
            if said.preprocess is not None
        }
        if form.zoo is not None:
            where: Keys = ("model", "zoo")
            if form.zoo.name not in self.host.models:
                self.problems.add(
                    self.root.at((*where, "name")),
                    f"unknown network design {form.zoo.name!r}",
                    suggest(form.zoo.name, self.host.models),
                )
                return ModelSection()
            rest = self.root.find(where)[0].without("name")
            form_of = self.host.models[form.zoo.name].parameters
            parameters = validate(form_of, rest, self.root, where, self.problems)
            return ModelSection(None, form.zoo.name, parameters, shapes, preprocess)
        path = base / Path(form.path or "").expanduser()
        if not path.is_file():
            self.problems.add(
                self.root.at(("model", "path")),
                f"there is no file {form.path!r}",
                f"Relative paths start at {base}.",
            )
        return ModelSection(path, None, None, shapes, preprocess)

    def data(self) -> dict[str, DataSection]:
        """The datasets, by what they are for."""
        sections: dict[str, DataSection] = {}
        for role, node in self.entries("data").items():
            where: Keys = ("data", role)
            if role not in ROLES:
                message, remedy = unknown_key(role, ROLES)
                self.problems.add(node.place, f"{message} in data", remedy)
                continue
            form = validate(DataForm, node, self.root, where, self.problems)
            if form is None:
                continue
            if form.source not in self.host.datasets:
                self.problems.add(
                    self.root.at((*where, "source")),
                    f"unknown source of data {form.source!r}",
                    suggest(form.source, self.host.datasets),
                )
                continue
            rest = node.without("source", "slice")
            form_of = self.host.datasets[form.source].parameters
            parameters = validate(form_of, rest, self.root, where, self.problems)
            if parameters is not None:
                first, _, beyond = form.slice.partition(":")
                span = (int(first) if first else None, int(beyond) if beyond else None)
                place = str(node.place)
                sections[role] = DataSection(role, form.source, parameters, span, place)
        return sections

    def metrics(self) -> tuple[MetricSection, ...]:
        """The metrics, each a word or ``name: {output: ...}``."""
        sections: dict[str, MetricSection] = {}
        for index, node in enumerate(self.items("metrics")):
            where: Keys = ("metrics", index)
            named = self._named(node, "metric")
            if named is None:
                continue
            name, said = named
            if name not in self.host.metrics:
                self.problems.add(
                    node.place, f"unknown metric {name!r}", suggest(name, self.host.metrics)
                )
                continue
            form = validate(MetricForm, said, self.root, (*where, name), self.problems, empty=True)
            if form is None:
                continue
            section = MetricSection(name, form.output)
            if section.key in sections:
                self.problems.add(
                    node.place, f"the metric {section.key} is named twice", "Remove one of them."
                )
            sections[section.key] = section
        if sections and "evaluation" not in self.entries("data"):
            self.problems.add(
                self.root.at(("metrics",)),
                "metrics are computed over data.evaluation, which is missing",
                "Add `evaluation:` below `data:`, or remove the metrics.",
            )
        return tuple(sections.values())

    def variants(self) -> dict[str, tuple[PassStep, ...]]:
        """The variants; passes that are wrong are left out of them."""
        if not self.entries("variants"):
            return {ORIGINAL: ()}
        variants: dict[str, tuple[PassStep, ...]] = {}
        for variant, node in self.entries("variants").items():
            if not re.fullmatch(NAME, variant):
                self.problems.add(
                    node.place,
                    f"{show(variant)} is no name for a variant",
                    "Take letters, digits, dots, dashes and underscores, 80 at most.",
                )
            if not isinstance(node.value, list):
                self.problems.add(
                    node.place,
                    f"variants.{variant} must be a list; found {show(node.plain())}",
                    "Give the passes as a list; [] is the model as it is.",
                )
            passes = node.value if isinstance(node.value, list) else []
            if variant == ORIGINAL and passes:
                self.problems.add(
                    node.place,
                    f"{ORIGINAL!r} is the model as it is: it takes no passes",
                    "Give this variant another name.",
                )
            steps = (
                self._step(below, ("variants", variant, index))
                for index, below in enumerate(passes)
            )
            variants[variant] = tuple(step for step in steps if step is not None)
        return variants

    def _step(self, node: Node, where: Keys) -> PassStep | None:
        named = self._named(node, "pass")
        if named is None:
            return None
        name, said = named
        known = self.host.passes.get(name)
        if known is None:
            self.problems.add(node.place, f"unknown pass {name!r}", suggest(name, self.host.passes))
            return None
        parameters = validate(
            known.parameters, said, self.root, (*where, name), self.problems, empty=True
        )
        needed = known.needs if parameters is None else known.needed(parameters)
        for role in ("calibration", "training"):
            if role in needed and role not in self.entries("data"):
                self.problems.add(
                    node.place,
                    f"the pass {name} needs data.{role}, which is missing",
                    f"Add `{role}:` below `data:`.",
                )
        if parameters is None:
            return None
        if known.measures is not None and (on := known.measures(parameters)) is not None:
            self._measured.append((name, on, node.place))
        return PassStep(name, parameters)

    def _named(self, node: Node, kind: str) -> tuple[str, Node] | None:
        """A word, or a mapping of one word to what is said of it."""
        if isinstance(node.value, str):
            return node.value, Node(None, node.place)
        if isinstance(node.value, dict) and len(node.value) == 1:
            return next(iter(node.value.items()))
        found = ", ".join(node.value) if isinstance(node.value, dict) else show(node.plain())
        self.problems.add(
            node.place,
            f"a {kind} must be a word, or one word with its parameters below; "
            f"found {found or 'an empty mapping'}",
            "For example `- name` or `- name: {parameter: value}`, with the same indentation.",
        )
        return None

    def check_calibration(self, rows: Sequence[Row]) -> None:
        """Precisions that need the ranges of activations need data to find them."""
        if "calibration" in self.entries("data"):
            return
        for row in rows:
            target = row.target
            if self.host.backends[target.backend].needs_calibration(target):
                self.problems.add(
                    self.root.at(row.path),
                    f"{target.backend} {target.precision} needs data.calibration, which is missing",
                    "Add `calibration:` below `data:`, or leave the precision out.",
                )

    def check_measured(self, targets: Sequence[Target]) -> None:
        """Passes that measure candidates need a target for that, and one without calibration."""
        for name, on, place in self._measured:
            try:
                target = on.among(targets)
            except UsageError as error:
                self.problems.add(place, f"{name}: {error.message}", error.remedy)
                continue
            if self.host.backends[target.backend].needs_calibration(target):
                self.problems.add(
                    place,
                    f"{name} measures candidates on {target.backend} {target.precision}, which "
                    "needs a calibration of each",
                    "Name one of another precision among the targets, or add it.",
                )


_CONTAINERS: Mapping[str, type] = {
    "data": dict,
    "metrics": list,
    "variants": dict,
    "targets": list,
    "exclude": list,
    "gates": list,
    "track": dict,
}

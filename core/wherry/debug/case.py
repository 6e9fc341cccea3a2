"""What is debugged: one row of a manifest, converted as a run converts it, and its samples."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.dataset import Dataset, Sample
from wherry.errors import DataError, UsageError
from wherry.execute import prepare
from wherry.manifest.sections import ParitySection
from wherry.plan import CALIBRATION, EVALUATION
from wherry.stages import convert
from wherry.stages.context import SCRATCH
from wherry.target import split_options

if TYPE_CHECKING:
    from wherry.artifact import Artifact
    from wherry.host import Host
    from wherry.manifest import Manifest
    from wherry.model import Model
    from wherry.plan import Plan, Step
    from wherry.stages.services import Services
    from wherry.target import Backend, Target


@dataclass(frozen=True)
class Choice:
    """Which row; None and empty: whatever there is.

    Attributes:
        options: of the target, ``KEY=VALUE``.
    """

    variant: str | None = None
    backend: str | None = None
    precision: str | None = None
    device: str | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A row, ready to be run.

    Attributes:
        services: of this run; the plan has this row alone.
        variant: its name.
        target: on a device that was chosen.
        original: the manifest's model; what metrics compare with.
        model: the variant, which was converted.
        artifact: of the row as it stands in the manifest.
        dataset: the evaluation set, else the calibration's samples.
        role: which of both.
        warnings: of the steps that led here.
    """

    services: Services
    variant: str
    target: Target
    original: Model
    model: Model
    artifact: Artifact
    dataset: Dataset
    role: str
    warnings: tuple[str, ...]
    _step: Step
    _inputs: Mapping[str, Any]

    @property
    def backend(self) -> Backend:
        """The target's."""
        return self.services.host.backends[self.target.backend]

    def converted(self, target: Target) -> Artifact:
        """The variant for another target of the same backend; from the store where it is there."""
        step = replace(self._step, id=f"{self._step.id}:{target.id}", target=target)
        done = convert.run(step, self._inputs, self.services)
        artifact: Artifact = done.value.artifact
        return artifact


@contextmanager
def opened(
    manifest: Path,
    choice: Choice,
    *,
    sets: Sequence[str],
    host: Host | None,
    check: Callable[[Services], None],
    on_plan: Callable[[Plan], Any],
    tell: Callable[[str], None],
) -> Iterator[Case]:
    """Choose a row, and run the steps that lead to its artifact.

    Parity is not asked for: an artifact that is too far off is just what is looked at here.

    Args:
        manifest: the file.
        choice: of the row.
        sets: overrides as ``key.path=value``.
        host: the loaded plugins; None: load them.
        check: raises where what is asked cannot be, before any step runs.
        on_plan: gives, for the plan, a context of a function that is told of the steps' progress.
        tell: told which device was chosen, and who holds one.

    Raises:
        UsageError: no row is like that, or several are.
        DataError: the manifest names no data to run.
        WherryError: a step failed.
    """
    from wherry.engine.local import run_steps

    prepared = prepare(
        manifest, overrides=sets, host=host, tell=tell, narrow=lambda whole: narrowed(whole, choice)
    )
    services = prepared.services
    services.run_directory = services.home / "debug" / prepared.run_id
    (row,) = services.plan.rows
    steps = services.plan.steps
    needed = {
        name: step for name, step in steps.items() if step.kind not in {"profile", "reference"}
    }
    services.plan = replace(services.plan, steps=needed)
    check(services)
    role = next((r for r in (EVALUATION, CALIBRATION) if f"data:{r}" in needed), None)
    if role is None:
        raise DataError(
            "layers are compared over real samples, and the manifest names no data",
            where=services.manifest.location("data"),
            remedy="Add `evaluation:` or `calibration:` below `data:`.",
        )
    try:
        with services.store.files():
            services.run_directory.mkdir(parents=True)
        with on_plan(services.plan) as on_event:
            outcomes = run_steps(services, on_event=on_event)
        for outcome in outcomes.values():
            if outcome.error is not None:
                raise outcome.error
        values = {
            name: outcome.result.value for name, outcome in outcomes.items() if outcome.result
        }
        step = needed[row.convert]
        told = (t for o in outcomes.values() if o.result for t in o.result.warnings)
        yield Case(
            services=services,
            variant=row.variant,
            target=row.target,
            original=values["model"],
            model=values[step.needs[0]],
            artifact=values[row.convert].artifact,
            dataset=values[f"data:{role}"],
            role=role,
            warnings=tuple(text for text in told if not text.startswith("parity was not checked")),
            _step=step,
            _inputs={name: values[name] for name in step.needs},
        )
        shutil.rmtree(services.run_directory, ignore_errors=True)  # else errors name its logs
    finally:
        services.release()
        shutil.rmtree(services.run_directory / SCRATCH, ignore_errors=True)


def narrowed(manifest: Manifest, choice: Choice) -> Manifest:
    """The manifest with one row alone, and without thresholds for parity.

    Rows that differ in nothing but how the artifact is run (threads and the like) give the same
    values: the first stands for them.

    Raises:
        UsageError: see `opened`.
    """
    for option in choice.options:
        if "=" not in option:
            raise UsageError(
                f"--option {option} has no value", remedy="Write KEY=VALUE, e.g. threads=4."
            )
    rows = [
        (variant, target) for variant, target in manifest.rows if _fits(variant, target, choice)
    ]
    words = [f"{variant}: {target.describe()}" for variant, target in rows or manifest.rows]
    listed = "; ".join(words[:8]) + (f"; and {len(words) - 8} more" if len(words) > 8 else "")
    if not rows:
        raise UsageError(
            f"no row of the manifest is like that; there are {listed}",
            where=str(manifest.path),
            remedy="Correct --variant, --backend, --precision, --device or --option.",
        )
    made = {
        (variant, t.backend, t.precision, t.device, str(split_options(t.options)[0]))
        for variant, t in rows
    }
    if len(made) > 1:
        raise UsageError(
            f"{len(made)} rows of the manifest are like that, and one is debugged: {listed}",
            where=str(manifest.path),
            remedy="Say more: --variant, --backend, --precision, --device or --option KEY=VALUE.",
        )
    variant, target = rows[0]
    return replace(
        manifest,
        rows=((variant, target),),
        targets=(target,),
        parity=ParitySection(samples=0),
    )


def _fits(variant: str, target: Target, choice: Choice) -> bool:
    options = target.options.model_dump(mode="json")
    wanted = [option.partition("=") for option in choice.options]
    return (
        choice.variant in {None, variant}
        and choice.backend in {None, target.backend}
        and choice.precision in {None, target.precision}
        and choice.device in {None, target.device}
        and all(str(options.get(key)).lower() == value.lower() for key, _, value in wanted)
    )


class Spread(Dataset):
    """Some samples of another dataset, evenly spread over it: many are sorted by class.

    Args:
        dataset: the whole.
        count: of samples; all of a smaller one.
    """

    def __init__(self, dataset: Dataset, count: int) -> None:
        self._dataset = dataset
        self.classes = dataset.classes
        length = len(dataset)
        count = min(count, length)
        self._indices = tuple(index * length // count for index in range(count))
        self.name = f"{count} of {dataset.name}"

    @property
    def digest(self) -> str:
        """See `Dataset`."""
        if len(self) == len(self._dataset):
            return self._dataset.digest
        return hashlib.sha256(f"{self._dataset.digest} {self._indices}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._dataset[self._indices[index]]

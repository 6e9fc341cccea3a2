"""Converts and runs one model with one backend, without a manifest, a plan or a store."""

from __future__ import annotations

import hashlib
import sys
import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from wherry.artifact import Artifact
from wherry.calibration import Calibration, CalibrationSettings
from wherry.dataset import Dataset, Sample
from wherry.device import Device, DeviceSpec
from wherry.engine.environments import Environments
from wherry.engine.lending import Lending
from wherry.engine.worker import Limits, run_tool
from wherry.errors import UsageError
from wherry.home import home
from wherry.host import Host
from wherry.measurement import MeasureSettings
from wherry.model import Model
from wherry.normalise import Normalised, normalise
from wherry.passes import PassStep
from wherry.plan import CALIBRATION, TRAINING
from wherry.requirements import Requirements
from wherry.target import Target

Inputs = Mapping[str, np.ndarray]

_SHORT = MeasureSettings(warmup_s=0.02, warmup_runs=2, duration_s=0.05)


class Workshop(Lending):
    """Environments are made below wherry's home, so that they serve later runs too.

    Args:
        host: the loaded plugins.
        folder: an empty one, for what is made.
    """

    def __init__(self, host: Host, folder: Path) -> None:
        self._host = host
        self._folder = folder
        self.home = home()
        self.cancelled = threading.Event()
        self.environments = Environments(self.home, self.cancelled)

    def convert(self, model: Model, target: Target, samples: Sequence[Inputs]) -> Artifact:
        """Calibrate on the samples where the backend asks for it, then convert."""
        calibration: Calibration | None = None
        if self._host.backends[target.backend].needs_calibration(target):
            calibration = self.calibrate(model, target, _Samples(samples))
        return self._host.convert(model, target, calibration, self._context())

    def calibrate(
        self,
        model: Model,
        target: Target,
        dataset: Dataset,
        settings: CalibrationSettings | None = None,
    ) -> Calibration:
        """The ranges that a target's backend is given."""
        context = replace(self._context(), settings=settings or CalibrationSettings())
        return self._host.calibrate(model, dataset, target, context)

    def optimize(
        self,
        model: Model,
        step: PassStep,
        samples: Sequence[Inputs],
        *,
        labels: Sequence[int] | None = None,
        original: Model | None = None,
    ) -> tuple[Model, Mapping[str, Any]]:
        """Apply one pass: the model, and what the pass tells of what it did.

        Args:
            model: with static shapes.
            step: the pass.
            samples: for whatever data it needs.
            labels: one for each sample.
            original: the model before any pass; None: ``model``.
        """
        needs = self._host.passes[step.name].needed(step.parameters)
        roles = [role for role in (CALIBRATION, TRAINING) if role in needs]
        data: dict[str, Dataset] = {role: _Samples(samples, labels) for role in roles}
        context = replace(self._context(), data=data, given=original or model)
        return self._host.optimize(model, step, context), context.figures

    def run(
        self, artifact: Artifact, target: Target, samples: Sequence[Inputs]
    ) -> list[Mapping[str, np.ndarray]]:
        """The outputs of an artifact on this machine, by ONNX name, per sample."""
        backend = self._host.backends[target.backend]
        with (
            self._device().session(lease=False) as session,
            session.host(artifact, target, backend, {}) as runner,
        ):
            return list(runner.infer(samples))

    def time_layers(
        self, artifact: Artifact, target: Target, sample: Inputs
    ) -> tuple[Mapping[str, np.ndarray] | None, np.ndarray]:
        """See `wherry.device.HostedRunner.time_layers`; and the times of whole inferences, ns."""
        backend = self._host.backends[target.backend]
        if backend.dissect is not None:
            artifact = backend.dissect(artifact, self._context())
        with (
            self._device().session() as session,
            session.host(artifact, target, backend, {}) as runner,
        ):
            whole = runner.time(sample, _SHORT)
            return runner.time_layers(sample, _SHORT.duration_s), whole.infer_ns

    def _device(self) -> Device:
        """This machine as a board."""
        transport = next(t for t in self._host.transports.values() if t.host)
        return transport.connect(DeviceSpec("local", transport.name, transport.parameters()), self)

    def _context(self) -> _Context:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        for name in ("output", "scratch"):
            (folder / name).mkdir()
        return _Context(self.environments, folder / "output", folder / "scratch", folder / "log")


@dataclass(frozen=True)
class _Context:
    """`wherry.context.CalibrateContext` and `OptimizeContext`; what a hook says goes to its log."""

    environments: Environments
    output: Path
    scratch: Path
    log: Path
    settings: CalibrationSettings = field(default_factory=CalibrationSettings)
    data: Mapping[str, Dataset] = field(default_factory=dict)
    given: Model | None = None
    seed: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    unfinished: Path | None = None

    @property
    def original(self) -> Model:
        assert self.given is not None, "of a pass alone"
        return self.given

    def latency_ms(
        self, model: Model, backend: str, device: str | None = None, precision: str = "fp32"
    ) -> float:
        raise UsageError(
            f"a workshop has no targets: {backend} {precision} cannot time {model.path.name} "
            f"on {device or 'any device'}",
            remedy="Test a pass that measures in a run of a manifest.",
        )

    def record(self, values: Mapping[str, Any]) -> None:
        self.figures.update(values)

    def run_tool(
        self, script: Path, request: Mapping[str, Any], *, requirements: Requirements | None
    ) -> dict[str, Any]:
        python = Path(sys.executable)
        if requirements is not None:
            python = self.environments.ensure(requirements)
        return run_tool(
            python,
            script,
            request,
            scratch=self.scratch,
            log=self.log,
            limits=Limits(),
            progress=self.progress,
        )

    def normalised(self, model: Model, also: Collection[str] = ()) -> Normalised:
        found = normalise(model, Path(tempfile.mkdtemp(dir=self.scratch)), also)
        for text in found.warnings:
            self.warn(text)
        return found

    def progress(self, text: str) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{text}\n")

    def warn(self, text: str) -> None:
        self.progress(f"warning: {text}")


class _Samples(Dataset):
    """Samples in memory."""

    def __init__(self, samples: Sequence[Inputs], labels: Sequence[int] | None = None) -> None:
        self.name = "samples"
        self._samples = samples
        self._labels = labels

    @property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for sample in self._samples:
            for name, array in sample.items():
                digest.update(name.encode() + array.tobytes())
        return hashlib.sha256(f"{digest.hexdigest()} {self._labels}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self._samples[index], self._labels[index] if self._labels else None)

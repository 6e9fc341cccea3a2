"""What a stage hook is given besides its inputs: a place to work, a log, and a way to run tools."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wherry.requirements import Requirements

if TYPE_CHECKING:
    import numpy as np

    from wherry.calibration import CalibrationSettings
    from wherry.dataset import Dataset
    from wherry.measurement import MeasureSettings
    from wherry.metrics import Metric
    from wherry.model import Model
    from wherry.normalise import Normalised
    from wherry.target import Backend


class StepContext(Protocol):
    """Given to every stage hook.

    Attributes:
        output: an empty folder; what the hook leaves there becomes the store's entry.
        scratch: another empty folder, deleted when the step ends.
        log: the step's log file, shown in its errors.
    """

    @property
    def output(self) -> Path: ...

    @property
    def scratch(self) -> Path: ...

    @property
    def log(self) -> Path: ...

    def run_tool(
        self,
        script: Path,
        request: Mapping[str, Any],
        *,
        requirements: Requirements | None,
    ) -> dict[str, Any]:
        """Run ``script REQUEST.json RESPONSE.json`` in its own process and environment.

        The script imports nothing of ours. It reads the request (JSON) and writes the response
        (a JSON object); to refuse, it writes ``{"error": {"message": ..., "where": ..., "remedy":
        ..., "unsupported": bool}}``, which is raised here as `ToolError` or `UnsupportedError`.
        What it prints goes to the step's log. A crash, a hang and a memory hog end in `ToolError`.

        Args:
            script: the file to run.
            request: JSON values; paths as strings.
            requirements: the environment, made on first use; None: the host's own interpreter.
        """
        ...

    def normalised(self, model: Model, also: Collection[str] = ()) -> Normalised:
        """The model in the form that all converters read alike; made once for all backends.

        Args:
            model: that the hook was given.
            also: passes of `wherry.normalise.OPTIONAL`.
        """
        ...

    def progress(self, text: str) -> None:
        """Say what is being done, for the progress display."""
        ...

    def warn(self, text: str) -> None:
        """Say something that the report has to show beside this step's result."""
        ...


class OptimizeContext(StepContext, Protocol):
    """Given to ``wherry_optimize``.

    Attributes:
        data: role (``calibration``, ``training``) to its samples, preprocessed as the model takes
            them; those that ``Pass.needed`` names.
        original: the manifest's model, before any pass; asked for by ``original`` in
            ``Pass.needs``.
        seed: of everything that is drawn by chance; asked for by ``seed`` there.
        unfinished: a folder, not there at first, that outlives a step which is interrupted: the
            same step finds it again, alone. It is removed when the step is done. None: there is
            no place for one.
    """

    @property
    def data(self) -> Mapping[str, Dataset]: ...

    @property
    def original(self) -> Model: ...

    @property
    def seed(self) -> int: ...

    @property
    def unfinished(self) -> Path | None: ...

    def latency_ms(
        self, model: Model, backend: str, device: str | None = None, precision: str = "fp32"
    ) -> float:
        """Convert a candidate and time it on a target of the manifest; for ``device`` there.

        Args:
            model: with static shapes.
            backend: of the target.
            device: of the target; None: the only one that the manifest has for this backend.
            precision: of the target; one that needs no calibration.
        """
        ...

    def record(self, values: Mapping[str, Any]) -> None:
        """Say for the report what the pass did, in figures: JSON values by name."""
        ...


class CalibrateContext(StepContext, Protocol):
    """Given to ``wherry_calibrate``.

    Attributes:
        settings: how the ranges are to be chosen.
    """

    @property
    def settings(self) -> CalibrationSettings: ...


class ProfileContext(StepContext, Protocol):
    """Given to ``wherry_profile``.

    Attributes:
        backend: the descriptor of the target's backend.
        round: 0, 1, ...: accuracy and memory are taken in round 0 alone.
        settings: how long to warm up and to measure.
        metrics: fresh metrics to feed with outputs, by name; empty when ``round > 0``.
        sustained_s: above 0 in one round more than ``settings.rounds``, at the end: run so many
            seconds without pause, and return a measurement with ``sustained``, of which nothing
            else is taken.
        layers: in one round more than ``settings.rounds``: time the artifact's layers, and return
            a measurement with ``layers``, of which nothing else is taken. The artifact is then
            what ``Backend.dissect`` made, where the backend has that.
        reference: outputs of the original model in fp32 for sample ``index`` of the evaluation
            set, keyed by ONNX output name.
    """

    @property
    def backend(self) -> Backend: ...

    @property
    def round(self) -> int: ...

    @property
    def settings(self) -> MeasureSettings: ...

    @property
    def sustained_s(self) -> float: ...

    @property
    def layers(self) -> bool: ...

    @property
    def metrics(self) -> Mapping[str, Metric]: ...

    def reference(self, index: int) -> Mapping[str, np.ndarray]: ...

    def preprocess(self) -> Mapping[str, Mapping[str, Any]]:
        """Per model input, its declared preprocessing (``wherry.preprocess``), JSON values."""
        ...

"""Whether an artifact is still the same network: compared where it runs, on the user's samples.

On the host, as part of the convert stage; where the host cannot run it, on the board, before it is
measured there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.parity import OutputParity, Parity, check, compare
from wherry.plan import CALIBRATION, EVALUATION
from wherry.reference import Reference, open_session, random_inputs, run_session
from wherry.stages.context import HostContext, take_or_build
from wherry.stages.keys import agent_code, files_digest, own_code, own_lock
from wherry.stages.prepare import model_ready
from wherry.stages.services import Services
from wherry.store import Key
from wherry.target import Backend, Target, split_options

if TYPE_CHECKING:
    from wherry.artifact import Artifact
    from wherry.dataset import Dataset
    from wherry.device import Session
    from wherry.model import Model
    from wherry.store import Entry

PARITY_FILE = "parity.json"


@dataclass(frozen=True)
class Comparison:
    """An artifact, the model that it was made from, and what both are run on.

    Attributes:
        dataset: the evaluation set, else the calibration's samples, else None: made-up inputs.
        samples: how many are compared; 0: the manifest wants no comparison.
    """

    artifact: Artifact
    model: Model
    target: Target
    backend: Backend
    dataset: Dataset | None
    samples: int

    @classmethod
    def of(
        cls,
        artifact: Artifact,
        model: Model,
        target: Target,
        inputs: Mapping[str, Any],
        services: Services,
    ) -> Comparison:
        """With the data among a step's inputs."""
        dataset = inputs.get(f"data:{EVALUATION}") or inputs.get(f"data:{CALIBRATION}")
        backend = services.host.backends[target.backend]
        return cls(artifact, model, target, backend, dataset, services.manifest.parity.samples)

    def on(
        self, device: str, services: Services, step: str, session: Session | None = None
    ) -> tuple[Parity, bool, tuple[str, ...]]:
        """Compare on a device, or take it from the store.

        Args:
            device: its name.
            services: of the run.
            step: for the log.
            session: that is open there; None: one without the lease is opened.

        Returns:
            The figures, whether they were in the store, and warnings.

        Raises:
            ParityError: an output is too far off.
            EnvironmentError_: the device has no runtime for it.
            UnsupportedError: the device lacks what the runner needs of it.
        """
        key = Key("parity", self.run_parts(device, services))

        def build(context: HostContext) -> None:
            context.progress("checking parity")
            reference = Reference(self.model)
            opened: AbstractContextManager[Session] = (
                services.session(device, lease=False) if session is None else nullcontext(session)
            )
            with (
                opened as board,
                board.host(self.artifact, self.target, self.backend, {}) as runner,
            ):
                samples = runner.infer(self._inputs(services))
                figures = compare(samples, map(reference.run, self._inputs(services)))
            _keep(figures, context)

        entry, cached, warnings = take_or_build(services, step, key, build)
        return self._checked(_read(entry), services), cached, warnings

    def of_stand_in(self, services: Services, step: str) -> Parity | None:
        """Compare what a board starts from, on the host's ONNX Runtime; see `Backend.stand_in`.

        Returns:
            The figures; None: the artifact has no such file.

        Raises:
            ParityError: an output is too far off.
        """
        found = None if self.backend.stand_in is None else self.backend.stand_in(self.artifact)
        if found is None:
            return None
        path = found

        def build(context: HostContext) -> None:
            context.progress("checking parity of what the board starts from")
            samples = _outputs_of(path, self.artifact, self._inputs(services))
            reference = Reference(self.model)
            figures = compare(samples, map(reference.run, self._inputs(services)))
            _keep(figures, context)

        key = Key(
            "parity",
            {
                "artifact": self.artifact.digest,
                "stand_in": path.name,
                **self.sample_parts(services),
                "code": own_code("data/views", "parity", "preprocess", "reference"),
                "host": own_lock(),
            },
        )
        entry, _, _ = take_or_build(services, step, key, build)
        return self._checked(_read(entry), services)

    def _checked(self, figures: Parity, services: Services) -> Parity:
        precision = self.target.precision
        threshold = services.manifest.parity.thresholds.get(precision)
        check(
            figures,
            threshold or self.backend.threshold(precision),
            where="parity",
            precision=precision,
        )
        return figures

    def _inputs(self, services: Services) -> Iterator[Mapping[str, np.ndarray]]:
        if self.dataset is None:
            return iter(random_inputs(self.model.inputs, self.samples, services.manifest.seed))
        ready = model_ready(self.dataset, self.model, services)
        return (sample.inputs for sample in islice(ready, self.samples))

    def run_parts(self, device: str, services: Services) -> dict[str, Any]:
        """All that decides what the artifact and the model give there: parts of a key.

        Raises:
            EnvironmentError_: the device has no runtime for it.
        """
        probed = services.probe(device)
        _, options = split_options(self.target.options)
        options.pop("threads", None)
        return {
            "artifact": self.artifact.digest,
            **self.sample_parts(services),
            "options": options,
            "runtime": probed.runtime(self.backend.name),
            "runner": files_digest(self.backend.board_code),
            "agent": agent_code(services, device),
            "board": probed.info.fingerprint,
            "code": own_code("data/views", "parity", "preprocess", "reference"),
            "host": own_lock(),
        }

    def sample_parts(self, services: Services) -> dict[str, Any]:
        """The part of a key that says what both were run on."""
        manifest = services.manifest
        return {
            "model": self.model.digest,
            "data": self.dataset.digest if self.dataset else {"random": manifest.seed},
            "preprocess": dict(manifest.model.preprocess) if self.dataset else {},
            "samples": self.samples,
        }


def _outputs_of(
    path: Path, artifact: Artifact, samples: Iterable[Mapping[str, np.ndarray]]
) -> Iterator[dict[str, np.ndarray]]:
    """Outputs of an artifact's ONNX file, node by node: no kernel of 8 bits can overflow."""
    session = open_session(str(path), threads=1, where=str(path), as_written=True)
    for sample in samples:
        given = {b.runtime: sample[b.onnx].astype(b.dtype) for b in artifact.inputs}
        outputs = run_session(session, given, where=str(path))
        yield {binding.onnx: outputs[binding.runtime] for binding in artifact.outputs}


def _keep(figures: Parity, context: HostContext) -> None:
    for text in figures.warnings:
        context.warn(text)
    (context.output / PARITY_FILE).write_text(json.dumps(asdict(figures), indent=1))


def _read(entry: Entry) -> Parity:
    values = json.loads((entry.directory / PARITY_FILE).read_text())
    per_output = {name: OutputParity(**fields) for name, fields in values["per_output"].items()}
    return Parity(
        values["sqnr_db"],
        values["cosine"],
        per_output,
        values["samples"],
        tuple(values["warnings"]),
    )

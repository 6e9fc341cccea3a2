"""Every hook of wherry, and nothing else.

A plugin is a module (or an object) named by an entry point of the group ``wherry``::

    [project.entry-points.wherry]
    mine = "my_package.plugin"

It marks its functions with `hookimpl`. Registration hooks yield frozen descriptors. Stage hooks do
the work: the host calls one on the plugin that owns the pass or the target's backend, else on the
default (an implementation marked ``trylast=True``), and around it every wrapper
(``@hookimpl(wrapper=True)``) of any plugin. The examples below are run by the tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from wherry.artifact import Artifact
    from wherry.calibration import Calibration
    from wherry.context import ProfileContext, StepContext
    from wherry.dataset import Dataset, DatasetSource
    from wherry.device import Session, Transport
    from wherry.measurement import Measurement
    from wherry.metrics import MetricKind
    from wherry.model import Model
    from wherry.passes import Pass, PassStep
    from wherry.reports import Report
    from wherry.target import Backend, Target
    from wherry.zoo import ZooModel

hookspec = pluggy.HookspecMarker("wherry")
hookimpl = pluggy.HookimplMarker("wherry")


@hookspec
def wherry_backends() -> Iterable[Backend]:
    """Yield the backends of this plugin. Called once, when the host starts."""
    raise NotImplementedError


@hookspec
def wherry_passes() -> Iterable[Pass]:
    """Yield the optimisation passes of this plugin. Called once, when the host starts."""
    raise NotImplementedError


@hookspec
def wherry_transports() -> Iterable[Transport]:
    """Yield the ways to reach boards. Called once, when the host starts."""
    raise NotImplementedError


@hookspec
def wherry_datasets() -> Iterable[DatasetSource]:
    """Yield the sources of data. Called once, when the host starts."""
    raise NotImplementedError


@hookspec
def wherry_metrics() -> Iterable[MetricKind]:
    """Yield the metrics. Called once, when the host starts."""
    raise NotImplementedError


@hookspec
def wherry_reports() -> Iterable[Report]:
    """Yield the forms of a report. Called once, when the host starts."""
    raise NotImplementedError


@hookspec
def wherry_models() -> Iterable[ZooModel]:
    """Yield network designs for ``zoo:`` in manifests. Called once, when the host starts."""
    raise NotImplementedError


@hookspec
def wherry_commands() -> Iterable[click.Command]:
    """Yield verbs for the command line. Called when a verb is not one of wherry's own."""
    raise NotImplementedError


@hookspec(firstresult=True)
def wherry_optimize(model: Model, step: PassStep, context: StepContext) -> Model | None:
    """Apply one pass. Called once for each pass of a variant, in order.

    Write the new model below ``context.output`` and return it.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def wherry_calibrate(
    model: Model, dataset: Dataset, target: Target, context: StepContext
) -> Calibration | None:
    """Find the ranges of the activations. Called once per model, data and method.

    Only for targets whose backend lists the precision in ``Backend.calibrated``.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def wherry_convert(
    model: Model, target: Target, calibration: Calibration | None, context: StepContext
) -> Artifact | None:
    """Convert a model with static shapes. Called once per model, precision and convert options.

    Write the files below ``context.output`` and return their description.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def wherry_profile(
    artifact: Artifact,
    target: Target,
    dataset: Dataset | None,
    session: Session,
    context: ProfileContext,
) -> Measurement | None:
    """Measure one target in one round. Called in shuffled order over the targets of a board.

    ``dataset`` is the evaluation set: its first sample is timed; in round 0 all of it is scored
    into ``context.metrics``. None: zeros are timed and nothing is scored.
    """
    raise NotImplementedError

"""The default of ``wherry_profile``: one target, one round, timed and scored by the agent."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from wherry.artifact import Artifact
from wherry.context import ProfileContext
from wherry.dataset import Dataset
from wherry.device import HostedRunner, Session
from wherry.errors import DataError
from wherry.measurement import Measurement
from wherry.target import Target
from wherry_devices.disturbances import disturbances
from wherry_devices.energy import energy
from wherry_devices.sustained import summarise

_PROGRESS = 500  # samples between two words on the progress


def profile(
    artifact: Artifact,
    target: Target,
    dataset: Dataset | None,
    session: Session,
    context: ProfileContext,
) -> Measurement:
    """Time the first sample (zeros without a dataset), then score all of them where asked.

    Timing comes first: the memory is then that of one inference, and the board has not been
    heated by the evaluation. The times of layers and the run without pause, where they are asked
    for, are rounds of their own.
    """
    if context.sustained_s:
        return _sustained(artifact, target, dataset, session, context)
    if context.layers:
        return _layers(artifact, target, dataset, session, context)
    preprocess = context.preprocess() if dataset is not None else {}
    with session.host(artifact, target, context.backend, preprocess) as hosted:
        context.progress("timing")
        timing = hosted.time(_timed_sample(artifact, dataset), context.settings)
        first_round = context.round == 0
        peak = hosted.peak_memory_bytes() if first_round else None
        evaluated = 0
        if dataset is not None and context.metrics:
            evaluated = _evaluate(artifact, dataset, hosted, context)
        versions = dict(hosted.versions)
        told = {**hosted.record, **timing.record}
    found = disturbances(timing.sensors, session.info.cores)
    spent = None if session.info.emulated else energy(timing.sensors, timing.total_ns)
    extra: dict[str, Any] = {"runtime": versions}
    if told:
        extra["runner"] = told
    if spent is not None:
        extra["energy"] = {
            "method": spent.method,
            "source": spent.source,
            "power_w": spent.power_w,
        }
    return Measurement(
        infer_ns=timing.infer_ns,
        total_ns=timing.total_ns,
        round_sizes=(len(timing.infer_ns),),
        load_ms=(hosted.load_ms,),
        first_ms=(hosted.first_ms,),
        warmup_runs=(timing.warmup_runs,),
        steady=(timing.steady,),
        metrics={name: metric.result() for name, metric in context.metrics.items()},
        peak_memory_bytes=peak,
        sensors=timing.sensors,
        clean=not found,
        disturbances=found,
        timed_by=timing.timed_by,
        emulated=session.info.emulated,
        evaluated=evaluated,
        energy_mj=None if spent is None else spent.mj,
        extra=extra,
    )


def _sustained(
    artifact: Artifact,
    target: Target,
    dataset: Dataset | None,
    session: Session,
    context: ProfileContext,
) -> Measurement:
    """The run without pause; its samples are the medians of its windows."""
    preprocess = context.preprocess() if dataset is not None else {}
    with session.host(artifact, target, context.backend, preprocess) as hosted:
        context.progress(f"running for {context.sustained_s:g} s")
        points = hosted.sustain(_timed_sample(artifact, dataset), context.sustained_s)
    medians = np.array([point["median_ms"] * 1e6 for point in points]).astype(np.uint64)
    return Measurement(
        infer_ns=medians,
        total_ns=medians,
        round_sizes=(len(medians),),
        load_ms=(hosted.load_ms,),
        first_ms=(hosted.first_ms,),
        warmup_runs=(0,),
        steady=(False,),
        emulated=session.info.emulated,
        sustained=summarise(points, context.sustained_s),
    )


def _layers(
    artifact: Artifact,
    target: Target,
    dataset: Dataset | None,
    session: Session,
    context: ProfileContext,
) -> Measurement:
    """The times of layers; its samples are their sums over each inference."""
    preprocess = context.preprocess() if dataset is not None else {}
    with session.host(artifact, target, context.backend, preprocess) as hosted:
        context.progress("timing layers")
        found = hosted.time_layers(_timed_sample(artifact, dataset), context.settings.duration_s)
    sums = np.zeros(1, np.uint64)
    if found:
        sums = np.sum(list(found.values()), axis=0, dtype=np.uint64)
    return Measurement(
        infer_ns=sums,
        total_ns=sums,
        round_sizes=(len(sums),),
        load_ms=(hosted.load_ms,),
        first_ms=(hosted.first_ms,),
        warmup_runs=(0,),
        steady=(False,),
        emulated=session.info.emulated,
        layers={name: float(np.median(times)) / 1e6 for name, times in (found or {}).items()},
        layer_runs=len(sums) if found else 0,
    )


def _timed_sample(artifact: Artifact, dataset: Dataset | None) -> Mapping[str, np.ndarray]:
    if dataset is not None:
        return _named(artifact, dataset[0].inputs)
    return {binding.onnx: np.zeros(binding.shape, binding.dtype) for binding in artifact.inputs}


def _named(artifact: Artifact, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """A sample's inputs by the model's names: ``""`` stands for the only one."""
    if "" not in inputs:
        return inputs
    if len(inputs) != 1 or len(artifact.inputs) != 1:
        names = ", ".join(binding.onnx for binding in artifact.inputs)
        raise DataError(
            f"the dataset does not name its inputs, and the model has several: {names}",
            remedy="Name the inputs in the manifest's data section.",
        )
    return {artifact.inputs[0].onnx: inputs[""]}


def _evaluate(
    artifact: Artifact, dataset: Dataset, hosted: HostedRunner, context: ProfileContext
) -> int:
    """Stream the dataset through the runner into the metrics; how many samples there were."""
    labels: collections.deque[int | np.ndarray | None] = collections.deque()

    def samples() -> Iterator[Mapping[str, np.ndarray]]:
        for sample in dataset:
            labels.append(sample.label)
            yield _named(artifact, sample.inputs)

    count = broken = 0
    for outputs in hosted.infer(samples()):
        reference, label = context.reference(count), labels.popleft()
        for metric in context.metrics.values():
            metric.update(outputs, reference, label)
        count += 1
        broken += _is_broken(outputs, reference)
        if count % _PROGRESS == 0:
            context.progress(f"{count}/{len(dataset)} samples")
    if broken:
        context.warn(f"{broken} of {count} samples gave NaN or infinity, unlike the original")
    return count


def _is_broken(outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> bool:
    return any(
        not np.isfinite(outputs[name]).all() and bool(np.isfinite(expected).all())
        for name, expected in reference.items()
        if name in outputs and expected.dtype.kind == "f"
    )

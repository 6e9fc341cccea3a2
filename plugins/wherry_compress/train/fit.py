"""The pass ``fit``: training against the original, in one process or in several.

`teach` prepares what `wherry_compress.train.loop.train` needs from a job, for this pass and for
others that train in a way of their own, by hooks.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from wherry.model import Model
from wherry.normalise import normalise
from wherry.reference import open_session, run_session
from wherry_compress.job import Data, Done, Job, Refusal, tell
from wherry_compress.train import processes
from wherry_compress.train.checkpoints import Checkpoints
from wherry_compress.train.distil import (
    Distillation,
    Target,
    Taught,
    ask,
    check_same,
    find_targets,
    scorer,
)
from wherry_compress.train.loop import DivergedError, Hook, Settings, State, train
from wherry_compress.train.masks import KeepZeros
from wherry_compress.train.network import Network

_CLOSE = 1e-3  # of an output's root mean square: torch and ONNX Runtime round differently
_SCORED = 256  # samples at a time
_SETTLING = 16  # batches


def apply(job: Job) -> Done:
    """The trained model; its figures are the steps, the losses, what the held-out samples say."""
    device = set_up(job.parameters)
    answers = _prepared(job)
    count = job.parameters["processes"]
    network = student(job)
    if count == 1:
        told = _trained(processes.Group(), job, answers, network)
    else:
        result = job.scratch / "result"
        result.mkdir()
        meeting = processes.Meeting(job.scratch / "meeting", count, device.type)
        processes.run(meeting, _one_of_many, job, answers, result)
        told = json.loads((result / "figures.json").read_text())
        if "refused" in told:
            raise Refusal(**told["refused"])
        network.load_state_dict(torch.load(result / "state.pt", weights_only=True))
    made = network.proto()
    if job.parameters["fold"] and network.batch_norms:
        made = _folded(made, job.scratch)
    return Done(made, told["figures"], tuple(told["warnings"]))


def _folded(model: onnx.ModelProto, scratch: Path) -> onnx.ModelProto:
    """The normal form; it is proved to be equal."""
    folder = scratch / "folded"
    folder.mkdir()
    onnx.save(model, folder / "fitted.onnx")
    return normalise(Model.load(folder / "fitted.onnx"), folder).model.proto()


def set_up(parameters: Mapping[str, Any]) -> torch.device:
    """The device, and torch made deterministic; to be called first in a process.

    Args:
        parameters: those of `wherry_compress.train.passes.Training`.

    Raises:
        Refusal: there are not as many GPUs as are asked for.
    """
    asked, count = parameters["device"], parameters["processes"]
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    on_gpus = asked == "cuda" or (asked == "auto" and there >= count)
    if on_gpus and there < count:
        raise Refusal(
            f"the training is to have a GPU for each process, {count}, and torch finds {there}",
            remedy="Leave `device` out, take fewer `processes`, or install a torch that fits the "
            "GPU's driver.",
        )
    if parameters["precision"] == "fp16" and not on_gpus:
        raise Refusal("fp16 is trained on GPUs", remedy="Set `precision: bf16`, or leave it out.")
    if on_gpus:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads it; a tenth
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    return torch.device("cuda" if on_gpus else "cpu")


def student(job: Job, *, outputs: Sequence[str] = ()) -> Network:
    """The job's model as a network to be trained, checked against ONNX Runtime on two samples.

    Args:
        job: its parameters are those of `wherry_compress.train.passes.Training`.
        outputs: tensors that are asked for beside those that the loss needs.
    """
    model, parameters = job.load(), job.parameters
    asked = [target.tensor for target in find_targets(model, parameters["outputs"])]
    network = Network(
        model,
        outputs=[*asked, *parameters["features"], *outputs],
        momentum=parameters["bn_momentum"],
        fixed=parameters["batch_norm"] == "fixed",
    )
    if not network.weights:
        raise Refusal("the network has no weights that could be trained")
    if parameters["batch_norm"] == "batch":
        for name in network.idle_biases():
            network.weights[name].requires_grad_(requires_grad=False)
    _prove(network, model, job.data["training"])
    return network


def _prove(network: Network, model: onnx.ModelProto, data: Data) -> None:
    """Torch gives for a batch of two what ONNX Runtime gives for each."""
    samples = list(data.samples(2))
    session = open_session(model.SerializeToString(), threads=1, where="", as_written=True)
    wanted = [run_session(session, sample, where="") for sample in samples]
    network.eval()
    with torch.no_grad():
        given = {
            name: torch.from_numpy(np.concatenate([sample[name] for sample in samples]))
            for name in samples[0]
        }
        found = network(given)
    for name, *_ in ((value.name,) for value in model.graph.output):
        theirs = np.stack([each[name] for each in wanted]).astype(np.float64)
        error = float(np.abs(found[name].double().numpy() - theirs).max(initial=0))
        if not error <= _CLOSE * max(float(np.sqrt(np.mean(theirs**2))), 1e-6):
            raise Refusal(
                f"torch computes the output {name!r} otherwise than ONNX Runtime, by {error:.2g}: "
                "the network cannot be trained",
                where=name,
                remedy="Leave the pass out, and report the network: an operator is misread.",
            )


@dataclass(frozen=True)
class Lesson:
    """What a network is trained with.

    Attributes:
        samples: to be trained on.
        loss: of a batch of them.
        held_out: others, by which it is judged; None: there are none.
        score: name of the figure on these, and the function that finds it.
        targets: the outputs that are learnt.
    """

    samples: Taught
    loss: Distillation
    held_out: Taught | None
    score: tuple[str, Any] | None
    targets: Sequence[Target]


def teach(
    job: Job, network: Network, device: torch.device, answers: dict[str, Path] | None = None
) -> Lesson:
    """The job's training data, taught by its original.

    Args:
        job: its parameters are those of `wherry_compress.train.passes.Training`; it has training
            data and the original.
        network: that `student` gave.
        device: of the training.
        answers: the original's outputs, where they have been asked already.
    """
    parameters, data = job.parameters, job.data["training"]
    targets = find_targets(job.load(), parameters["outputs"])
    answers = _prepared(job) if answers is None else answers
    teacher = None
    if not answers:
        names = [target.output for target in targets]
        teacher = Network(_original(job), outputs=[*names, *parameters["features"]])
        check_same(network, teacher.shapes, [*names, *parameters["features"]])
        teacher.to(device).eval().requires_grad_(requires_grad=False)
    order = np.random.default_rng(job.seed).permutation(len(data))
    held = int(len(data) * parameters["held_out"])
    if len(data) - held < parameters["batch"]:
        raise Refusal(
            f"there are {len(data) - held} samples to train on, and a batch has "
            f"{parameters['batch']}",
            remedy="Make `batch` smaller, or give more training data.",
        )

    def part(indices: np.ndarray, shift: int) -> Taught:
        return Taught(
            data, indices, answers=answers or None, teacher=teacher, device=device, shift=shift
        )

    loss = Distillation(
        targets, parameters["temperature"], parameters["labels"], parameters["features"]
    )
    kept = part(np.sort(order[:held]), 0) if held else None
    score = None
    if kept is not None:
        by_labels = parameters["labels"] > 0
        score = scorer(network, kept, targets, labels=by_labels, batch=_SCORED)
    samples = part(np.sort(order[held:]), parameters["shift"])
    return Lesson(samples, loss, kept, score, targets)


def _prepared(job: Job) -> dict[str, Path]:
    """Check the job; the original's outputs, empty where it has to be asked again and again."""
    parameters, data = job.parameters, job.data["training"]
    assert job.original is not None, "the pass needs it"
    targets = find_targets(job.load(), parameters["outputs"])
    if parameters["labels"] > 0:
        _check_labels(targets, data.labels, parameters["labels"])
    if parameters["shift"] and not any(data.array(name).ndim == 5 for name in data.inputs):
        raise Refusal(
            f"fit is to move pictures (shift: {parameters['shift']}), and the network has no input "
            "of [batch, channels, height, width]",
            remedy="Take `shift` out.",
        )
    if parameters["shift"] or parameters["features"]:
        return {}
    shapes = {spec.name: spec.static_shape for spec in Model.load(job.original).outputs}
    for target in targets:
        if target.output not in shapes:
            raise Refusal(f"the original has no output {target.output!r}")
    path = job.scratch / "answers"
    path.mkdir(exist_ok=True)
    return ask(job.original, [target.output for target in targets], data, path)


def _check_labels(targets: Sequence[Target], labels: np.ndarray | None, share: float) -> None:
    """Raise `Refusal` unless the first output with classes has one for each label."""
    if labels is None:
        raise Refusal(
            f"fit is to learn from labels (labels: {share:g}), and the training data has none",
            remedy="Take `labels` out, or give training data with labels.",
        )
    target = next((each for each in targets if each.axis is not None), None)
    if target is None or target.axis is None:
        raise Refusal(
            "fit is to learn from labels, and no output holds classes",
            remedy="Take `labels` out, or set `outputs: classes`.",
        )
    classes = target.shape[target.axis - 1]
    if math.prod(target.shape) != classes:
        raise Refusal(
            f"fit is to learn from labels, one a sample, and the output {target.output!r} is "
            f"{list(target.shape)}: {classes} classes at several places",
            where=target.output,
            remedy="Take `labels` out.",
        )
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise Refusal(
            f"the labels of the training data are {least} to {most}, and the output "
            f"{target.output!r} has {classes} classes, 0 to {classes - 1}",
            where=target.output,
            remedy="Correct the labels, or take `labels` out.",
        )


def _original(job: Job) -> onnx.ModelProto:
    """In its normal form, so that torch has it as it has the network."""
    assert job.original is not None, "the pass needs it"
    folder = job.scratch / f"original{os.getpid()}"
    folder.mkdir(exist_ok=True)
    return normalise(Model.load(job.original), folder, {"keep batch norm"}).model.proto()


def settings(job: Job) -> Settings:
    """Of the loop, from a job's parameters."""
    names = ("epochs", "steps", "batch", "optimizer", "learning_rate", "momentum", "weight_decay",
             "schedule", "warm_up", "precision", "clip", "patience")  # fmt: skip
    return Settings(**{name: job.parameters[name] for name in names}, seed=job.seed)


class Settle(Hook):
    """Before the network is judged, its batch norms' statistics are measured on some batches.

    What they remember of the steps before is of weights that have moved since.
    """

    def __init__(self, samples: Taught, batch: int, group: processes.Group) -> None:
        self._samples = samples
        self._batch = batch
        self._group = group

    def after_epoch(self, state: State) -> None:
        """With batches that lie apart, the same in every epoch."""
        count = len(self._samples) // self._batch
        chosen = range(0, count, -(-count // _SETTLING))
        size = self._group.size
        mine = [index for place, index in enumerate(chosen) if place % size == self._group.rank]
        batches = (
            self._samples.batch(range(index * self._batch, (index + 1) * self._batch), None)
            for index in mine or chosen[:1]
        )
        state.network.settle(batches)
        self._group.average_statistics(state.network)


def _trained(
    group: processes.Group, job: Job, answers: dict[str, Path], network: Network
) -> dict[str, Any]:
    """Train the network in place; what there is to tell of it, JSON."""
    device = set_up(job.parameters)
    torch.set_num_threads(max(1, torch.get_num_threads() // group.size))
    if device.type == "cuda" and group.size > 1:
        device = torch.device("cuda", group.rank)
    network.to(device)
    lesson = teach(job, network, device, answers)
    hooks: list[Hook] = []
    zeros = KeepZeros(network)
    if job.parameters["keep_zeros"] and zeros.masks:
        hooks.append(zeros)
    hooks.append(Settle(lesson.samples, job.parameters["batch"], group))
    place = None if job.unfinished is None else Checkpoints(job.unfinished)
    before = None
    if lesson.score is not None:
        network.eval()
        with torch.no_grad():
            before = group.from_first(lesson.score[1])
    try:
        state = train(
            network, lesson.samples, lesson.loss, settings(job), hooks=hooks,
            score=None if lesson.score is None else lesson.score[1], checkpoints=place,
            tell=tell if group.rank == 0 else None, group=group,
        )  # fmt: skip
    except DivergedError as error:
        raise Refusal(
            f"fit did not converge: {error}",
            remedy="Make `learning_rate` smaller, or set `clip: 1`.",
        ) from error
    network.to("cpu")
    figures: dict[str, Any] = {
        "samples": len(lesson.samples), "steps": state.step, "epochs": len(state.history),
        "loss_first": round(state.history[0]["loss"], 6),
        "loss_last": round(state.history[-1]["loss"], 6),
        "device": device.type, "batch_norms": len(network.batch_norms),
    }  # fmt: skip
    warnings = []
    if lesson.score is not None and before is not None:
        after = max([before, *(line["score"] for line in state.history)])
        figures["held_out"] = {
            "samples": len(lesson.held_out or ()), "by": lesson.score[0],
            "before": round(before, 6), "after": round(after, 6),
        }  # fmt: skip
        if after == before and all(line["score"] < before for line in state.history):
            warnings.append(
                "fit made nothing better on the held-out samples: the network is as it was given"
            )
    if zeros.masks and job.parameters["keep_zeros"]:
        figures["weights_with_zeros"] = len(zeros.masks)
    return {"figures": figures, "warnings": warnings}


def _one_of_many(group: processes.Group, job: Job, answers: dict[str, Path], result: Path) -> None:
    """What each of several processes does; the first writes the result, or why there is none."""
    network = student(job)
    try:
        told = _trained(group, job, answers, network)
    except Refusal as refusal:  # of all processes alike
        known = {"message": refusal.message, "where": refusal.where, "remedy": refusal.remedy}
        told = {"refused": known}
    if group.rank == 0:
        torch.save(network.state_dict(), result / "state.pt")
        (result / "figures.json").write_text(json.dumps(told))

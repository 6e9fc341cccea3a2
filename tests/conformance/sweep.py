"""Every pass on every test network, and what each backend then makes of the result.

`make` applies the passes; `judge` converts what came out and runs it. All goes through what
wherry itself does, but that tools go on running (`trials.Warm`) and artifacts run without an agent.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from loading import load

from wherry.errors import ParityError, ToolError, UnsupportedError
from wherry.host import Host
from wherry.model import Model
from wherry.parity import check, compare
from wherry.passes import PassStep
from wherry.reference import Reference
from wherry.target import Target
from wherry.testing.workshop import Workshop

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parents[1] / "manifests" / "digits.onnx"
SIZE = 32  # side of the classics' pictures
SAMPLES = 8
LEAST_DB = 80.0
"""Of a pass that keeps the function, against the model that it was given."""

_TRAINING = {"steps": 2, "batch": 4, "held_out": 0.25}
_HALF = {"energy": 0.5, "only_where_faster": False}

PASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "simplify": ("simplify", {}),
    "equalize": ("equalize", {}),
    "prune.filters": ("prune.filters", {"macs": 0.6}),
    "prune.filters, width 1": (
        "prune.filters",
        {"macs": 0.8, "round_to": 1, "criterion": "fpgm", "allocation": "uniform"},
    ),
    "prune.channels-lasso": ("prune.channels-lasso", {"macs": 0.6}),
    "prune.weights": ("prune.weights", {"sparsity": 0.4}),
    "prune.weights, 2:4": ("prune.weights", {"pattern": "2:4"}),
    "prune.weights-trained": ("prune.weights-trained", {"sparsity": 0.4, **_TRAINING}),
    "lowrank.spatial-svd": ("lowrank.spatial-svd", _HALF),
    "lowrank.spatial-svd, scheme 1": (
        "lowrank.spatial-svd",
        {"ranks": {"*": 1}, "scheme": 1, "round_to": 1, "only_where_faster": False},
    ),
    "lowrank.channel-svd": ("lowrank.channel-svd", {**_HALF, "reconstruction": "data"}),
    "lowrank.tucker2": ("lowrank.tucker2", _HALF),
    "lowrank.cp": ("lowrank.cp", {"ranks": {"*": 8}, "only_where_faster": False}),
    "lowrank.fc-svd": ("lowrank.fc-svd", _HALF),
    "share.kmeans": ("share.kmeans", {"bits": 5}),
    "share.kmeans, fisher": ("share.kmeans", {"bits": 5, "fisher": True}),
    "share.kmeans, trained": ("share.kmeans", {"bits": 5, "train": _TRAINING}),
    "share.ecsq": ("share.ecsq", {"bits": 4}),
    "share.ecsq, fisher": ("share.ecsq", {"bits": 4, "fisher": True}),
    "share.vq": ("share.vq", {"bits": 5, "length": 2}),
    "share.vq, corrected": ("share.vq", {"bits": 5, "length": 2, "correct": True}),
    "share.pq": ("share.pq", {"bits": 4, "length": 2}),
    "share.rq": ("share.rq", {"bits": 4, "length": 2}),
    "pack.huffman": ("pack.huffman", {}),
    "bn.restore": ("bn.restore", {}),
    "bn.reestimate": ("bn.reestimate", {}),
    "fit": ("fit", _TRAINING),
    "int8.adaround": ("int8.adaround", {"samples": 4, "iterations": 10}),
    "int8.bias-correction": ("int8.bias-correction", {"samples": 4}),
}
"""What a row is called, to a pass and parameters: small ones, so that it takes seconds."""

AFTER = {"bn.reestimate": "bn.restore"}
"""Passes that have nothing to do on a network that was exported, and what stands before them."""

KEEPING = ("simplify", "equalize", "bn.restore", "pack.huffman")
"""Passes after which the network computes the same."""

Samples = Sequence[Mapping[str, np.ndarray]]


def classics(networks: Any) -> dict[str, Callable[[], onnx.ModelProto]]:
    """The quickstart's network and those that everybody deploys."""
    made: dict[str, Callable[[], onnx.ModelProto]] = {"digits": lambda: onnx.load(DIGITS)}
    for name, build in load(HERE / "classics.py").CLASSICS.items():
        made[name] = lambda build=build, name=name: build(networks.Net(name), SIZE)
    return made


def generated(networks: Any) -> dict[str, Callable[[], onnx.ModelProto]]:
    """The small ones, one structure each."""
    made = dict(networks.NETWORKS)
    for name, build in load(HERE / "pruned.py").NETWORKS.items():
        made[f"{name} (pruned)"] = lambda build=build, name=name: build(networks.Net(name))
    return made


def warm() -> AbstractContextManager[None]:
    """Within, tools go on running from one request to the next; a pass may train for long."""
    made: AbstractContextManager[None] = load(HERE / "trials.py").warm(1800)
    return made


@dataclass
class Made:
    """What became of a network by a pass.

    Attributes:
        model: None where the pass refused, or did wrong.
        words: the refusal's, or what is wrong.
        wrong: no remedy is said, what it made is no valid ONNX, has other inputs or outputs, or
            computes something else though it should not.
    """

    model: Model | None
    words: str = ""
    wrong: bool = False


def make(
    proto: onnx.ModelProto, samples: Callable[[Model], Samples], rows: Sequence[str], folder: Path
) -> tuple[Model, Samples, dict[str, Made]]:
    """The network with static shapes, its samples, and what each row of `PASSES` makes of it."""
    host = Host.load()
    onnx.save(proto, folder / "given.onnx")
    (folder / "static").mkdir()
    given = Model.load(folder / "given.onnx").with_static_shapes({}, folder / "static")
    fed = samples(given)
    workshop = Workshop(host, folder)
    made = {row: _made(host, workshop, given, fed, row) for row in rows}
    return given, fed, made


def _made(host: Host, workshop: Workshop, given: Model, samples: Samples, row: str) -> Made:
    model = given
    name, parameters = PASSES[row]
    steps = [(AFTER[name], {})] if name in AFTER else []
    try:
        for each, about in [*steps, (name, parameters)]:
            step = PassStep(each, host.passes[each].parameters(**about))
            model, _ = workshop.optimize(model, step, samples, original=given)
    except ToolError as error:
        return Made(None, str(error), wrong=not error.remedy)
    onnx.checker.check_model(model.proto(), full_check=True)
    if (model.inputs, model.outputs) != (given.inputs, given.outputs):
        return Made(None, "it has other inputs or outputs", wrong=True)
    if name in KEEPING:
        pair = ([Reference(each).run(s) for s in samples[:2]] for each in (model, given))
        if (parity := compare(*pair)).sqnr_db < LEAST_DB:
            return Made(None, f"it computes something else: {parity}", wrong=True)
    return Made(model)


@dataclass
class Verdict:
    """Of a model on a backend.

    Attributes:
        status: ``ok``, ``refused`` (before anything ran, with words), ``WRONG`` (anything else).
        sqnr_db: of its outputs, where there are some.
    """

    status: str
    words: str = ""
    sqnr_db: float | None = None


def judge(
    backend: str, models: Mapping[str, Model], samples: Samples, precision: str, folder: Path
) -> dict[str, Verdict]:
    """Convert and run each model; equal ones are tried once."""
    first: dict[str, str] = {}
    for name, model in models.items():
        first.setdefault(model.digest, name)
    each = {digest[:16]: models[name] for digest, name in first.items()}
    tried = (_interpreted if backend == "mace" else _run)(backend, each, samples, precision, folder)
    return {name: tried[model.digest[:16]] for name, model in models.items()}


def _run(
    backend: str, models: Mapping[str, Model], samples: Samples, precision: str, folder: Path
) -> dict[str, Verdict]:
    trials = load(HERE / "trials.py").Trials(backend, folder)
    found = trials.run(
        {name: model.proto() for name, model in models.items()},
        dict.fromkeys(models, samples[:2]), precision,
    )  # fmt: skip
    told = {"right": "ok", "refused": "refused"}
    return {
        name: Verdict(
            told.get(trial.status, "WRONG"), trial.words, trial.parity and trial.parity.sqnr_db
        )
        for name, trial in found.items()
    }


def _interpreted(
    backend: str, models: Mapping[str, Model], samples: Samples, precision: str, folder: Path
) -> dict[str, Verdict]:
    """MACE, whose runtime is not here: by the independent reader of what its converter writes."""
    from mace_net import Interpreter, read

    host = Host.load()
    target = Target(backend, precision, "local", host.backends[backend].options())
    workshop, fed, made = Workshop(host, folder), samples[:1], {}
    for name, model in models.items():
        try:
            artifact = workshop.convert(model, target, fed)
            network = read(artifact.directory / "model.pb", artifact.directory / "model.data")
            interpreter, outputs = Interpreter(network), []
            for sample in fed:
                found = interpreter.run({b.runtime: sample[b.onnx] for b in artifact.inputs})
                outputs.append({b.onnx: found[b.runtime] for b in artifact.outputs})
            parity = compare(outputs, [Reference(model).run(sample) for sample in fed])
            check(parity, host.backends[backend].threshold(precision), name)
        except (UnsupportedError, ToolError, ParityError) as error:
            refused = isinstance(error, UnsupportedError)
            made[name] = Verdict("refused" if refused else "WRONG", str(error))
        else:
            made[name] = Verdict("ok", sqnr_db=parity.sqnr_db)
    return made


def temporary(folder: Path, word: str) -> Path:
    """A new folder in another."""
    return Path(tempfile.mkdtemp(prefix=f"{word}-", dir=folder))

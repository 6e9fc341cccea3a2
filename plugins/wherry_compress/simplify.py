"""The pass ``simplify``: OnnxSlim, and a proof that the network is still the same.

The result is given only after its outputs on made-up inputs were those of the original.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxslim

from wherry.model import Model
from wherry.reference import open_session, random_inputs, run_session
from wherry_compress.job import Done, Job, Refusal

_TRIALS = 3
_RELATIVE = 1e-4  # of an output's root mean square: fused batch norms round differently


def apply(job: Job) -> Done:
    """The simplified model; its figures are the counts of nodes before and after."""
    original = job.load()
    limit = job.parameters["fold_limit_kb"]
    slimmed = onnxslim.slim(
        job.load(),
        skip_optimizations=list(job.parameters["skip"]) or None,
        size_threshold=limit * 1024 if limit else None,
    )
    del slimmed.metadata_props[:]  # OnnxSlim writes what it did there, and old entries may not hold
    slimmed.metadata_props.extend(original.metadata_props)
    keep_names(original, slimmed)
    prove(job, original, slimmed)
    counts = {"nodes_before": len(original.graph.node), "nodes_after": len(slimmed.graph.node)}
    return Done(slimmed, counts)


def keep_names(original: onnx.ModelProto, changed: onnx.ModelProto) -> None:
    """OnnxSlim names a fused node by a tensor; give it the name of what made the tensor."""
    producer = {name: node.name for node in original.graph.node for name in node.output}
    known = set(producer.values())
    taken = {node.name for node in changed.graph.node}
    for node in changed.graph.node:
        name = producer.get(node.name) or producer.get(node.output[0])
        if node.name not in known and name and name not in taken:
            node.name = name
            taken.add(name)


def prove(job: Job, original: onnx.ModelProto, changed: onnx.ModelProto) -> None:
    """Raise `Refusal` unless both networks give the same on the same made-up inputs."""
    # without ONNX Runtime's own rewrites: what is compared is what stands in the files
    ours, theirs = (
        open_session(each.SerializeToString(), threads=1, where="", as_written=True)
        for each in (changed, original)
    )
    for inputs in random_inputs(Model.load(job.model).inputs, _TRIALS):
        found = run_session(ours, inputs, where="")
        for name, wanted in run_session(theirs, inputs, where="").items():
            _compare(name, np.asarray(found[name]), np.asarray(wanted))


def _compare(name: str, found: np.ndarray, wanted: np.ndarray) -> None:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise _differs(
            f"output {name!r} became {found.dtype}{list(found.shape)}, it was "
            f"{wanted.dtype}{list(wanted.shape)}"
        )
    if wanted.dtype.kind != "f":
        same = np.array_equal(found, wanted)
    else:
        finite = wanted[np.isfinite(wanted)].astype(np.float64)
        scale = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
        same = np.allclose(found, wanted, rtol=_RELATIVE, atol=_RELATIVE * scale, equal_nan=True)
    if not same:
        raise _differs(f"output {name!r} differs from the original's on made-up inputs")


def _differs(what: str) -> Refusal:
    """The simplified network is not the original."""
    remedy = "Leave rewrites out with `skip`, or leave the pass out."
    return Refusal(what, remedy=remedy)

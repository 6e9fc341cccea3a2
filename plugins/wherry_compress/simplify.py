"""The pass ``simplify``: OnnxSlim, and a proof that the network is still the same.

The result is given only after its outputs on made-up inputs were those of the original.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import onnxslim

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
    prove(original, slimmed)
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


def prove(original: onnx.ModelProto, changed: onnx.ModelProto) -> None:
    """Compare both networks on the same made-up inputs; raises `DiffersError`."""
    ours, theirs = _session(changed), _session(original)
    for trial in range(_TRIALS):
        generator = np.random.default_rng(trial)
        inputs = {spec.name: _made_up(spec, generator) for spec in theirs.get_inputs()}
        names = [spec.name for spec in theirs.get_outputs()]
        for name, found, wanted in zip(
            names, ours.run(names, inputs), theirs.run(names, inputs), strict=True
        ):
            _compare(name, np.asarray(found), np.asarray(wanted))


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
    return Refusal(f"simplify: {what}", remedy=remedy)


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Without ONNX Runtime's own rewrites, so that what is compared is what stands in the files."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _made_up(spec: onnxruntime.NodeArg, generator: np.random.Generator) -> np.ndarray:
    types = {"float": "float32", "double": "float64"}
    word = spec.type.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype(types.get(word, word))
    if dtype.kind == "f":
        return np.asarray(generator.standard_normal(spec.shape), dtype)
    return np.asarray(generator.integers(0, 2, spec.shape), dtype)  # as indices within any table

"""Makes the artifact: by wherry's own writer, or by the converter of a user's MACE checkout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.artifact import Artifact, Binding, Layer
from wherry.errors import ToolError, UnsupportedError
from wherry.keep import kept_nodes
from wherry.normalise import Normalised
from wherry.quantize.given import float_model, is_quantised
from wherry_mace import deployment, operators
from wherry_mace.format import AUTO, NCHW, UINT8, Net, classes, nchw, with_views_last, write
from wherry_mace.quantise import quantise
from wherry_mace.translate import ALSO, SAFE, rename

if TYPE_CHECKING:
    from wherry.calibration import Calibration
    from wherry.context import StepContext
    from wherry.model import Model, TensorSpec
    from wherry.target import Target

MODEL = "model"
"""The model's name in MACE, and that of its files."""


def convert(
    model: Model, target: Target, calibration: Calibration | None, context: StepContext
) -> Artifact:
    """``model.pb`` and ``model.data``, and MACE's own files beside them."""
    options = target.options.model_dump()
    whole = target.precision == "int8"
    problem = wrong_options(target)
    if problem is not None:
        raise problem
    if whole and is_quantised(model):
        model, calibration = float_model(model, context.scratch)
    normal = context.normalised(model, ALSO)
    if options["converter"] == "checkout":
        return _by_checkout(model, normal, target, calibration, context)
    gpu = options["runtime"] == "gpu"
    walk = operators.translated(normal.model.proto(), whole=whole, gpu=gpu)
    for found in operators.counted(walk.refused, normal.nodes, operators.kinds(model)):
        raise UnsupportedError(
            f"MACE cannot take {found.op_type}", where=f"node {found.node}", remedy=found.remedy
        )
    net = walk.net()
    if whole:
        assert calibration is not None  # the backend asks for it
        net = _quantised(net, walk.bounds, normal, model, target, calibration, context)
    net, names = rename(with_views_last(net))
    half = target.precision == "fp16"
    definition, data = write(net, MODEL, half=half, runtime=options["runtime"])
    (context.output / f"{MODEL}.pb").write_bytes(definition)
    (context.output / f"{MODEL}.data").write_bytes(data)
    whose = {**walk.aliases, **{new: old for old, new in names.items()}}
    layers = _layers(net, normal, target.precision, whose)
    provenance = {"tool": "wherry's own writer of MACE's format", "ops": len(net.ops)}
    artifact = _artifact(model, target, context, names, layers, provenance)
    # Beside the artifact and not of it: MACE's own tools read them, a board does not.
    _deployment(context.output, normal.model, target, calibration)
    return artifact


def wrong_options(target: Target) -> UnsupportedError | None:
    """What a target's options ask for in vain."""
    options = target.options.model_dump()
    message = remedy = ""
    if target.precision == "int8" and options["runtime"] == "gpu":
        message = "MACE computes int8 on the CPU alone, and runtime is gpu"
        remedy = "Ask for fp16 on the GPU, or for int8 with runtime: cpu."
    elif options["converter"] == "checkout" and not options["checkout"]:
        message = "converter is checkout, and checkout does not say where it is"
        remedy = "Give the folder of MACE's sources: checkout: PATH."
    elif options["converter"] == "checkout" and options["keep_fp32"]:
        message = "MACE's own converter quantises a whole network, and keep_fp32 names nodes"
        remedy = "Leave keep_fp32 out, or use converter: own."
    if not message:
        return None
    return UnsupportedError(message, where="options of mace", remedy=remedy)


def _artifact(
    model: Model,
    target: Target,
    context: StepContext,
    names: Mapping[str, str],
    layers: tuple[Layer, ...],
    provenance: Mapping[str, Any],
) -> Artifact:
    return Artifact.from_directory(
        context.output,
        backend=target.backend,
        precision=target.precision,
        format="mace",
        inputs=tuple(_binding(spec, names) for spec in model.inputs),
        outputs=tuple(_binding(spec, names) for spec in model.outputs),
        provenance=provenance,
        layers=layers,
    )


def _binding(spec: TensorSpec, names: Mapping[str, str]) -> Binding:
    return Binding(spec.name, names[spec.name], "float32", spec.static_shape)


def _deployment(
    directory: Path, model: Model, target: Target, calibration: Calibration | None
) -> Path:
    """MACE's own files, for a model in the normal form."""
    made = {name for node in model.proto().graph.node for name in node.output}
    tensors = [] if calibration is None else [n for n in calibration.ranges if n in made]
    return deployment.write(
        directory,
        model,
        name=MODEL,
        precision=target.precision,
        runtime=target.options.model_dump()["runtime"],
        calibration=calibration,
        tensors=tensors,
    )


def _quantised(
    net: Net,
    bounds: Mapping[str, str],
    normal: Normalised,
    model: Model,
    target: Target,
    calibration: Calibration,
    context: StepContext,
) -> Net:
    """The network in 8 bits, but for what the manifest keeps in fp32."""
    names = kept_nodes(model, target.options.keep_fp32)
    kept = {op.name for op in net.ops if names.intersection(normal.originals(op.nodes))}
    made = quantise(net, calibration.ranges, bounds, kept)
    if made.unknown:
        context.warn(
            f"{len(made.unknown)} operations stay in fp32, because the range of what they take or "
            f"give is not known, or MACE's int8 cannot do them: {', '.join(made.unknown[:5])}"
        )
    if not made.net.quantised:
        context.warn("nothing of this model is quantised: see the operations in the docs")
    return made.net


def _layers(
    net: Net, normal: Normalised, precision: str, onnx_names: Mapping[str, str]
) -> tuple[Layer, ...]:
    """The operations, by the model's own nodes and tensors."""
    graph = normal.model.proto().graph
    made = {name for node in graph.node for name in node.output if name}
    layers = []
    for op in net.ops:
        said = {name: op.stands_for or name for name in op.outputs}
        outputs = {onnx_names.get(word, word): name for name, word in said.items()}
        outputs = {name: mine for name, mine in outputs.items() if name in made}
        kind = "int8" if op.kind == UINT8 else "fp32" if precision == "int8" else precision
        layers.append(Layer(op.name, op.type, normal.originals(op.nodes), outputs, kind))
    return tuple(layers)


# --- a user's own checkout ------------------------------------------------------------------------


def _by_checkout(
    model: Model,
    normal: Normalised,
    target: Target,
    calibration: Calibration | None,
    context: StepContext,
) -> Artifact:
    """What the converter of the user's MACE makes of the normal form."""
    options = target.options.model_dump()
    for spec in (*model.inputs, *model.outputs):
        if not SAFE.fullmatch(spec.name):
            raise UnsupportedError(
                f"mace_run cannot be told of a tensor named {spec.name!r}",
                where=f"tensor {spec.name}",
                remedy="Give it a name of letters, digits, '.', '_', '/', ':' and '-', or use "
                "converter: own.",
            )
    config = _deployment(context.scratch, normal.model, target, calibration)
    response = context.run_tool(
        Path(__file__).with_name("convert.py"),
        {
            "checkout": options["checkout"],
            "python": options["checkout_python"],
            "config": str(config),
            "name": MODEL,
            "output": str(context.output),
        },
        requirements=None,
    )
    names = {spec.name: spec.name for spec in (*model.inputs, *model.outputs)}
    layers = _read_layers(context.output / f"{MODEL}.pb", normal, target.precision)
    provenance = {"tool": "MACE's converter", **response}
    artifact = _artifact(model, target, context, names, layers, provenance)
    _deployment(context.output, normal.model, target, calibration)
    return artifact


def _read_layers(path: Path, normal: Normalised, precision: str) -> tuple[Layer, ...]:
    """The operations of a file that another wrote, by the names of nodes that it kept."""
    definition = _read(path)
    graph = normal.model.proto().graph
    nodes = {node.name for node in graph.node}
    made = {name for node in graph.node for name in node.output if name}
    layers = []
    for op in definition.op:
        types = {argument.name: argument.i for argument in op.arg}
        kind = "int8" if types.get("T") == UINT8 else "fp32" if precision == "int8" else precision
        whose = normal.originals([op.name]) if op.name in nodes else ()
        outputs = {name: name for name in op.output if name in made}
        layers.append(Layer(op.name, op.type, whose, outputs, kind))
    return tuple(layers)


def _read(path: Path) -> Any:
    """The one network of a ``.pb``."""
    from google.protobuf.message import DecodeError

    model = classes()["MultiNetDef"]()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ToolError(f"no file of MACE: {error}", where=path.name) from error
    if len(model.net_def) != 1:
        raise ToolError(
            f"the file has {len(model.net_def)} networks, and one is wanted",
            where=path.name,
            remedy="Use a MACE of the newest kind: older ones write another format.",
        )
    return model.net_def[0]


# --- every tensor ---------------------------------------------------------------------------------


def expose(artifact: Artifact, model: Model, context: StepContext) -> Artifact:
    """The same network with an output for every tensor of its layers, behind its own."""
    del model
    path = artifact.directory / f"{MODEL}.pb"
    net = classes()["MultiNetDef"]()
    net.ParseFromString(path.read_bytes())
    (definition,) = net.net_def
    makers = {name: (op, at) for op in definition.op for at, name in enumerate(op.output)}
    known = {binding.onnx for binding in artifact.outputs}
    bindings = list(artifact.outputs)
    for layer in artifact.layers:
        for onnx_name, runtime in layer.outputs.items():
            if onnx_name in known:
                continue
            known.add(onnx_name)
            maker, index = makers[runtime]
            bindings.append(_exposed(definition, net, maker, index, runtime, onnx_name))
    ends = set(net.output_tensor)
    ops = sorted(definition.op, key=lambda op: op.type == "Reshape" and set(op.output) <= ends)
    ops = [type(op).FromString(op.SerializeToString()) for op in ops]  # see `with_views_last`
    del definition.op[:]
    definition.op.extend(ops)
    (context.output / f"{MODEL}.pb").write_bytes(net.SerializeToString(deterministic=True))
    data = (artifact.directory / f"{MODEL}.data").read_bytes()
    (context.output / f"{MODEL}.data").write_bytes(data)
    return Artifact.from_directory(
        context.output,
        backend=artifact.backend,
        precision=artifact.precision,
        format=artifact.format,
        inputs=artifact.inputs,
        outputs=tuple(bindings),
        provenance=artifact.provenance,
        layers=artifact.layers,
    )


def _exposed(
    definition: Any, net: Any, maker: Any, index: int, runtime: str, onnx_name: str
) -> Binding:
    """Add an operation that gives a tensor under a name that mace_run can be told."""
    arguments = {argument.name: argument.i for argument in maker.arg}
    free = arguments["data_format"] == AUTO
    written = tuple(maker.output_shape[index].dims)
    shape = nchw(written) if free else written
    name = f"wherry_exposed_{len(net.output_tensor)}"
    whole = arguments["T"] == UINT8 and maker.type != "Dequantize"
    if whole:
        operation = definition.op.add(name=name, type="Dequantize", output_type=[1])
        operation.output_shape.add(dims=written)
        words = {"T": UINT8, "framework_type": 2, "data_format": AUTO}
    else:
        operation = definition.op.add(name=name, type="Reshape")
        operation.output_shape.add(dims=shape)
        operation.arg.add(name="dim", ints=shape)
        words = {"T": 1 if arguments["T"] == UINT8 else arguments["T"], "framework_type": 2}
        words["data_format"] = (
            NCHW if arguments["data_format"] == AUTO else arguments["data_format"]
        )
    operation.input.append(runtime)
    operation.output.append(name)
    for word, value in words.items():
        operation.arg.add(name=word, i=value)
    info = definition.output_info.add(name=name, alias=name, data_type=1)
    info.dims.extend([shape[axis] for axis in (0, 2, 3, 1)] if len(shape) == 4 else shape)
    info.data_format = 1 if len(shape) == 4 else 0
    net.output_tensor.append(name)
    return Binding(onnx_name, name, "float32", shape)

"""Command lines of trtexec, for whatever version the board has (Python 3.8, standard library).

What a version can do is what its ``--help`` lists: an unknown option is an error of trtexec's. So
nothing here asks for a version's number. TensorRT up to 10 is given precisions as options; from 11
on there are none, and the types that stand in the ONNX file decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

CONVENTION = {
    "transfers": "the inputs and outputs are not copied",
    "graph": "launched as a CUDA graph",
    "wait": "the host waits by spinning",
    "profile": "layers are profiled in a run of their own",
}
"""How trtexec 11 measures unless told otherwise; older ones are told to do the same."""

_LIKE_11 = {
    "transfers": "--noDataTransfers",
    "graph": "--useCudaGraph",
    "wait": "--useSpinWait",
    "profile": "--separateProfileRun",
}
_NEW_DEFAULTS = "--includeDataTransfers"  # an option that came when the defaults changed
_REST = ("--fp16", "--bf16", "--int8", "--best")


class Refusal(Exception):  # noqa: N818 -- an answer, not a fault
    """This board cannot do what was asked; the remedy says what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class Tool(NamedTuple):
    """A trtexec.

    Attributes:
        path: of the program.
        version: as its first line has it, digits: ``8502``, ``100300``.
        flags: the options that its ``--help`` lists, with their dashes.
    """

    path: str
    version: str
    flags: frozenset[str]

    @property
    def is_typed(self) -> bool:
        """Whether types come from the ONNX file alone."""
        return not self.flags.intersection(_REST)


class Plan(NamedTuple):
    """What an engine is built of.

    Attributes:
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        model: the ONNX file in float32; in int8 with Q/DQ, if it is explicit.
        typed: the same with the types of the precision in it; "": there is none.
        quantised: of int8: ``explicit``, by Q/DQ, or ``implicit``, by a calibration cache.
        calibration: the calibration cache; "": none.
        keep: names of nodes that stay in float32.
        rest: of int8: what is not quantised runs in, ``fp16`` or ``fp32``.
        shapes: input to its least, usual and greatest shape, where an engine takes several.
        options: the backend's.
    """

    precision: str
    model: str
    typed: str = ""
    quantised: str = ""
    calibration: str = ""
    keep: tuple[str, ...] = ()
    rest: str = "fp16"
    shapes: Mapping[str, Mapping[str, Sequence[int]]] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})


class Files(NamedTuple):
    """What building reads and writes besides."""

    engine: str
    layers: str = ""
    timing_cache: str = ""


def build_arguments(plan: Plan, tool: Tool, files: Files) -> list[str]:
    """The arguments that build an engine.

    Raises:
        Refusal: this trtexec cannot build it, or what it would build would say nothing.
    """
    options = plan.options
    arguments = _precision(plan, tool)
    if not options.get("tf32", False) and not _is_typed_half(plan, tool):
        arguments.append(_wanted("--noTF32", tool, "leave TF32 out", "Set tf32: true."))
    for name, spec in zip(("min", "opt", "max"), _shapes(plan)):  # noqa: B905 -- Python 3.8 has no strict
        arguments.append(f"--{name}Shapes={spec}")
    if options.get("sparsity", False):
        arguments.append(_wanted("--sparsity", tool, "use sparse weights", "") + "=enable")
    if options.get("dla") is not None and plan.quantised == "explicit" and "--calib" in tool.flags:
        # it would leave the DLA idle, or fail where it may not fall back
        raise Refusal(
            "a DLA takes int8 from a calibration cache, not from Q/DQ",
            "Set int8: implicit, or leave dla out.",
        )
    arguments += dla_arguments(options, tool, building=True, precision=plan.precision)
    if options.get("workspace_mb"):
        arguments.append(_workspace(options["workspace_mb"], tool))
    if options.get("optimization_level") is not None:
        flag = _wanted(
            "--builderOptimizationLevel",
            tool,
            "choose how hard it optimises",
            "Leave optimization_level out; TensorRT 8.6 and newer have it.",
        )
        arguments.append(f"{flag}={options['optimization_level']}")
    if files.timing_cache and "--timingCacheFile" in tool.flags:
        arguments.append(f"--timingCacheFile={files.timing_cache}")
    if "--profilingVerbosity" in tool.flags:
        arguments.append("--profilingVerbosity=detailed")
    if files.layers and "--exportLayerInfo" in tool.flags:
        arguments.append(f"--exportLayerInfo={files.layers}")
    arguments.append(f"--saveEngine={files.engine}")
    arguments.append("--skipInference" if "--skipInference" in tool.flags else "--buildOnly")
    return arguments


def _precision(plan: Plan, tool: Tool) -> list[str]:
    """Which file, and the options that say what it may be computed in."""
    if plan.precision == "int8":
        return _int8(plan, tool)
    if plan.precision == "fp32":
        return [f"--onnx={plan.model}"]
    flag = f"--{plan.precision}"
    if tool.is_typed:
        return [f"--onnx={_typed(plan)}"]
    if flag not in tool.flags:
        raise Refusal(
            f"trtexec of TensorRT {tool.version} has no {flag}",
            "Ask for fp16, or install a newer TensorRT on the board.",
        )
    return _weakly_typed(plan, tool, [flag])


def _int8(plan: Plan, tool: Tool) -> list[str]:
    rest = [] if plan.rest == "fp32" else ["--fp16"]
    if plan.quantised == "implicit":
        if "--calib" not in tool.flags:
            raise Refusal(
                f"trtexec of TensorRT {tool.version} takes no calibration cache: in it, int8 is "
                "what Q/DQ in the model say",
                "Set int8: explicit.",
            )
        if not plan.calibration or not Path(plan.calibration).is_file():
            # it would calibrate on one batch of random numbers
            raise Refusal(
                f"the calibration cache {plan.calibration!r} is missing", "Run the target again."
            )
        arguments = _weakly_typed(plan, tool, ["--int8", *rest])
        return [*arguments, f"--calib={plan.calibration}"]
    if plan.quantised != "explicit":
        # --int8 alone makes up ranges: plausible times, and outputs that mean nothing
        raise Refusal("int8 needs Q/DQ in the model or a calibration", "Report this to wherry.")
    if tool.is_typed:
        return [f"--onnx={plan.model if plan.rest == 'fp32' else _typed(plan)}"]
    return _weakly_typed(plan, tool, ["--int8", *rest])


def _weakly_typed(plan: Plan, tool: Tool, flags: list[str]) -> list[str]:
    """The float32 file and what else is allowed; nodes that are kept in float32 are pinned."""
    # with Q/DQ, a node without them is not in int8 anyway
    if not plan.keep or (flags == ["--int8"] and plan.quantised == "explicit"):
        return [f"--onnx={plan.model}", *flags]
    if plan.typed and "--stronglyTyped" in tool.flags and plan.quantised != "implicit":
        return [f"--onnx={plan.typed}", "--stronglyTyped"]
    if not {"--layerPrecisions", "--precisionConstraints"} <= tool.flags:
        raise Refusal(
            f"trtexec of TensorRT {tool.version} cannot keep nodes in fp32",
            "Leave keep_fp32 out.",
        )
    names = ",".join(f"{_quoted(name)}:fp32" for name in plan.keep)
    return [
        f"--onnx={plan.model}",
        *flags,
        "--precisionConstraints=obey",
        f"--layerPrecisions={names}",
    ]


def _typed(plan: Plan) -> str:
    if not plan.typed:
        raise Refusal(
            f"this TensorRT takes {plan.precision} from the types in the ONNX file alone, and the "
            "model could not be written so",
            "See the warnings of the conversion; an export with opset 19 or 20 may help.",
        )
    return plan.typed


def _is_typed_half(plan: Plan, tool: Tool) -> bool:
    """Whether nothing is computed in float32 but what was kept so by name."""
    return plan.precision in {"fp16", "bf16"} and tool.is_typed and not plan.keep


def dla_arguments(
    options: Mapping[str, Any], tool: Tool, *, building: bool, precision: str = ""
) -> list[str]:
    """A core of the Deep Learning Accelerator: for building, and for loading what was built so."""
    core = options.get("dla")
    if core is None:
        return []
    if building and precision not in {"fp16", "int8"}:
        raise Refusal(f"a DLA does not compute in {precision}", "Ask for fp16 or int8.")
    arguments = [_wanted("--useDLACore", tool, "use a DLA", "Leave dla out.") + f"={core}"]
    if building and options.get("gpu_fallback", True):
        arguments.append(_wanted("--allowGPUFallback", tool, "fall back to the GPU", ""))
    return arguments


def _workspace(megabytes: int, tool: Tool) -> str:
    if "--memPoolSize" in tool.flags:
        return f"--memPoolSize=workspace:{megabytes}"
    return _wanted("--workspace", tool, "limit its workspace", "") + f"={megabytes}"


def _wanted(flag: str, tool: Tool, what: str, remedy: str) -> str:
    if flag not in tool.flags:
        raise Refusal(
            f"trtexec of TensorRT {tool.version} cannot {what}: it has no {flag}",
            remedy or "Leave this option out, or install a newer TensorRT on the board.",
        )
    return flag


def _shapes(plan: Plan) -> list[str]:
    """Of the least, usual and greatest shapes; empty where all are fixed."""
    if not plan.shapes:
        return []
    return [shapes_text(plan.shapes, kind) for kind in ("min", "opt", "max")]


def shapes_text(shapes: Mapping[str, Mapping[str, Sequence[int]]], kind: str) -> str:
    """``x:1x3x224x224,y:1x5``."""
    return ",".join(f"{name}:{'x'.join(map(str, each[kind]))}" for name, each in shapes.items())


def _quoted(name: str) -> str:
    """A name as trtexec takes it where it may hold a colon."""
    if "," in name or "'" in name:
        raise Refusal(
            f"trtexec cannot be told to keep {name!r} in fp32: commas and quotes have another "
            "meaning there",
            "Rename the node.",
        )
    return f"'{name}'" if ":" in name else name


# --- running -------------------------------------------------------------------------------------


class Timing(NamedTuple):
    """How long trtexec runs."""

    warmup_ms: int
    duration_s: int
    iterations: int


def run_arguments(
    tool: Tool,
    engine: str,
    options: dict[str, Any],
    inputs: dict[str, str],
    shapes: dict[str, list[int]],
    timing: Timing,
    exports: dict[str, str],
) -> list[str]:
    """The arguments that run an engine.

    Args:
        tool: trtexec.
        engine: the file.
        options: the backend's.
        inputs: name to a file of raw values in C order.
        shapes: name to its shape, where an engine takes several.
        timing: how long.
        exports: ``times``, ``profile``, ``output``, ``layers`` to the file to write; ``raw``: to
            anything, for files in the current folder.
    """
    given = ",".join(f"{name}:{path}" for name, path in inputs.items())
    arguments = [
        f"--loadEngine={engine}",
        f"--loadInputs={given}",
        f"--warmUp={timing.warmup_ms}",
        f"--duration={timing.duration_s}",
        f"--iterations={timing.iterations}",
    ]
    if shapes:
        text = ",".join(f"{name}:{'x'.join(map(str, each))}" for name, each in shapes.items())
        arguments.append(f"--shapes={text}")
    arguments += dla_arguments(options, tool, building=False)
    _, flags = convention(tool)
    wants_values = "output" in exports or "raw" in exports
    for flag in flags:
        # without transfers there are no outputs
        if not (wants_values and flag == _LIKE_11["transfers"]):
            arguments.append(flag)
    if wants_values and _NEW_DEFAULTS in tool.flags:
        arguments.append(_NEW_DEFAULTS)
    words = {
        "times": "--exportTimes",
        "profile": "--exportProfile",
        "output": "--exportOutput",
        "layers": "--exportLayerInfo",
    }
    for name, path in exports.items():
        if name == "raw":
            arguments.append("--dumpRawBindingsToFile")
        else:
            arguments.append(f"{words[name]}={path}")
    return arguments


def convention(tool: Tool) -> tuple[dict[str, bool], list[str]]:
    """How this trtexec measures: which parts of `CONVENTION` hold, and the options that see to it.

    From 11 on these are the defaults. Of an older one, what it has no option for does not hold.
    """
    if _NEW_DEFAULTS in tool.flags:
        return dict.fromkeys(CONVENTION, True), []
    held = {name: flag in tool.flags for name, flag in _LIKE_11.items()}
    return held, [flag for name, flag in _LIKE_11.items() if held[name]]

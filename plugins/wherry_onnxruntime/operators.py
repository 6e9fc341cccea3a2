"""Which operators the ONNX Runtime at hand has: its own schemas and kernels are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wherry.operators import Support

if TYPE_CHECKING:
    from wherry.operators import Asking

STANDARD = {"", "ai.onnx"}


def operators(tools: Asking) -> Mapping[str, Support]:
    """Every operator that it defines, to whether the processor has a kernel for it."""
    del tools  # the host's own ONNX Runtime is the one that is asked
    import onnx
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kernels = {
        _name(kernel.domain, kernel.op_name)
        for kernel in state.get_all_opkernel_def()
        if kernel.provider == "CPUExecutionProvider"
    }
    schemas: Sequence[Any] = onnx.defs.get_all_schemas()  # their stub lacks what is asked of them
    by_others = {
        _name(schema.domain, schema.name)
        for schema in schemas
        if schema.has_function or schema.has_context_dependent_function
    }
    found = {"Constant": Support("yes")}
    for schema in state.get_all_operator_schema():
        name = _name(schema.domain, schema.name)
        if name in kernels or name in by_others:
            found[name] = Support("yes")
        elif schema.domain in STANDARD and onnx.defs.has(schema.name) and name not in found:
            found[name] = Support("no", "This ONNX Runtime has no kernel for it on a processor.")
    return found


def _name(domain: str, operator: str) -> str:
    return operator if domain in STANDARD else f"{domain}::{operator}"

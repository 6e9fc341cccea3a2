"""An independent reader of MACE's files: what a ``.pb`` and a ``.data`` compute, in numpy.

Written from MACE's own description of its format (mace.proto) and of what its operations do on a
CPU, and from nothing of wherry's. It is strict: an argument, an operation or a shape that MACE
would not take is an error. Tensors of four axes carry the order that they lie in, as MACE's do;
where an operation wants another order, they are transposed, as MACE does.
"""

from __future__ import annotations

import time

import numpy as np
from mace_file import AUTO, NCHW, NHWC, NONE, MaceError, Network, Operation, check, read
from mace_kernels import KERNELS, Call, Tensor

__all__ = ["Interpreter", "MaceError", "Network", "read"]

GENERAL = {"T", "framework_type", "data_format", "has_data_format"}


class Interpreter:
    """Runs a network on a CPU.

    Args:
        network: of `read`.
    """

    def __init__(self, network: Network) -> None:
        check(network.arguments.get("runtime_type") is not None, "no runtime_type")
        check(network.data_type in {1, 3}, "data_type", network.data_type)
        taken = {name for op in network.operations for name in op.inputs}
        for info in network.outputs:  # its memory is used again behind whoever takes it
            check(info.name not in taken, info.name, "is an output, and overwritten")
        ends = {info.name for info in network.outputs}
        views = [op.type == "Reshape" and ends >= set(op.outputs) for op in network.operations]
        check(views == sorted(views), "an output that is a view, and is overwritten")
        self.network = network
        self.free_order = NHWC if network.quantised else NCHW

    def run(
        self, inputs: dict[str, np.ndarray], rows: dict[str, tuple[str, list[float]]] | None = None
    ) -> dict[str, np.ndarray]:
        """Inputs and outputs of four axes lie in NCHW.

        Args:
            inputs: by name.
            rows: operation to its type and the milliseconds that it took, to be added to.
        """
        tensors: dict[str, Tensor] = {}
        for info in self.network.inputs:
            values = inputs[info.name].astype(np.float32)
            order = NCHW if values.ndim == 4 else NONE
            wanted = [info.dims[0], *np.roll(info.dims[1:], 1)] if order else info.dims
            check(list(values.shape) == list(map(int, wanted)), "shape of", info.name)
            check(info.data_format == (NHWC if order else NONE), "format of", info.name)
            tensors[info.name] = Tensor(values, order).in_order(self.free_order)
        for op in self.network.operations:
            begun = time.perf_counter()
            self._run(op, tensors)
            if rows is not None:
                times = rows.setdefault(op.name, (op.type, []))[1]
                times.append((time.perf_counter() - begun) * 1e3)
        return {
            info.name: tensors[info.name].in_order(NCHW).values for info in self.network.outputs
        }

    def _run(self, op: Operation, tensors: dict[str, Tensor]) -> None:
        order = op.arguments.get("data_format")
        free = order == AUTO
        # MACE takes NCHW for its own order, NHWC where it quantises, and does not turn arguments
        check(order in {AUTO, NONE if self.network.quantised else NCHW}, op.name, "order", order)
        wanted = self.free_order if free else order
        given = []
        for name in op.inputs:
            if name in tensors:
                given.append(tensors[name].in_order(wanted))
            else:
                check(name in self.network.weights, op.name, "takes", name, "that nobody makes")
                weight = self.network.weights[name]
                values = weight.values
                turned = name == op.inputs[0] or op.type in {"Eltwise", "Concat"}
                check(not turned or wanted != NONE or values.ndim != 4, name, "would be turned")
                if turned and wanted == NCHW and values.ndim == 4:  # as MACE does when it loads
                    check(values.dtype == np.float32, op.name, "takes whole numbers", name)
                    values = values.transpose(0, 3, 1, 2)
                given.append(Tensor(values, NONE, weight.scale, weight.zero_point))
        kernel = KERNELS.get(op.type)
        check(kernel is not None, "no operation", op.type)
        has_order = op.arguments.get("has_data_format", 0) == 1
        made = kernel(Call(op, given, wanted or NCHW, has_order, kept=wanted == NONE))
        check(len(made) == len(op.outputs), op.name, "outputs")
        for index, (name, value) in enumerate(zip(op.outputs, made, strict=True)):
            self._check_output(op, index, value, wanted, free)
            check(name not in tensors, name, "is made twice")
            tensors[name] = value
        unknown = op.arguments.values.keys() - op.arguments.asked - GENERAL
        check(not unknown, op.name, op.type, "has arguments that nobody reads:", unknown)

    def _check_output(
        self, op: Operation, index: int, value: Tensor, wanted: int, free: bool
    ) -> None:
        kind = op.arguments.get("T")
        if op.output_types:
            kind = op.output_types[index]
        whole = kind == 2
        check(
            value.values.dtype == (np.uint8 if whole else np.float32), op.name, "gives another type"
        )
        if whole:
            check(bool(op.quantised), op.name, "gives whole numbers without a scale")
            scale, zero = op.quantised[index]
            check(scale > 0 and 0 <= zero <= 255, op.name, "scale", scale, zero)
            check((value.scale, value.zero_point) == (scale, zero), op.name, "has another scale")
        shape = list(op.shapes[index])
        if free and len(shape) == 4 and wanted == NCHW:  # written for NHWC
            shape = [shape[0], shape[3], shape[1], shape[2]]
        check(list(value.values.shape) == shape, op.name, "gives", value.values.shape, "not", shape)

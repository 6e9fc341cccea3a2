"""Makes the two networks of a lowered graph, and says what each operator does of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wherry.artifact import Layer
from wherry.errors import UnsupportedError
from wherry_caffe2.int8 import Int8Lowering, Plan
from wherry_caffe2.lowering import Lowering, Refusal, View
from wherry_caffe2.nets import Operator, write_net

if TYPE_CHECKING:
    from wherry_caffe2.nets import Value

DTYPES = {"float32": 1, "int32": 2, "bool": 5, "uint8": 6, "int64": 10}
"""numpy's names to the numbers of TensorProto.DataType."""

BETWEEN = frozenset({"Int8Quantize", "Int8Dequantize"})
"""Begin like 8-bit operators and compute in float."""


@dataclass(frozen=True)
class Networks:
    """What a graph became.

    Attributes:
        init: ``init_net.pb``.
        predict: ``predict_net.pb``.
        layers: its operators, in the words of the given model.
    """

    init: bytes
    predict: bytes
    layers: tuple[Layer, ...]


def build(
    view: View,
    sources: Mapping[str, tuple[str, ...]],
    tensors: frozenset[str],
    plan: Plan | None = None,
) -> Networks:
    """Lower a graph whose pre-flight found nothing.

    Args:
        view: the graph.
        sources: name of a node to the nodes of the given model that it does.
        tensors: names of the given model's tensors.
        plan: what becomes 8 bits; None: nothing.

    Raises:
        UnsupportedError: a node cannot be lowered; it and the remedy are named.
    """
    low = Lowering(view) if plan is None else Int8Lowering(view, plan)
    graph = view.proto.graph
    for node in graph.node:
        if node.op_type == "Constant" or not view.used.intersection(node.output):
            continue
        try:
            low.lower(node)
        except Refusal as refusal:
            words = f"{refusal.what} {node.op_type}".strip()
            names = sources.get(node.name, (node.name,))
            raise UnsupportedError(
                f"Caffe2 cannot take {words}",
                where=f"node {next(iter(names), node.name)}",
                remedy=refusal.remedy,
            ) from refusal
    outputs = [low.use(value.name) for value in graph.output]
    inputs = [v.name for v in graph.input if v.name not in view.tensors]
    starts = [_start(view, name) for name in inputs]
    fills = list(low.fills.values())
    made = [*inputs, *low.fills]
    whole = low.whole if isinstance(low, Int8Lowering) else {}
    return Networks(
        write_net("init", [*starts, *fills], (), made),
        write_net("predict", low.operators, made, outputs),
        tuple(_layers(low.operators, sources, tensors, plan, whole)),
    )


def _start(view: View, name: str) -> Operator:
    """Caffe2 wants every input to exist before a network is made over it."""
    arguments: dict[str, Value] = {
        "shape": list(view.shape(name)),
        "dtype": DTYPES[view.kind(name)],
    }
    return Operator("ConstantFill", (), (name,), arguments)


def _layers(
    operators: Sequence[Operator],
    sources: Mapping[str, tuple[str, ...]],
    tensors: frozenset[str],
    plan: Plan | None,
    whole: Mapping[str, str],
) -> list[Layer]:
    absorbed: dict[str, list[str]] = {}
    for activation, base in plan.absorbed.items() if plan is not None else ():
        absorbed.setdefault(base, []).append(activation)
    stands = {blob: tensor for tensor, blob in whole.items()}
    found = []
    for operator in operators:
        names = [operator.source, *absorbed.get(operator.source, ())] if operator.source else []
        nodes = dict.fromkeys(each for name in names for each in sources.get(name, ()))
        is_whole = operator.type.startswith("Int8") and operator.type not in BETWEEN
        outputs = {
            stands.get(blob, blob): blob
            for blob in (operator.outputs if operator.source else ())
            if stands.get(blob, blob) in tensors
        }
        found.append(
            Layer(
                operator.name,
                operator.type,
                tuple(nodes),
                outputs,
                "int8" if is_whole else "fp32",
            )
        )
    return found

"""Multiplications of a network: of its convolutions and products of matrices."""

from __future__ import annotations

from math import prod

from wherry.normalise.graph import STANDARD, Graph


def network_macs(graph: Graph) -> int:
    """Of one inference; of nodes whose shapes are known."""
    total = 0
    for node in graph.proto.graph.node:
        if node.domain not in STANDARD or len(node.input) < 2:
            continue
        given, other = graph.shape(node.input[0]), graph.shape(node.input[1])
        made = graph.shape(node.output[0])
        if not given or not other or not made:
            continue
        if node.op_type == "Conv":
            total += prod(made) * prod(other[1:])
        elif node.op_type == "ConvTranspose":
            total += prod(given) * prod(other[1:])
        elif node.op_type == "MatMul":
            total += prod(made) * given[-1]
        elif node.op_type == "Gemm":
            turned = any(a.name == "transA" and a.i for a in node.attribute)
            total += prod(made) * given[0 if turned else 1]
    return total

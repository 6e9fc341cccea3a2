"""What is cut was not zero: its mean moves into the biases of those that read it.

A channel behind a bias and an activation carries a constant part, its mean over samples and places.
Where the channel is cut, the readers' sums lose that part too; a bias can give it back. At the
edges of padded maps, where fewer weights read the channel, this is an approximation.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import numpy_helper

from wherry.normalise.graph import Graph, attributes
from wherry_compress.graph.channels import Channels
from wherry_compress.job import Data
from wherry_compress.prune.runs import means

BIASED = {"Conv", "Gemm"}
"""Readers whose biases make up for what was cut."""


def with_biases(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which each Conv and Gemm with constant weights has a number for each output.

    Where it has no bias, zeros; where a Gemm adds one number to all, that number many times.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = Graph(copy, {})
    for node in copy.graph.node:
        weights, bias = graph.value(node, 1), graph.value(node, 2)
        there = len(node.input) > 2 and node.input[2]
        if node.op_type not in BIASED or weights is None or (there and bias is None):
            continue
        turned = node.op_type == "Conv" or attributes(node).get("transB", 0)
        outputs = weights.shape[0 if turned else 1]
        if bias is None:
            bias = np.zeros(outputs, weights.dtype)
        elif bias.ndim and bias.shape[-1] == outputs:
            continue
        whole = np.broadcast_to(bias, (*bias.shape[:-1], outputs))
        name = graph.constant(f"{node.input[1]}/bias", np.ascontiguousarray(whole))
        del node.input[2:]
        node.input.append(name)
    return copy


def without_biases(proto: onnx.ModelProto, given: onnx.ModelProto) -> onnx.ModelProto:
    """Take out biases of zeros that `with_biases` put in; the model is changed in place.

    Args:
        proto: what was made of its result.
        given: what it was given.
    """
    had = {node.name for node in given.graph.node if len(node.input) > 2 and node.input[2]}
    values = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type not in BIASED or node.name in had or len(node.input) < 3:
            continue
        if not numpy_helper.to_array(values[node.input[2]]).any():
            del node.input[2:]
    used = {name for node in proto.graph.node for name in node.input}
    were = {tensor.name for tensor in given.graph.initializer}
    left = []
    for tensor in proto.graph.initializer:
        if tensor.name in used or tensor.name in were:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            left.append(copy)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(left)
    return proto


def compensated(channels: Channels, removed: Collection[int], data: Data) -> Channels:
    """The same channels, with biases as they have to be once some units are cut.

    Args:
        channels: of `with_biases`'s model.
        removed: the units, as for `Channels.slice`.
        data: on which means are taken.
    """
    kept = channels.kept(removed)
    nodes = {node.name: node for node in channels.proto.graph.node}
    values = {t.name: numpy_helper.to_array(t) for t in channels.proto.graph.initializer}
    readers = [
        cut for cut in channels.cuts if cut.role == "reads" and nodes[cut.node].op_type in BIASED
    ]
    mean = means(channels, {cut.node for cut in readers}, data)
    changed: dict[str, np.ndarray] = {}
    for cut in readers:
        node = nodes[cut.node]
        given = node.input[0]
        gone = ~kept[channels.along[given].ids]
        bias = values.get(node.input[2])
        if not gone.any() or bias is None:
            continue
        weights = np.moveaxis(values[cut.tensor].astype(np.float64), cut.axis, 1)
        weights = weights.reshape(*weights.shape[:2], -1).sum(axis=2)
        groups = len(gone) // weights.shape[1]
        lost = np.where(gone, mean[cut.node], 0).reshape(groups, -1)
        each = weights.reshape(groups, -1, weights.shape[1])
        added = np.einsum("goi,gi->go", each, lost).reshape(-1)
        scale = attributes(node).get("alpha", 1.0) / (attributes(node).get("beta", 1.0) or 1.0)
        changed[node.input[2]] = (bias + added * scale).astype(bias.dtype)
    return channels.changed(changed)

"""A network that int8 ruins in one layer, and a manifest that asks for it.

The layer's weights for one input channel are 1000, and those for the others about 0.3. The channel
is always zero (the Relu before sees nothing but negative numbers there), so that in fp32 the
network is as good as any. In int8 the scale of each output channel of the weights is 1000 / 127:
all weights that matter become zero.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

POISONED = "conv3"
"""The layer's ONNX node."""

RANGE = 1000.0
CHANNELS = 8
LAYERS = 5

MANIFEST = """
wherry: 1
model: {{path: net.onnx}}
data:
  evaluation: {{source: npz, path: evaluation.npz}}
  calibration: {{source: npz, path: calibration.npz}}
metrics: [agreement, sqnr_db]
targets: [{{backend: [{backends}], precision: int8}}]
"""


def network(*, poisoned: bool = True) -> onnx.ModelProto:
    """``conv1`` to ``conv5`` with a Relu behind each, a pooling and a classifier."""
    random = np.random.default_rng(7)
    nodes, weights = [], []
    tensor, width = "x", 3

    def constant(name: str, array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    for index in range(1, LAYERS + 1):
        scale = np.sqrt(2 / (width * 9))
        kernel = random.standard_normal((CHANNELS, width, 3, 3)) * scale
        bias = random.standard_normal(CHANNELS) * 0.1
        name = f"conv{index}"
        if poisoned and name == POISONED:
            kernel[:, 0] = RANGE * np.sign(kernel[:, 0])
        if f"conv{index + 1}" == POISONED:
            kernel[0], bias[0] = 0, -1  # the channel that is always zero behind the Relu
        inputs = [tensor, constant(f"{name}.w", kernel), constant(f"{name}.b", bias)]
        nodes.append(helper.make_node("Conv", inputs, [name], name=name, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [name], [f"relu{index}"], name=f"relu{index}"))
        tensor, width = f"relu{index}", CHANNELS
    nodes.append(helper.make_node("GlobalAveragePool", [tensor], ["pool"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pool"], ["flat"], name="flat"))
    classes = constant("fc.w", random.standard_normal((CHANNELS, 10)))
    nodes.append(
        helper.make_node(
            "Gemm", ["flat", classes, constant("fc.b", np.zeros(10))], ["y"], name="fc"
        )
    )
    graph = helper.make_graph(
        nodes,
        "poisoned",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def write(folder: Path, *backends: str, samples: int = 24, poisoned: bool = True) -> Path:
    """The network, its data and the manifest, whose path is returned."""
    onnx.save(network(poisoned=poisoned), folder / "net.onnx")
    for seed, name in enumerate(("evaluation", "calibration")):
        random = np.random.default_rng(seed)
        array = random.standard_normal((samples, 3, 12, 12)).astype(np.float32)
        array *= random.uniform(0.5, 2, (samples, 3, 1, 1)).astype(np.float32)
        np.savez(folder / f"{name}.npz", array)
    path = folder / "wherry.yaml"
    path.write_text(MANIFEST.format(backends=", ".join(backends)))
    return path

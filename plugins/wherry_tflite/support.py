"""What tflite supports of each operator: onnx2tf's own list, and what is known beyond it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.normalise import EXPAND
from wherry.operators import Support
from wherry_tflite.operators import ALSO, REFUSED, RULES, UNKNOWN

if TYPE_CHECKING:
    from wherry.operators import Asking
    from wherry.requirements import Requirements

PARTLY: Mapping[str, str] = {
    "AveragePool": "Not with dilations.",
    "BatchNormalization": "Not in training mode.",
    "Conv": "Not with weights that are computed.",
    "ConvTranspose": "Not with weights that are computed.",
    "Dropout": "Not with its mask.",
    "GRU": "Not with a clip, sequence_lens, layout 1 or other activations than usual.",
    "GridSample": "Not cubic, and not with reflection.",
    "LSTM": "Not with its last cell state, peepholes, a clip, sequence_lens, layout 1 or other "
    "activations than usual.",
    "LpNormalization": "Only over the last axis.",
    "LpPool": "Not with dilations.",
    "MaxPool": "Not with dilations or indices.",
    "Mod": "Not with fmod.",
    "RNN": "Not with a clip, sequence_lens, layout 1 or other activations than Tanh and Relu.",
    "Resize": "Not with antialias, tf_crop_and_resize, half_pixel_symmetric, or scales that give "
    "no whole sizes.",
    "RoiAlign": "Only mode avg with output_half_pixel.",
    "ScatterElements": "Not with a reduction.",
    "ScatterND": "Not with a reduction.",
    "Slice": "Backwards only over a whole axis.",
    "Upsample": "Only nearest.",
}
"""What the pre-flight's rules refuse, in words; the pre-flight itself says it of nodes."""


def operators(tools: Asking, converter: Requirements) -> Mapping[str, Support]:
    """The operators that onnx2tf lists, less what comes out wrong, and what is written with others.

    Every one of them with constants for what decides shapes, and in types that TFLite computes.

    Args:
        tools: what runs tools.
        converter: the environment of onnx2tf.
    """
    script = Path(__file__).with_name("ask.py")
    listed = tools.run_tool(script, {}, requirements=converter)["operators"]
    expanded = [word.removeprefix(EXPAND) for word in ALSO if word.startswith(EXPAND)]
    found = dict.fromkeys(("Constant", *listed, *expanded), Support("yes"))
    found |= {name: Support("partly", PARTLY[name]) for name in RULES if name in found}
    found |= {name: Support("no", remedy) for name, remedy in {**UNKNOWN, **REFUSED}.items()}
    return found

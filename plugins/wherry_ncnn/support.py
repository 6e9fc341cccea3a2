"""What ncnn supports of each operator: what was tried, with the layers of the runtime at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.errors import EnvironmentError_
from wherry.operators import Support
from wherry_ncnn.operators import LAYERS, OPERATORS, REMEDIES

if TYPE_CHECKING:
    from wherry.operators import Asking
    from wherry.requirements import Requirements

PARTLY: Mapping[str, str] = {
    "Cast": "Only to and from what is float32 after all.",
    "DepthToSpace": "Only with mode CRD.",
    "Gather": "Only one index that is known in advance.",
    "GridSample": "Not nearest, cubic, or with reflection.",
    "GRU": "Not with its last state, in reverse, with a clip, other activations, or without "
    "linear_before_reset.",
    "LSTM": "Not with its last states, in reverse, with a clip or other activations.",
    "MaxPool": "Not with its indices.",
    "Mod": "Only with fmod.",
    "Pow": "Only with one exponent that is known in advance, and of whole ones 1 to 4.",
    "RNN": "Not with its last state, in reverse, with a clip or other activations.",
    "Resize": "Nearest only asymmetric with floor; linear and cubic only half_pixel or "
    "align_corners; no antialias.",
    "Shrink": "Only with its defaults.",
    "Slice": "Not backwards.",
    "Upsample": "Nearest only, as Resize.",
}
"""What the pre-flight refuses of an operator, in words."""


def operators(tools: Asking, runtime: Requirements) -> Mapping[str, Support]:
    """Operators of which a form converts right; every one in float32 and for a batch of 1.

    Args:
        tools: what runs tools.
        runtime: ncnn's, whose layers are compared with those that the list was made with.

    Raises:
        EnvironmentError_: this ncnn lacks layers: the list does not hold for it.
    """
    script = Path(__file__).with_name("ask.py")
    listed = tools.run_tool(script, {"layers": sorted(LAYERS)}, requirements=runtime)["layers"]
    if missing := sorted(LAYERS - set(listed)):
        raise EnvironmentError_(
            f"the ncnn at hand lacks the layers {', '.join(missing)}",
            where="ncnn",
            remedy="Remove its environment (`wherry cache gc`), so that it is made again.",
        )
    found = {name: Support("yes") for name in ("Constant", *OPERATORS)}
    found |= {name: Support("partly", PARTLY[name]) for name in PARTLY if name in found}
    return found | {n: Support("no", text) for n, text in REMEDIES.items() if n not in found}

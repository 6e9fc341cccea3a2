"""Windows and pixels of MACE against ONNX's, by what they take from a picture."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.reference import open_session, run_session
from wherry_mace.shapes import nearest
from wherry_mace.windows import CEIL, FLOOR, padding


@st.composite
def windows(draw):
    """(length, span, stride, begin, end) of which at least one window fits."""
    span = draw(st.integers(1, 7))
    begin, end = draw(st.integers(0, span - 1)), draw(st.integers(0, span - 1))
    length = draw(st.integers(max(1, span - begin - end), 20))
    return length, span, draw(st.integers(1, 5)), begin, end


@given(windows(), st.booleans())
def test_padding_gives_the_windows_that_onnx_has(window, may_ceil):
    length, span, stride, begin, end = window
    size = (length + begin + end - span) // stride + 1
    modes = (FLOOR, CEIL) if may_ceil else (FLOOR,)
    found = padding([length], [size], [span], [stride], [begin], modes)
    if found is None:
        for total in (2 * begin, 2 * begin + 1):
            room = length + total - span
            sizes = [room // stride + 1, *([-(-room // stride) + 1] if may_ceil else [])]
            assert size not in sizes, "MACE has a sum with this half in front and these windows"
        return
    (total,), mode = found
    room = length + total - span
    steps = -(-room // stride) if mode == CEIL else room // stride
    assert steps + 1 == size
    assert total // 2 == begin
    # where both are the same, so is every place that a window takes
    ours = [[at * stride - total // 2 + i for i in range(span)] for at in range(size)]
    theirs = [[at * stride - begin + i for i in range(span)] for at in range(size)]
    assert ours == theirs


@given(st.integers(1, 9), st.integers(1, 20), st.data())
def test_the_nearest_pixels_are_those_of_onnx_runtime(length, size, data):
    way = data.draw(
        st.sampled_from(["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"])
    )
    rounding = data.draw(
        st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
    )
    found = nearest([length, 1], [size, 1], way, rounding)
    if found is None:
        return
    mode, corners = found
    scale = np.float32(length) / np.float32(size)
    if corners and size > 1:
        scale = np.float32(length - 1) / np.float32(size - 1)
    places = (np.arange(size, dtype=np.float32) + np.float32(0.5 * (mode == 1))) * scale
    taken = np.floor(places + np.float32(0.5)) if corners else np.floor(places)
    wanted = _onnx_runtime(length, size, way, rounding)
    assert np.minimum(taken, length - 1).astype(int).tolist() == wanted


def _onnx_runtime(length, size, way, rounding):
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[1,1,{length},1] x) => (float[1,1,{size},1] y) <int64[4] s = {{1,1,{size},1}}> {{
            y = Resize <mode = "nearest", coordinate_transformation_mode = "{way}",
                        nearest_mode = "{rounding}"> (x, , , s)
        }}"""
    )
    session = open_session(model.SerializeToString(), threads=1, where="", as_written=True)
    given_ = np.arange(length, dtype=np.float32).reshape(1, 1, length, 1)
    return run_session(session, {"x": given_}, where="")["y"].ravel().astype(int).tolist()


@pytest.mark.parametrize(
    ("way", "rounding", "found"),
    [
        ("asymmetric", "floor", (0, 0)),
        ("half_pixel", "round_prefer_ceil", (1, 0)),
        ("half_pixel", "ceil", None),
    ],
)
def test_known_ways(way, rounding, found):
    assert nearest([4, 4], [3, 3], way, rounding) == found

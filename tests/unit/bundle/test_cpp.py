"""model.h: whatever names a model has, a compiler sees strings."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wherry.artifact import Artifact, Binding
from wherry.binding import Output
from wherry.bundle.cpp import header, literal, raw_samples, runtime_shape


@given(st.text())
def test_a_literal_is_the_text_and_nothing_else(text):
    made = literal(text)
    assert made.isascii()
    assert made.isprintable()
    assert "?" not in made, "no trigraph"
    assert ast.literal_eval(f"b{made}") == text.encode(errors="replace")


def test_hostile_names_stay_in_their_strings():
    name = '"}; int main() { system("true"); } //\n#include </etc/passwd>\\'
    artifact = Artifact(Path(), "x", "fp32", "x", {}, (Binding(name, name, "float32", (1, 2)),), ())
    text = header(artifact, {"threads": 2, "path": name}, 0.9)
    assert "/etc/passwd" not in [line.split("#include")[-1] for line in text.splitlines()]
    assert not any(line.startswith("#include </") for line in text.splitlines())
    assert "int main" not in text.replace(literal(name), "")


def test_a_sample_is_in_the_runtimes_form():
    binding = Binding("x", "r", "int8", (1, 3, 2, 4), (0, 2, 3, 1), True, 0.5, 3)
    assert runtime_shape(binding) == (2, 4, 3)
    artifact = Artifact(Path(), "x", "int8", "x", {}, (binding,), (binding,))
    given_ = np.arange(24, dtype=np.float32).reshape(1, 3, 2, 4)
    made = raw_samples(artifact, {"x": given_}, {"x": given_}, {"x": {"scale": 2.0}})
    as_runtime = {
        name: np.frombuffer(data, np.int8).reshape(2, 4, 3) for name, data in made.items()
    }
    for name, factor in (("sample_input_0.bin", 2), ("sample_output_0.bin", 1)):
        back = Output({key: getattr(binding, key) for key in Binding.__slots__})
        back.gather(0, 1, as_runtime[name])
        assert np.array_equal(back.gathered()[0], given_ * factor)

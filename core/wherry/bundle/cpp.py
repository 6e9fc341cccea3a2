"""For examples in C++: ``model.h``, which says what the artifact's tensors are, and raw samples.

The backends' sources (`wherry.target.Backend.examples`) include it. Names come from models and
may be anything: each is written so that no compiler sees more of it than a string.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry import preprocess
from wherry.artifact import Binding
from wherry.binding import Input

if TYPE_CHECKING:
    from wherry.artifact import Artifact

_HEADER = """\
// What the artifact of this bundle takes and gives, in the runtime's own form; written by wherry.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace model {{

struct Tensor {{
  const char *name;            // the runtime's
  const char *onnx;            // the model's
  const char *dtype;           // numpy's name: float32, int8, ...
  std::vector<int64_t> shape;  // the runtime's
  double scale;                // above 0: real = (whole - zero_point) * scale
  int64_t zero_point;
  const char *sample;          // a file: its bytes in the first sample
}};

struct Option {{
  const char *name;
  const char *value;
}};

const char precision[] = {precision};
const int threads = {threads};
const std::vector<Tensor> inputs = {{
{inputs}}};
const std::vector<Tensor> outputs = {{
{outputs}}};
const std::vector<Option> options = {{
{options}}};

inline std::string option(const std::string &name) {{
  for (const Option &each : options)
    if (name == each.name) return each.value;
  return "";
}}

inline std::vector<char> read(const std::string &path) {{
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return std::vector<char>(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}}

// The bytes of an input of the first sample, preprocessed and as the runtime takes them.
inline std::vector<char> sample(const std::string &folder, const Tensor &tensor) {{
  return read(folder + "/cpp/" + tensor.sample);
}}

template <typename T>
double cosine_of(const void *ours, const void *theirs, std::size_t bytes) {{
  const T *a = static_cast<const T *>(ours), *b = static_cast<const T *>(theirs);
  double product = 0, left = 0, right = 0;
  for (std::size_t i = 0; i < bytes / sizeof(T); i++) {{
    product += double(a[i]) * double(b[i]);
    left += double(a[i]) * double(a[i]);
    right += double(b[i]) * double(b[i]);
  }}
  return left == 0 && right == 0 ? 1 : product / std::sqrt(left * right);
}}

// Compares an output with what the sample's has to be; false where it is another one.
inline bool check(const std::string &folder, const Tensor &tensor, const void *data,
                  std::size_t bytes) {{
  const std::vector<char> wanted = sample(folder, tensor);
  if (bytes != wanted.size()) {{
    std::printf("%s: %zu bytes, and %zu are expected\\n", tensor.onnx, bytes, wanted.size());
    return false;
  }}
  const std::string dtype = tensor.dtype;
  const double cosine = dtype == "float32"  ? cosine_of<float>(data, wanted.data(), bytes)
                        : dtype == "int8"   ? cosine_of<int8_t>(data, wanted.data(), bytes)
                        : dtype == "uint8"  ? cosine_of<uint8_t>(data, wanted.data(), bytes)
                        : dtype == "int32"  ? cosine_of<int32_t>(data, wanted.data(), bytes)
                        : dtype == "int64"  ? cosine_of<int64_t>(data, wanted.data(), bytes)
                        : std::memcmp(data, wanted.data(), bytes) == 0 ? 1.0
                                                                       : 0.0;
  std::printf("%s: cosine %.6f (at least %g)\\n", tensor.onnx, cosine, {cosine});
  return cosine >= {cosine};
}}

}}  // namespace model
"""


def header(artifact: Artifact, options: Mapping[str, Any], cosine: float) -> str:
    """``model.h``."""
    return _HEADER.format(
        precision=literal(artifact.precision),
        threads=int(options.get("threads", 1)),
        inputs=_tensors(artifact.inputs, "input"),
        outputs=_tensors(artifact.outputs, "output"),
        options="".join(
            f"    {{{literal(name)}, {literal(_text(value))}}},\n"
            for name, value in options.items()
        ),
        cosine=repr(float(cosine)),
    )


def raw_samples(
    artifact: Artifact,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    specs: Mapping[str, Mapping[str, Any]],
) -> dict[str, bytes]:
    """File names to the bytes of one sample, in the runtime's form.

    Args:
        artifact: says the form.
        inputs: ONNX name to array, as the data has it.
        outputs: likewise, in the ONNX shapes.
        specs: the declared preprocessing of ``inputs``.
    """
    sides: Sequence[tuple[str, Iterable[Binding], Mapping[str, np.ndarray], Mapping[str, Any]]]
    sides = (
        ("input", artifact.inputs, inputs, specs),
        ("output", artifact.outputs, outputs, {}),
    )
    return {
        _file(side, index): Input(_values(each), dict(given.get(each.onnx, {})), preprocess.apply)
        .prepare(arrays[each.onnx])
        .tobytes()
        for side, bindings, arrays, given in sides
        for index, each in enumerate(bindings)
    }


def literal(text: str) -> str:
    """A string of C and C++, whatever the text is."""
    return '"' + "".join(map(_escaped, text.encode(errors="replace"))) + '"'


def _escaped(byte: int) -> str:
    sign = chr(byte)
    # three octal digits end an escape by themselves; `?` could begin a trigraph
    return sign if sign.isascii() and (sign.isalnum() or sign in " _./:=,-") else f"\\{byte:03o}"


def _tensors(bindings: Iterable[Binding], side: str) -> str:
    return "".join(
        f"    {{{literal(each.runtime)}, {literal(each.onnx)}, {literal(each.dtype)}, "
        f"{{{', '.join(map(str, runtime_shape(each)))}}}, {each.scale or 0.0!r}, "
        f"{each.zero_point}, {literal(_file(side, index))}}},\n"
        for index, each in enumerate(bindings)
    )


def runtime_shape(binding: Binding) -> tuple[int, ...]:
    """Of the tensor as the runtime has it."""
    order = binding.permutation or range(len(binding.shape))
    shape = tuple(binding.shape[axis] for axis in order)
    return shape[1:] if binding.drop_batch else shape


def _file(side: str, index: int) -> str:
    return f"sample_{side}_{index}.bin"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _values(binding: Binding) -> dict[str, Any]:
    return {name: getattr(binding, name) for name in Binding.__slots__}

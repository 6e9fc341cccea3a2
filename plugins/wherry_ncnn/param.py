"""Reads and writes ncnn's ``.param`` files: the graph of a converted network, as text.

The form (ncnn's source, ``net.cpp`` and ``paramdict.cpp``)::

    7767517
    LAYERS BLOBS
    TYPE NAME N_INPUTS N_OUTPUTS INPUTS... OUTPUTS... KEY=VALUE ...

A value is a whole number, a decimal one, or a text; the key ``-23300 - k`` says that the key ``k``
has an array, ``-23300=COUNT,VALUE,...``. ncnn reads 15 characters of a number and no more, and
keeps decimal ones in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_MAGIC = "7767517"
_ARRAY = -23300
_LONGEST = 15  # characters of a number
Value = int | float | str


@dataclass(frozen=True, slots=True)
class Layer:
    """One line.

    Attributes:
        type: of the layer, e.g. ``Convolution``.
        name: unique in a file.
        inputs: blobs that it takes.
        outputs: blobs that it makes.
        parameters: key to value, or to a tuple of values for an array.
    """

    type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[int, Value | tuple[Value, ...]]


def parse(text: str) -> tuple[Layer, ...]:
    """The layers in order; raises ValueError that names the line where it is not a network."""
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, words) for number, words in lines if words]
    if not lines or lines[0][1] != [_MAGIC]:
        raise ValueError(f"line 1: the first line of a .param file is {_MAGIC}")
    try:
        layer_count, blob_count = (int(word) for word in lines[1][1])
    except (IndexError, ValueError):
        raise ValueError("line 2: two numbers are wanted, of layers and of blobs") from None
    layers: list[Layer] = []
    made: set[str] = set()
    for number, words in lines[2:]:
        try:
            layer = _layer(words)
            for blob in layer.inputs:
                if blob not in made:
                    raise ValueError(f"no layer before makes the blob {blob!r}")
            for blob in layer.outputs:
                if blob in made:
                    raise ValueError(f"the blob {blob!r} is made a second time")
                made.add(blob)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        layers.append(layer)
    if (len(layers), len(made)) != (layer_count, blob_count):
        raise ValueError(
            f"line 2: it says {layer_count} layers and {blob_count} blobs, and there are "
            f"{len(layers)} and {len(made)}"
        )
    return tuple(layers)


def _layer(words: list[str]) -> Layer:
    if len(words) < 4:
        raise ValueError("a layer has a type, a name and two counts")
    kind, name, *counts = words[:4]
    try:
        inputs, outputs = (int(count) for count in counts)
    except ValueError:
        raise ValueError(f"the counts of inputs and outputs are not numbers: {counts}") from None
    blobs = words[4 : 4 + inputs + outputs]
    if min(inputs, outputs) < 0 or len(blobs) != inputs + outputs:
        raise ValueError(f"{inputs} inputs and {outputs} outputs are announced, and not there")
    parameters = dict(_parameter(word) for word in words[4 + inputs + outputs :])
    return Layer(kind, name, tuple(blobs[:inputs]), tuple(blobs[inputs:]), parameters)


def _parameter(word: str) -> tuple[int, Value | tuple[Value, ...]]:
    key_text, equals, text = word.partition("=")
    try:
        key = int(key_text)
    except ValueError:
        equals = ""
    if not equals:
        raise ValueError(f"{word!r} is not KEY=VALUE")
    if key > _ARRAY:
        return key, _value(text)
    count, *values = text.split(",")
    if count != str(len(values)):
        raise ValueError(f"{word!r} announces {count} values and holds {len(values)}")
    return _ARRAY - key, tuple(_value(value) for value in values)


def _value(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def write(layers: Sequence[Layer]) -> str:
    """The inverse of `parse`; decimal values that would be too long lose what float32 has not."""
    lines = [_MAGIC, f"{len(layers)} {sum(len(layer.outputs) for layer in layers)}"]
    for layer in layers:
        counts = f"{len(layer.inputs)} {len(layer.outputs)}"
        words = [f"{layer.type:<24} {layer.name:<24} {counts}", *layer.inputs, *layer.outputs]
        words += [_written(key, value) for key, value in layer.parameters.items()]
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def _written(key: int, value: Value | tuple[Value, ...]) -> str:
    if isinstance(value, tuple):
        return f"{_ARRAY - key}={','.join([str(len(value)), *map(_text, value)])}"
    return f"{key}={_text(value)}"


def _text(value: Value) -> str:
    text = str(value)
    if isinstance(value, float) and len(text) > _LONGEST:
        return f"{value:.8e}"  # all of a float32
    return text

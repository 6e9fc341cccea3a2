"""ONNX's own backend tests as networks for wherry: `cases` gives those that can be judged.

The suite gives everything as an input, also what a network has as constants: weights, axes, shapes.
So a case comes in up to two forms: as it is, and with every input after the first one made a
constant of the test's values. The second form is for who refuses the first.

A case is judged where wherry takes the model (tensors of numbers with static shapes) and ONNX
Runtime gives the outputs that the suite expects. Its samples are the test's, and the same with the
floating point inputs' values in another order, where the network takes that.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from wherry.errors import ModelError
from wherry.model import Model
from wherry.reference import open_session, run_session

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
NUMBERS = "biuf"  # numpy's kinds
Sample = dict[str, np.ndarray]


class LeftOutError(Exception):
    """Why a case is not judged."""


@dataclass
class Form:
    """A network and what to run it on.

    Attributes:
        model: with static shapes.
        samples: its inputs.
        digest: of both.
    """

    model: Model
    samples: list[Sample]
    digest: str


@dataclass
class Case:
    """A test of the suite.

    Attributes:
        name: the suite's.
        kind: one of `KINDS`.
        operators: of the network as it is.
        forms: one or two, see the module.
    """

    name: str
    kind: str
    operators: tuple[str, ...]
    forms: list[Form]


def load_tests(only: str = "", kinds: Iterable[str] = KINDS) -> list[TestCase]:
    """The suite's tests whose names hold the expression."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, about what the suite computes on purpose
        found = [case for kind in kinds for case in load_model_tests(kind=kind)]
    return [case for case in found if re.search(only, case.name)]


def cases(tests: Iterable[TestCase], folder: Path) -> Iterator[Case | tuple[str, str]]:
    """Each test as a case, or (its name, why it is not judged)."""
    for test in tests:
        place = folder / f"{test.kind}-{test.name}"
        try:
            yield _case(test, place)
        except LeftOutError as reason:
            yield test.name, str(reason)


def _case(test: TestCase, folder: Path) -> Case:
    proto, sets = _load(test)
    constants = {tensor.name for tensor in proto.graph.initializer}
    names = [value.name for value in proto.graph.input if value.name not in constants]
    if not names:
        raise LeftOutError("it has no inputs")
    samples = [dict(zip(names, map(_numbers, inputs), strict=False)) for inputs, _ in sets]
    if any(set(sample) != set(names) for sample in samples):
        raise LeftOutError("an input is optional")
    _check(proto, test, samples, [outputs for _, outputs in sets])
    operators = tuple(dict.fromkeys(node.op_type for node in proto.graph.node))
    forms = []
    refused = ""
    for number, made in enumerate((proto, with_constants(proto, names, samples[0]))):
        if made is None:
            continue
        kept = names if number == 0 else names[:1]
        fitting = [{name: sample[name] for name in kept} for sample in samples]
        try:
            forms.append(_form(made, fitting, folder / str(number)))
        except ModelError as error:
            refused = refused or f"wherry refuses it: {error.message}"
    if not forms:
        raise LeftOutError(refused)
    return Case(test.name, test.kind, operators, forms)


def _load(test: TestCase) -> tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]:
    if test.model is not None:
        model = onnx.ModelProto()
        model.CopyFrom(test.model)
        return model, [(list(inputs), list(outputs)) for inputs, outputs in test.data_sets]
    root = Path(test.model_dir)
    sets = []
    for folder in sorted(root.glob("test_data_set_*")):
        sides = []
        for side in ("input", "output"):
            count = len(list(folder.glob(f"{side}_*.pb")))
            sides.append([_tensor(folder / f"{side}_{index}.pb") for index in range(count)])
        sets.append((sides[0], sides[1]))
    return onnx.load(root / "model.onnx"), sets


def _tensor(path: Path) -> np.ndarray:
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        return numpy_helper.to_array(tensor)
    except Exception as error:  # a sequence, in a file that looks the same
        raise LeftOutError("it takes more than tensors") from error


def _numbers(value: Any) -> np.ndarray:
    if value is None or isinstance(value, (list, dict)):
        raise LeftOutError("it takes more than tensors")
    array = np.asarray(value)
    if array.dtype.kind not in NUMBERS or array.dtype.name.startswith(("bfloat", "float8", "int4")):
        if array.dtype.kind == "O":
            raise LeftOutError("it takes strings, or types that numpy lacks (float8, int4, ...)")
        raise LeftOutError(f"it takes tensors of {array.dtype}")
    if not array.size:
        raise LeftOutError("an input is empty")
    return array


def _check(
    proto: onnx.ModelProto, test: TestCase, samples: Sequence[Sample], wanted: Sequence[list[Any]]
) -> None:
    """ONNX Runtime passes the test."""
    try:
        session = open_session(proto.SerializeToString(), threads=1, where="")
        for sample, outputs in zip(samples, wanted, strict=True):
            found = run_session(session, sample, where="").values()
            for ours, theirs in zip(found, outputs, strict=True):
                np.testing.assert_allclose(ours, np.asarray(theirs), rtol=test.rtol, atol=test.atol)
    except (ModelError, TypeError, ValueError, AssertionError) as error:
        raise LeftOutError("ONNX Runtime does not pass it") from error


def with_constants(
    proto: onnx.ModelProto, names: Sequence[str], sample: Sample
) -> onnx.ModelProto | None:
    """The second form; None where it is no other."""
    if len(names) < 2:
        return None
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    kept = [value for value in proto.graph.input if value.name not in names[1:]]
    del made.graph.input[:]
    made.graph.input.extend(kept)
    made.graph.initializer.extend(numpy_helper.from_array(sample[name], name) for name in names[1:])
    return made


def _form(proto: onnx.ModelProto, samples: list[Sample], folder: Path) -> Form:
    shapes = {name: array.shape for name, array in samples[0].items()}
    for value in proto.graph.input:
        if value.name in shapes:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, shapes[value.name]))
    folder.mkdir(parents=True)
    onnx.save(proto, folder / "given.onnx")
    (folder / "static").mkdir()
    model = Model.load(folder / "given.onnx").with_static_shapes({}, folder / "static")
    session = open_session(str(model.path), threads=1, where="")
    for sample in samples:
        found = run_session(session, sample, where="")
        if any(found[spec.name].shape != spec.static_shape for spec in model.outputs):
            raise LeftOutError("the shape of an output depends on the data")
    if other := _shuffled(session, samples[0]):
        samples = [*samples, other]
    digest = hashlib.sha256(model.digest.encode())
    for sample in samples:
        for name, array in sample.items():
            digest.update(name.encode() + array.tobytes())
    return Form(model, samples, digest.hexdigest())


def _shuffled(session: Any, sample: Sample) -> Sample | None:
    """The same values in another order; None where the network does not take that."""
    generator = np.random.default_rng(7)
    other = {
        name: generator.permutation(array.ravel()).reshape(array.shape)
        if array.dtype.kind == "f"
        else array
        for name, array in sample.items()
    }
    if all(np.array_equal(other[name], array, equal_nan=True) for name, array in sample.items()):
        return None
    first = run_session(session, sample, where="")
    with contextlib.suppress(ModelError):
        second = run_session(session, other, where="")
        if all(
            array.shape == second[name].shape and not np.isnan(second[name]).any()
            for name, array in first.items()
        ):
            return other
    return None


def nameless(error_text: str, where: str | None, remedy: str | None, model: Model) -> str:
    """What a refusal does not say: ``operator``, ``node``, ``remedy``; empty where it says all."""
    text = f"{where} {error_text}"
    operators: Mapping[str, Sequence[str]] = model.operators()
    missing = []
    if not any(re.search(rf"\b{re.escape(kind)}\b", text) for kind in operators):
        missing.append("operator")
    if not any(name in text for names in operators.values() for name in names):
        missing.append("node")
    if not (remedy or "").strip().endswith("."):
        missing.append("remedy")
    return " ".join(missing)


def code_of(paths: Iterable[Path]) -> str:
    """A digest of files, to know results that are out of date."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return f"{digest.hexdigest()[:16]}-{onnx.__version__}"

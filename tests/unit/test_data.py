"""Arrays, slices, preprocessed samples, and the check that goes before any use."""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wherry.data import sources
from wherry.data.arrays import ArrayDataset, NpzParameters, load_npz
from wherry.data.spec import PreprocessSpec
from wherry.data.views import Preprocessed, Sliced, check_dataset, named_inputs
from wherry.dataset import Dataset, Sample
from wherry.errors import DataError
from wherry.model import Model, TensorSpec

SOURCES = {source.name: source for source in sources()}


@dataclass(frozen=True)
class Folder:
    """A `DataContext` without packages."""

    base: Path

    def packages(self, requirements):
        raise AssertionError("no package is wanted here")


def model(*outputs, inputs=(("image", "float32", (1, 1, 4, 4)),)):
    specs = [tuple(TensorSpec(*each) for each in side) for side in (inputs, outputs)]
    return Model(Path("net.onnx"), "0", *specs, 17, 8)


CLASSIFIER = model(("logits", "float32", (1, 10)))


def digits(count=6, **changes):
    rng = np.random.default_rng(0)
    inputs = {"": rng.integers(0, 256, (count, 4, 4), dtype=np.uint8)}
    return ArrayDataset(
        "digits", changes.get("inputs", inputs), changes.get("labels", np.arange(count))
    )


def test_the_sources_have_names_and_closed_parameters():
    assert list(SOURCES) == [
        "npz", "images", "csv", "mnist5k", "mnist-package", "sklearn-digits", "random", "python",
    ]  # fmt: skip
    for source in SOURCES.values():
        assert source.parameters.model_config["extra"] == "forbid"
        assert "source" not in source.parameters.model_fields
        assert all(field.description for field in source.parameters.model_fields.values())
        with pytest.raises(ValidationError):
            source.parameters.model_validate({"surely_not": 1})


def test_the_documentation_names_every_source_and_parameter():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    sections = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL))
    assert list(sections) == list(SOURCES)
    for name, source in SOURCES.items():
        for parameter in source.parameters.model_fields:
            assert f"`{parameter}`" in sections[name], (name, parameter)
    for key in PreprocessSpec.model_fields:
        assert f"`{key}`" in text


# ---------------------------------------------------------------------------- npz


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def load(tmp_path, **said):
    return load_npz(NpzParameters.model_validate({"path": "data.npz", **said}), Folder(tmp_path))


def test_the_only_array_is_the_only_input(tmp_path):
    pictures = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    save(tmp_path / "data.npz", x=pictures, labels=np.array([3, 7]))
    dataset = load(tmp_path)
    assert len(dataset) == 2
    samples = list(dataset)
    np.testing.assert_array_equal(samples[1].inputs[""], pictures[1])
    assert [sample.label for sample in samples] == [3, 7]
    assert all(type(sample.label) is int for sample in samples)
    for beyond in (2, -1):
        with pytest.raises(IndexError):
            dataset[beyond]


def test_arrays_are_named_as_inputs_or_mapped_to_them(tmp_path):
    save(tmp_path / "data.npz", a=np.zeros((2, 3)), b=np.ones((2, 3)), y=np.ones((2, 1), int))
    assert set(load(tmp_path)[0].inputs) == {"a", "b", "y"}
    assert load(tmp_path)[0].label is None
    mapped = load(tmp_path, inputs={"image": "b"}, labels="y")
    assert mapped[0].inputs["image"].tolist() == [1, 1, 1]
    assert mapped[0].label == 1


def test_labels_may_be_arrays(tmp_path):
    masks = np.arange(8).reshape(2, 2, 2)
    save(tmp_path / "data.npz", x=np.zeros((2, 4)), labels=masks)
    np.testing.assert_array_equal(load(tmp_path)[1].label, masks[1])


@pytest.mark.parametrize(
    ("arrays", "said", "words", "remedy"),
    [
        ({"x": np.zeros((2, 3))}, {"labels": "y"}, "no array 'y'; there are 'x'", "Correct"),
        ({"images": np.zeros((2, 3))}, {"inputs": {"i": "image"}}, "no array 'image'", "'images'"),
        ({"x": np.zeros((2, 3)), "labels": np.zeros(3)}, {}, "not have one length", "first axis"),
        ({"x": np.array(1.0)}, {}, "not have one length", "first axis"),
        ({"x": np.array(["a"])}, {}, "holds <U1", "numbers"),
        ({"labels": np.zeros(3)}, {}, "no array for an input", "beside the labels"),
        ({"x": np.array([{}], object)}, {}, "cannot be read", "again"),
    ],
)
def test_arrays_that_are_no_samples(tmp_path, arrays, said, words, remedy):
    save(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError) as caught:
        load(tmp_path, **said)
    assert words in caught.value.message
    assert remedy in caught.value.remedy
    assert "data.npz" in caught.value.where


def broken_files():
    whole = io.BytesIO()
    np.savez_compressed(whole, x=np.random.default_rng(0).normal(size=(20, 20)))
    damaged = bytearray(whole.getvalue())
    damaged[200:300] = bytes(100)
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    stranger = io.BytesIO()
    with zipfile.ZipFile(stranger, "w") as archive:
        archive.writestr("x.npy", b"no array")
    return {
        "empty": b"",
        "text": b"hello",
        "cut": whole.getvalue()[:-40],
        "damaged": bytes(damaged),
        "npy": single.getvalue(),
        "stranger": stranger.getvalue(),
    }


@pytest.mark.parametrize("name", broken_files())
def test_files_that_are_no_arrays(tmp_path, name):
    (tmp_path / "data.npz").write_bytes(broken_files()[name])
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert caught.value.where.endswith("data.npz")
    assert caught.value.remedy


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path)


# ---------------------------------------------------------------------------- digests


def test_a_digest_changes_with_every_byte_name_type_shape_and_label():
    array = np.zeros((2, 3, 4), np.uint8)
    other = array.copy()
    other[1, 2, 3] = 1
    variants = [
        ArrayDataset("a", {"": array}),
        ArrayDataset("a", {"x": array}),
        ArrayDataset("a", {"": other}),
        ArrayDataset("a", {"": array.astype(np.int8)}),
        ArrayDataset("a", {"": array.reshape(2, 4, 3)}),
        ArrayDataset("a", {"": array}, np.array([0, 1])),
        ArrayDataset("a", {"": array}, np.array([1, 0])),
    ]
    assert len({dataset.digest for dataset in variants}) == len(variants)
    assert ArrayDataset("b", {"": array.copy()}).digest == variants[0].digest
    transposed = np.asfortranarray(array)
    assert ArrayDataset("a", {"": transposed}).digest == variants[0].digest


# ---------------------------------------------------------------------------- slices


@given(st.integers(1, 9), st.none() | st.integers(0, 10), st.none() | st.integers(0, 10))
def test_a_slice_is_python_s_or_an_error(count, start, stop):
    dataset = digits(count)
    expected = list(range(count))[start:stop]
    if not expected or (stop or 0) > count:
        with pytest.raises(DataError, match=f"{count} samples"):
            Sliced(dataset, start, stop)
        return
    view = Sliced(dataset, start, stop)
    assert [sample.label for sample in view] == expected
    assert len(view) == len(expected)
    with pytest.raises(IndexError):
        view[len(expected)]
    assert (view.digest == dataset.digest) == (len(expected) == count)
    assert (view.digest == Sliced(dataset, 0, 1).digest) == (expected == [0])


# ---------------------------------------------------------------------------- preprocessed


def test_samples_as_the_model_takes_them():
    view = Preprocessed(digits(), {"image": {"scale": 0.5}}, CLASSIFIER.inputs)
    sample = view[2]
    assert sample.label == 2
    assert sample.inputs["image"].shape == (1, 1, 4, 4)
    np.testing.assert_array_equal(
        sample.inputs["image"][0, 0], digits()[2].inputs[""].astype(np.float32) / 2
    )
    others = [
        digits(),
        Preprocessed(digits(), {}, CLASSIFIER.inputs),
        Preprocessed(digits(), {"image": {"scale": 0.25}}, CLASSIFIER.inputs),
        Preprocessed(
            digits(), {"image": {"scale": 0.5}}, [TensorSpec("image", "float16", (1, 4, 4))]
        ),
    ]
    assert len({view.digest, *(other.digest for other in others)}) == 5
    with pytest.raises(IndexError):
        view[6]


PAIR = (("a", "float32", (1, 4)), ("b", "float32", (1, 4)))


@pytest.mark.parametrize(
    ("arrays", "inputs", "words", "remedy"),
    [
        (["x"], PAIR[:1], "an input 'x', and the model has 'a'", "Name the inputs"),
        (["aa", "b"], PAIR, "an input 'aa'", "Did you mean 'a'?"),
        (["a"], PAIR, "nothing for the model's input 'b'", "all inputs"),
        ([""], PAIR, "does not name its inputs", "Name the inputs"),
        ([], PAIR[:1], "nothing for the model's input 'a'", "all inputs"),
    ],
)
def test_names_that_are_not_the_model_s(arrays, inputs, words, remedy):
    specs = [TensorSpec(*each) for each in inputs]
    with pytest.raises(DataError) as caught:
        named_inputs({name: np.zeros(4) for name in arrays}, specs, "sample 3")
    assert words in caught.value.message
    assert remedy in caught.value.remedy
    assert caught.value.where == "sample 3"


# ---------------------------------------------------------------------------- the check


class Listed(Dataset):
    name = "list"
    digest = "0"

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def picture(label=None, *, value=0.0, shape=(4, 4)):
    return Sample({"": np.full(shape, value, np.float32)}, label)


GOOD = picture(9)


def test_what_fits_passes_and_is_counted():
    seen = []
    check_dataset(
        digits(),
        CLASSIFIER,
        {"image": {"scale": 0.5}},
        where="m.yaml:3",
        needs_labels=True,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(index, 6) for index in range(1, 7)]
    check_dataset(Listed(picture(), GOOD), CLASSIFIER, {}, where="m.yaml:3")


@pytest.mark.parametrize(
    ("samples", "preprocess", "words"),
    [
        ([], {}, "list has no samples"),
        (
            [GOOD, picture(shape=(4, 5))],
            {},
            "sample 1 of list: input 'image': an array of shape 4x5",
        ),
        ([GOOD, GOOD, picture(value=np.nan)], {}, "sample 2 of list: input 'image' holds NaN"),
        ([picture(value=np.inf)], {}, "holds infinity"),
        ([picture(value=1e38)], {"image": {"scale": 30.0}}, "holds infinity"),
        (
            [GOOD, picture(10)],
            {},
            "sample 1 of list: the label is 10, and the model has 10 classes",
        ),
        ([picture(-1)], {}, "the label is -1, and classes count from 0"),
        ([GOOD], {"imagge": {}}, "declared for the input 'imagge'"),
        ([Sample({"b": np.zeros((4, 4))})], {}, "sample 0 of list: the data has an input 'b'"),
        ([GOOD, picture()], {}, "sample 1 of list: it has no label"),
    ],
)
def test_what_does_not_fit_is_said_with_the_sample_and_the_place(samples, preprocess, words):
    with np.errstate(over="ignore"), pytest.raises(DataError) as caught:
        check_dataset(
            Listed(*samples), CLASSIFIER, preprocess, where="m.yaml:3:5", needs_labels=True
        )
    assert words in caught.value.message
    assert caught.value.where == "m.yaml:3:5"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("outputs", "label", "fits"),
    [
        ([("a", "float32", (1, 4)), ("b", "float32", (1, 12))], 11, True),
        ([("a", "float32", (1, 4)), ("b", "float32", (1, 12))], 12, False),
        ([("a", "float32", (1, 21, 8, 8))], 20, True),
        ([("a", "float32", (1, 21, 8, 8))], 21, False),
        ([("a", "int64", (1,))], 999, True),  # it may tell any number of classes apart
        ([("a", "float32", (1, 1))], 1, True),  # no scores of classes
        ([("a", "float32", ())], 1, True),
        ([("a", "float32", (1, 2))], np.array([77]), True),  # an array: for metrics to judge
    ],
)
def test_labels_beyond_every_output(outputs, label, fits):
    dataset = Listed(picture(label))
    if fits:
        check_dataset(dataset, model(*outputs), {}, where="m.yaml")
    else:
        with pytest.raises(DataError, match="the model has"):
            check_dataset(dataset, model(*outputs), {}, where="m.yaml")

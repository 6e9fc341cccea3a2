"""Pictures and tables: what becomes of a file's pixels, and what is wrong with a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from wherry.data import pictures
from wherry.data.pictures import ImagesParameters, PictureOptions, load_images, read_picture
from wherry.data.tables import CsvParameters, load_csv
from wherry.errors import DataError


@dataclass(frozen=True)
class Folder:
    base: Path


def draw(path, *, height=4, width=4, value=0, mode="RGB", **saving):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    Image.fromarray(np.full(shape, value, np.uint8), mode=None).save(path, **saving)
    return path


def options(**said):
    return PictureOptions.model_validate(said)


# ---------------------------------------------------------------------------- pictures


def test_pixels_are_those_of_the_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png", options())
    np.testing.assert_array_equal(read, pixels)
    gray = read_picture(tmp_path / "a.png", options(mode="gray"))
    assert (gray.shape, gray.dtype) == ((5, 7), np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_every_mode_of_8_bits_becomes_rgb(tmp_path, mode):
    Image.new(mode, (3, 2)).save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    (path,) = tmp_path.iterdir()
    assert read_picture(path, options()).shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("said", "shape"),
    [
        ({}, (30, 50, 3)),
        ({"size": 20}, (20, 20, 3)),
        ({"size": [10, 24]}, (10, 24, 3)),
        ({"size": [24, 10], "resize": "exact"}, (24, 10, 3)),
        ({"size": 20, "shorter_side": 25}, (20, 20, 3)),
        ({"size": 64, "interpolation": "bicubic"}, (64, 64, 3)),
        ({"size": [7, 64], "interpolation": "nearest"}, (7, 64, 3)),
    ],
)
def test_sizes(tmp_path, said, shape):
    path = draw(tmp_path / "a.png", height=30, width=50)
    assert read_picture(path, options(**said)).shape == shape


@pytest.mark.parametrize("width", range(1, 40))
def test_a_crop_fits_whatever_the_sides_are(tmp_path, width):
    path = draw(tmp_path / "a.png", height=23, width=width)
    assert read_picture(path, options(size=[28, 17])).shape == (28, 17, 3)


def test_a_crop_takes_the_middle(tmp_path):
    pixels = np.zeros((2, 8), np.uint8)
    pixels[:, 3:5] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png", options(size=2, mode="gray")) == 255).all()


def test_a_picture_smaller_than_its_crop(tmp_path):
    path = draw(tmp_path / "a.png", height=30, width=50)
    with pytest.raises(DataError, match=r"scaled to 16x26 .*smaller than 20x20"):
        read_picture(path, options(size=20, shorter_side=16))


def test_pictures_that_cannot_be_read(tmp_path):
    whole = draw(tmp_path / "a.png", height=64, width=64).read_bytes()
    bad = {"text.png": b"hello", "empty.png": b"", "cut.png": whole[:60]}
    bad["script.png"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="cannot be read") as caught:
            read_picture(tmp_path / name, options())
        assert caught.value.where.endswith(name)
    with pytest.raises(DataError, match="no such picture"):
        read_picture(tmp_path / "absent.png", options())
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        read_picture(tmp_path / "deep.png", options())


def test_without_pillow_the_remedy_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(DataError) as caught:
        load_images(ImagesParameters(path=tmp_path), Folder(tmp_path))
    assert 'pip install "wherry[images]"' in caught.value.remedy


@pytest.mark.parametrize("bad", [{"size": 0}, {"size": [1]}, {"mode": "cmyk"}, {"resize": "pad"}])
def test_options_that_cannot_be(bad):
    with pytest.raises(ValidationError):
        options(**bad)


# ---------------------------------------------------------------------------- images


def images(folder, **said):
    return load_images(ImagesParameters.model_validate({"path": "data", **said}), Folder(folder))


def test_class_folders_give_one_of_each_class_in_turn(tmp_path):
    for name, count in (("cat", 3), ("dog", 1), ("owl", 2)):
        for index in range(count):
            draw(tmp_path / "data" / name / f"{index}.png", value=index)
    (tmp_path / "data" / "cat" / "notes.txt").touch()
    (tmp_path / "data" / ".hidden").mkdir()
    dataset = images(tmp_path)
    assert [sample.label for sample in dataset] == [0, 1, 2, 0, 2, 0]
    assert [int(sample.inputs[""].max()) for sample in dataset] == [0, 0, 0, 1, 1, 2]
    with pytest.raises(IndexError):
        dataset[6]


def test_classes_in_the_model_s_order(tmp_path):
    for name in ("cat", "dog"):
        draw(tmp_path / "data" / name / "a.png")
    (tmp_path / "classes.txt").write_text("dog\n\nowl\ncat\n")
    assert [sample.label for sample in images(tmp_path, classes="classes.txt")] == [2, 0]
    (tmp_path / "classes.txt").write_text("dog\ncats\n")
    with pytest.raises(DataError, match="'cat' is no class of the 2") as caught:
        images(tmp_path, classes="classes.txt")
    assert "Did you mean 'cats'?" in caught.value.remedy


def test_a_flat_folder_with_and_without_labels(tmp_path):
    for name in ("b.png", "a b.png"):
        draw(tmp_path / "data" / name)
    assert [sample.label for sample in images(tmp_path)] == [None, None]
    labels = tmp_path / "labels.txt"
    labels.write_text("b.png 7\na b.png\t3\n")
    assert [sample.label for sample in images(tmp_path, labels="labels.txt")] == [7, 3]
    labels.write_text("b.png,owl\n")
    (tmp_path / "classes.txt").write_text("cat\nowl\n")
    dataset = images(tmp_path, labels="labels.txt", classes="classes.txt")
    assert [sample.label for sample in dataset] == [1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("b.png 7\nc.png 3", "labels.txt:2: there is no picture 'c.png'"),
        ("b.png", "labels.txt:1: not a line of the form"),
        ("b.png owl", "'owl' is no class's index"),
        ("b.png -1", "'-1' is no class's index"),
    ],
)
def test_lines_that_are_no_labels(tmp_path, text, words):
    draw(tmp_path / "data" / "b.png")
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(DataError) as caught:
        images(tmp_path, labels="labels.txt")
    assert words in str(caught.value)


def test_folders_that_are_no_data(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        images(tmp_path)
    draw(tmp_path / "data" / "cat" / "a.png")
    draw(tmp_path / "data" / "b.png")
    with pytest.raises(DataError, match=r"class folders .* and pictures beside them"):
        images(tmp_path)
    with pytest.raises(DataError, match="cannot be read as text"):
        images(tmp_path, classes="absent.txt")


def test_a_digest_is_over_bytes_labels_and_options(tmp_path):
    draw(tmp_path / "data" / "cat" / "a.png")
    draw(tmp_path / "data" / "dog" / "a.png")
    first = images(tmp_path)
    assert images(tmp_path).digest == first.digest
    assert images(tmp_path, size=2).digest != first.digest
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert images(tmp_path, classes="classes.txt").digest != first.digest
    draw(tmp_path / "data" / "cat" / "a.png", value=1)
    assert images(tmp_path).digest != first.digest


def test_a_digest_knows_the_decoder(tmp_path, monkeypatch):
    draw(tmp_path / "data" / "a.png")
    first = images(tmp_path).digest
    monkeypatch.setattr(pictures, "_pillow_version", lambda: "0.1")
    assert images(tmp_path).digest != first


# ---------------------------------------------------------------------------- csv


def table(folder, text, **said):
    (folder / "lists").mkdir(exist_ok=True)
    (folder / "lists" / "data.csv").write_text(text, encoding="utf-8")
    return load_csv(
        CsvParameters.model_validate({"path": "lists/data.csv", **said}), Folder(folder)
    )


@pytest.fixture
def files(tmp_path):
    for name in ("a", "b"):
        draw(tmp_path / "lists" / f"{name}.png")
        np.save(tmp_path / "lists" / f"{name}.npy", np.arange(3) + ord(name))
    return tmp_path


def test_a_table_of_pictures_and_arrays(files):
    dataset = table(files, "path,label\na.png,1\nb.npy,0\n", mode="gray")
    assert [sample.label for sample in dataset] == [1, 0]
    assert dataset[0].inputs[""].shape == (4, 4)
    assert dataset[1].inputs[""].tolist() == [98, 99, 100]


def test_a_table_with_several_inputs_and_other_columns(files):
    text = "\ufeffleft;right;who;class\na.npy;b.npy;x;owl\nb.npy;a.npy;y;cat\n"
    dataset = table(files, text, delimiter=";", label="class", inputs={"l": "left", "r": "right"})
    assert dataset[0].inputs["r"].tolist() == [98, 99, 100]
    assert [sample.label for sample in dataset] == [1, 0]
    unlabelled = table(files, text, delimiter=";", inputs={"l": "left"})
    assert unlabelled[0].label is None


def test_labels_that_are_files_or_numbers(files):
    arrays = table(files, "path,label\na.png,b.npy\n")
    assert arrays[0].label.tolist() == [98, 99, 100]
    numbers = table(files, "path,label\na.png,0.5\nb.png,2\n")
    assert [float(sample.label) for sample in numbers] == [0.5, 2]
    assert arrays.digest != numbers.digest


@pytest.mark.parametrize(
    ("text", "said", "words"),
    [
        ("", {}, "data.csv:1: there is no column 'path'"),
        ("file,label\na.png,1\n", {}, "there is no column 'path'; there are 'file', 'label'"),
        ("path,label\na.png,1\n", {"label": "lable"}, "Did you mean 'label'?"),
        ("path,label\na.png,1\nc.png,1\n", {}, "data.csv:3: there is no file 'c.png'"),
        ("path,label\na.png\n", {}, "data.csv:2: this row has another number of columns"),
        ("path,label\na.png,1,2\n", {}, "data.csv:2: this row has another number of columns"),
        ("path,label\n,1\n", {}, "data.csv:2: '' is neither a picture nor"),
        ("path,label\na.exe,1\n", {}, "'a.exe' is neither a picture nor"),
        ('path,label\n"a.png,1\n', {}, "cannot be read as a table"),
        ("path,label\na.png,3\n", {"classes": "lists/classes.txt"}, "'3' is no class of the 2"),
    ],
)
def test_rows_that_are_no_samples(files, text, said, words):
    (files / "lists" / "classes.txt").write_text("cat\nowl\n")
    with pytest.raises(DataError) as caught:
        table(files, text, **said)
    assert words in str(caught.value)
    assert caught.value.remedy


def test_a_table_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_csv(CsvParameters(path=Path("x.csv")), Folder(tmp_path))
    (tmp_path / "x.csv").write_bytes(b"path\n\xff\xfe\n")
    with pytest.raises(DataError, match="cannot be read as a table"):
        load_csv(CsvParameters(path=Path("x.csv")), Folder(tmp_path))


def test_files_that_break_after_the_list_was_read(files):
    dataset = table(files, "path,label\na.npy,1\nb.npy,1\n")
    (files / "lists" / "a.npy").write_bytes(b"no array")
    np.save(files / "lists" / "b.npy", np.array(["x"]))
    with pytest.raises(DataError, match=r"a\.npy: cannot be read as an array"):
        dataset[0]
    with pytest.raises(DataError, match="not an array of numbers"):
        dataset[1]
    (files / "lists" / "a.npy").unlink()
    with pytest.raises(DataError, match=r"a\.npy: cannot be read"):
        _ = dataset.digest

"""Pictures: how one becomes an array, and the source ``images`` that reads a folder of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from wherry.artifact import hash_file
from wherry.data.arrays import as_label, nearest
from wherry.dataset import DataContext, Dataset, Sample
from wherry.errors import DataError
from wherry.npy import load_array

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Only these are opened, whatever a file is called: some of Pillow's formats run other programs."""

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

Side = Annotated[int, Field(ge=1, le=65535)]


class PictureOptions(BaseModel):
    """How a picture becomes a uint8 array, HWC or HW."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Side | tuple[Side, Side] | None = Field(
        default=None, description="height and width, or one number for both; unless said: as it is"
    )
    resize: Literal["crop", "exact"] = Field(
        default="crop",
        description="crop: scale the shorter side, then cut out the middle; exact: stretch",
    )
    shorter_side: Side | None = Field(
        default=None,
        description="with resize: crop, what the shorter side is scaled to before the middle is "
        "cut out, e.g. 256 for a size of 224; unless said: as small as the size allows",
    )
    interpolation: Literal["bilinear", "bicubic", "nearest"] = Field(
        default="bilinear", description="how pixels are interpolated"
    )
    mode: Literal["rgb", "gray"] = Field(default="rgb", description="the picture's colours")

    def digest(self) -> str:
        """What decides the pixels besides the file's bytes: this code, Pillow's version."""
        options = self.model_dump_json(include=set(PictureOptions.model_fields))
        return f"{options} {_pillow_version()} {hash_file(Path(__file__))}"


def _pillow_version() -> str:
    try:
        import PIL
    except ImportError as error:
        raise DataError(
            "reading pictures needs Pillow, which is not installed",
            remedy='Install it: pip install "wherry[images]".',
        ) from error
    return PIL.__version__


def read_picture(path: Path, options: PictureOptions) -> np.ndarray:
    """The pixels of a file.

    Pictures are taken as they are stored: a camera's note of how it was held is not followed, as
    training pipelines do not follow it. Transparency is dropped.

    Returns:
        uint8, [height, width, 3], or [height, width] for ``mode: gray``.

    Raises:
        DataError: it is missing, no picture, broken, or has more than 8 bits a channel.
    """
    _pillow_version()
    from PIL import Image

    where = str(path)
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.mode.startswith(("I", "F")):
                raise DataError(
                    f"the picture's pixels are {picture.mode} (more than 8 bits)",
                    where=where,
                    remedy="Convert it to 8 bits, or give arrays (npz) instead.",
                )
            converted = picture.convert("L" if options.mode == "gray" else "RGB")
        return np.asarray(_resized(converted, options, where))
    except FileNotFoundError as error:
        raise DataError(
            "there is no such picture", where=where, remedy="Correct the list or the path."
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"the picture cannot be read: {error}",
            where=where,
            remedy="Replace it, or take it out of the data.",
        ) from error


def _resized(picture: Image.Image, options: PictureOptions, where: str) -> Image.Image:
    from PIL import Image

    if options.size is None:
        return picture
    size = options.size
    height, width = (size, size) if isinstance(size, int) else size
    filter_ = Image.Resampling[options.interpolation.upper()]
    if options.resize == "exact":
        return picture.resize((width, height), filter_)
    if options.shorter_side is None:
        scale = max(width / picture.width, height / picture.height)
        scaled = (
            max(width, round(picture.width * scale)),
            max(height, round(picture.height * scale)),
        )
    else:
        # As torchvision's Resize and CenterCrop: the longer side is rounded down.
        short, target = min(picture.size), options.shorter_side
        scaled = (target * picture.width // short, target * picture.height // short)
    if scaled[0] < width or scaled[1] < height:
        raise DataError(
            f"scaled to {scaled[1]}x{scaled[0]} (height x width), the picture is smaller than "
            f"{height}x{width}",
            where=where,
            remedy="Give a greater shorter_side, or none.",
        )
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    return picture.resize(scaled, filter_).crop((left, top, left + width, top + height))


class FileDataset(Dataset):
    """Samples in files, pictures and arrays (.npy), that are read when they are asked for.

    Args:
        name: of the dataset, for messages.
        rows: per sample, input name to file.
        labels: per sample, a class index, a file (.npy), or another number; None: without labels.
        options: of the pictures.
        classes: see `Dataset`.
    """

    def __init__(
        self,
        name: str,
        rows: Sequence[Mapping[str, Path]],
        labels: Sequence[int | float | Path] | None,
        options: PictureOptions,
        classes: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.classes = tuple(classes)
        self._rows = rows
        self._labels = labels
        self._options = options
        self._digest: str | None = None

    @property
    def digest(self) -> str:
        """See `Dataset`; over the files' bytes and what decides their pixels."""
        if self._digest is None:
            digest = hashlib.sha256(self._options.digest().encode())
            for index, row in enumerate(self._rows):
                for name, path in sorted(row.items()):
                    digest.update(f"{name}\0{_hash(path)}\0".encode())
                if self._labels is not None:
                    label = self._labels[index]
                    said = _hash(label) if isinstance(label, Path) else repr(label)
                    digest.update(f"{said}\0".encode())
            self._digest = digest.hexdigest()
        return self._digest

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self._rows):
            raise IndexError(index)
        inputs = {name: self._read(path) for name, path in self._rows[index].items()}
        if self._labels is None:
            return Sample(inputs)
        label = self._labels[index]
        return Sample(inputs, as_label(read_array(label) if isinstance(label, Path) else label))

    def _read(self, path: Path) -> np.ndarray:
        if path.suffix.lower() == ".npy":
            return read_array(path)
        return read_picture(path, self._options)


def _hash(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            remedy="Correct the list, or put the file there.",
        ) from error


def read_array(path: Path) -> np.ndarray:
    """An array of numbers in a .npy file; raises `DataError`."""
    try:
        array = load_array(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot be read as an array of numbers: {error}",
            where=str(path),
            remedy="Save it again with numpy.save.",
        ) from error
    if array.dtype.kind not in "biuf":
        raise DataError(
            "not an array of numbers", where=str(path), remedy="Save it again with numpy.save."
        )
    return array


class ImagesParameters(PictureOptions):
    """What may stand beside ``source: images``."""

    path: Path = Field(description="a folder of class folders, or of pictures")
    labels: Path | None = Field(
        default=None,
        description="for a folder of pictures: a text file with a line `PICTURE LABEL` for each, "
        "in the order of the samples; a label is a class's index, or its name in `classes`",
    )
    classes: Path | None = Field(
        default=None,
        description="a text file with a class's name a line, in the order of the model's classes; "
        "unless said: the class folders in alphabetical order",
    )


def load_images(parameters: ImagesParameters, context: DataContext) -> Dataset:
    """List the pictures; raises `DataError`."""
    _pillow_version()
    folder = context.base / parameters.path.expanduser()
    where = str(folder)
    if not folder.is_dir():
        raise DataError("there is no such folder", where=where, remedy="Correct the data's path.")
    classes = None
    if parameters.classes is not None:
        classes = read_lines(context.base / parameters.classes.expanduser())
    name = f"images {folder.name}"
    if parameters.labels is not None:
        paths, labels = _listed(folder, context.base / parameters.labels.expanduser(), classes)
        rows = [{"": path} for path in paths]
        return FileDataset(name, rows, labels, parameters, classes or ())
    folders = sorted(each for each in folder.iterdir() if each.is_dir() and _visible(each))
    loose = _pictures(folder)
    if folders and loose:
        raise DataError(
            f"there are class folders ({folders[0].name!r}, ...) and pictures beside them "
            f"({loose[0].name!r}, ...)",
            where=where,
            remedy="Move the pictures away, or give a file of labels.",
        )
    if not folders:
        return FileDataset(name, [{"": path} for path in loose], None, parameters)
    names = classes or [each.name for each in folders]
    by_class: list[list[tuple[Path, int]]] = []
    for each in folders:
        index = class_index(each.name, names, where)
        by_class.append([(path, index) for path in _pictures(each)])
    # One of each class in turn, so that any slice holds all of them.
    mixed = [pair for turn in zip_longest(*by_class) for pair in turn if pair is not None]
    rows, labels = [{"": path} for path, _ in mixed], [label for _, label in mixed]
    return FileDataset(name, rows, labels, parameters, names)


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and _visible(path)
    )


def _listed(
    folder: Path, file: Path, classes: Sequence[str] | None
) -> tuple[list[Path], list[int]]:
    paths, labels = [], []
    for number, line in enumerate(read_lines(file), 1):
        where = f"{file}:{number}"
        name, _, label = line.replace(",", " ").replace("\t", " ").rpartition(" ")
        path = folder / name.strip()
        if not name or not path.is_file():
            raise DataError(
                f"there is no picture {name.strip()!r} in {folder}"
                if name
                else "not a line of the form `PICTURE LABEL`",
                where=where,
                remedy="Correct the file of labels.",
            )
        paths.append(path)
        labels.append(class_index(label, classes, where))
    return paths, labels


def class_index(label: str, classes: Sequence[str] | None, where: str) -> int:
    """A class's index: its place among the names, or the number that it is."""
    if classes is not None and label in classes:
        return classes.index(label)
    if label.isdecimal() and (classes is None or int(label) < len(classes)):
        return int(label)
    raise DataError(
        f"{label!r} is no class"
        + (f" of the {len(classes)} that were named" if classes else "'s index"),
        where=where,
        remedy=nearest(label, classes or (), "Correct it, or give a file of `classes`."),
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a text that hold something; raises `DataError`."""
    try:
        lines: Iterable[str] = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot be read as text: {getattr(error, 'strerror', None) or error}",
            where=str(path),
            remedy="Correct the path, or save it as UTF-8.",
        ) from error
    return [line.strip() for line in lines if line.strip()]

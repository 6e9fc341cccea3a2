"""The source ``csv``: a table whose rows name pictures or .npy files, and labels."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from wherry.data.arrays import nearest
from wherry.data.pictures import SUFFIXES, FileDataset, PictureOptions, class_index, read_lines
from wherry.dataset import DataContext, Dataset
from wherry.errors import DataError

PATH, LABEL = "path", "label"


class CsvParameters(PictureOptions):
    """What may stand beside ``source: csv``."""

    path: Path = Field(
        description="the table, with a line of column names; paths in it start at its folder"
    )
    inputs: dict[str, str] | None = Field(
        default=None,
        min_length=1,
        description="the model's input to the column of its files; unless said: the column `path` "
        "for the only input",
    )
    label: str | None = Field(
        default=None, description="the column of labels; unless said: `label`, where there is one"
    )
    classes: Path | None = Field(
        default=None,
        description="a text file with a class's name a line, in the order of the model's classes; "
        "unless said: labels that are names count in alphabetical order",
    )
    delimiter: str = Field(default=",", min_length=1, max_length=1, description="between columns")


def load_csv(parameters: CsvParameters, context: DataContext) -> Dataset:
    """Read the table, not yet its files; raises `DataError`."""
    table = context.base / parameters.path.expanduser()
    columns, rows = _read(table, parameters.delimiter)
    inputs = parameters.inputs or {"": PATH}
    label = parameters.label or (LABEL if LABEL in columns else None)
    for column in (*inputs.values(), *([label] if label else [])):
        if column not in columns:
            raise DataError(
                f"there is no column {column!r}; there are {', '.join(map(repr, columns))}",
                where=f"{table}:1",
                remedy=nearest(column, columns, "Correct the column's name."),
            )
    files = [
        {name: _file(table, number, row[column]) for name, column in inputs.items()}
        for number, row in rows
    ]
    labels, classes = None, None
    if label is not None:
        if parameters.classes is not None:
            classes = read_lines(context.base / parameters.classes.expanduser())
        labels = _labels(table, [(number, row[label]) for number, row in rows], classes)
    return FileDataset(f"csv {table.name}", files, labels, parameters, classes or ())


def _read(table: Path, delimiter: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns, and each row with its line's number."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            columns = list(reader.fieldnames or ())
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"this row has another number of columns than the first, {len(columns)}",
                        where=f"{table}:{reader.line_num}",
                        remedy="Correct the row.",
                    )
                rows.append((reader.line_num, row))
            return columns, rows
    except FileNotFoundError as error:
        raise DataError(
            "there is no such file", where=str(table), remedy="Correct the data's path."
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"cannot be read as a table: {error}",
            where=str(table),
            remedy="Save it as UTF-8, with a line of column names.",
        ) from error


def _file(table: Path, number: int, cell: str) -> Path:
    path = table.parent / cell
    where = f"{table}:{number}"
    if path.suffix.lower() not in {*SUFFIXES, ".npy"}:
        raise DataError(
            f"{cell!r} is neither a picture nor a .npy file",
            where=where,
            remedy="Name files that end in .npy, .png, .jpg, ...",
        )
    if not path.is_file():
        raise DataError(
            f"there is no file {cell!r}", where=where, remedy="Correct the row, or put it there."
        )
    return path


def _labels(
    table: Path, cells: Sequence[tuple[int, str]], classes: Sequence[str] | None
) -> Sequence[int | float | Path]:
    """Files, indices, other numbers, or names: what all the cells are."""
    texts = [text.strip() for _, text in cells]
    if texts and all(text.endswith(".npy") for text in texts):
        return [_file(table, number, text) for number, text in cells]
    if classes is None and not all(text.isdecimal() for text in texts):
        numbers = [_number(text) for text in texts]
        if all(number is not None for number in numbers):
            return [number for number in numbers if number is not None]
        classes = sorted(set(texts))
    return [class_index(text.strip(), classes, f"{table}:{number}") for number, text in cells]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

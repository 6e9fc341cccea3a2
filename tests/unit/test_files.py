"""Files that a user names: whole or as they were, and what is no file stays what it is."""

from __future__ import annotations

import os
import threading

import pytest

from wherry.cli.run import write_file
from wherry.errors import StoreError
from wherry.files import replacing


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    with replacing(path) as file:
        file.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    path = tmp_path / "latest.json"
    path.symlink_to("there/report.json")
    for text in ("one", "two"):
        with replacing(path) as file:
            file.write_text(text)
        assert (tmp_path / "there" / "report.json").read_text() == text
    assert path.is_symlink()


def test_a_pipe_is_written_to(tmp_path):
    path, read = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    write_file("report", path, "json", "")
    reader.join()
    assert read == ["report"]
    assert path.is_fifo(), "as /dev/stdout has to stay what it is, also for root"


@pytest.mark.parametrize("place", ["folder", "none/report.json", "file/report.json"])
def test_where_no_file_can_be_is_said(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="the json report cannot be written") as caught:
        write_file("report", tmp_path / place, "json", "Do that.")
    assert caught.value.where == str(tmp_path / place)

"""What stands for code and contents in the store's keys."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from wherry.calibration import Calibration
from wherry.errors import StoreError
from wherry.host import Host
from wherry.installed import PluginInfo
from wherry.stages.keys import NOTES, content_digest, files_digest, own_code
from wherry.store import Entry, Key, Store


class Codes:
    """A package below a folder, imported as often as asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.package = folder / "wherry_acme"
        (self.package / "board").mkdir(parents=True)
        for name in ("__init__", "plugin", "board/agent"):
            (self.package / f"{name}.py").write_text("X = 1\n")
        (folder / "acme_alone.py").write_text("X = 1\n")
        (folder / "beside.py").write_text("X = 1\n")
        monkeypatch.syspath_prepend(str(folder))

    def of(self, module: str = "wherry_acme.plugin", *, name="acme", dist="acme", version="1"):
        __import__(module)
        try:
            return Host().code(PluginInfo(name, dist, version, module))
        finally:
            for loaded in [
                name for name in sys.modules if name.startswith(("wherry_acme", "acme"))
            ]:
                del sys.modules[loaded]


@pytest.fixture
def codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Codes:
    return Codes(tmp_path, monkeypatch)


@pytest.mark.parametrize("file", ["__init__.py", "plugin.py", "board/agent.py", "board/new.py"])
def test_every_file_of_a_plugins_package_counts(codes: Codes, file: str) -> None:
    before = codes.of()
    assert codes.of() == before
    (codes.package / file).write_text("X = 2\n")
    assert codes.of() != before


def test_what_is_no_code_does_not_count(codes: Codes) -> None:
    before = codes.of()
    (codes.package / "notes.txt").write_text("X")
    assert codes.of() == before


def test_a_module_alone_is_one_file(codes: Codes) -> None:
    before = codes.of("acme_alone")
    (codes.package.parent / "beside.py").write_text("X = 2\n")
    assert codes.of("acme_alone") == before
    (codes.package.parent / "acme_alone.py").write_text("X = 22\n")
    assert codes.of("acme_alone") != before


def test_two_plugins_of_one_package_are_two(codes: Codes) -> None:
    assert codes.of(name="one") != codes.of(name="two")


def test_the_version_counts_for_strangers_alone(codes: Codes) -> None:
    assert codes.of(version="1") != codes.of(version="2")
    assert codes.of(dist="wherry", version="1") == codes.of(dist="wherry", version="2")


def test_a_plugin_that_has_no_file_has_code_as_well() -> None:
    assert len(Host().code(PluginInfo("x", None, None, "__main__.nothing"))) == 64


def test_files_count_by_name_and_content_wherever_they_lie(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "runner.py").write_text("1")
    one, other = (tmp_path / folder / "runner.py" for folder in "ab")
    assert files_digest((one,)) == files_digest((other,))
    assert files_digest((one,)) != files_digest((one, other))
    other.write_text("2")
    assert files_digest((one,)) != files_digest((other,))


def test_wherrys_own_files_that_keys_name_are_there() -> None:
    assert own_code("data/views", "preprocess") != own_code("preprocess")
    with pytest.raises(FileNotFoundError):
        own_code("no_such_module")


def test_an_entrys_content_is_its_files_without_the_notes(tmp_path: Path) -> None:
    def make(name: str, text: str, notes: str) -> Entry:
        store, key = Store(tmp_path / name), Key("x", {"name": name})
        with store.build(key) as output:
            (output / "file").write_text(text)
            (output / NOTES).write_text(notes)
        entry = store.get(key)
        assert entry is not None
        return entry

    one = content_digest(make("a", "1", "made by a"))
    assert one == content_digest(make("b", "1", "made by b"))
    assert one != content_digest(make("c", "2", "made by a"))


def test_a_calibrations_digest_is_that_of_its_values(tmp_path: Path) -> None:
    made = Calibration("minmax", 3, {"b": (0.0, 1.0), "a": (-1.0, 0.1)}, {"a": 1.0, "b": 0.5})
    made.save(tmp_path)
    assert Calibration.load(tmp_path).digest == made.digest
    turned = {"a": (-1.0, 0.1), "b": (0.0, 1.0)}, {"b": 0.5, "a": 1.0}
    assert Calibration("minmax", 3, *turned).digest == made.digest
    for other in (
        replace(made, method="kl"),
        replace(made, samples=4),
        replace(made, ranges={"a": (-1.0, 0.1)}),
        replace(made, ranges={**made.ranges, "a": (-1.0, 0.2)}),
        replace(made, thresholds={}),
        replace(made, thresholds={"a": 1.0, "b": 0.6}),
    ):
        assert other.digest != made.digest


def test_a_calibration_gives_a_threshold_for_every_range(tmp_path: Path) -> None:
    made = Calibration("kl", 3, {"b": (0.0, 2.0), "a": (-1.0, 0.1)}, {"b": 0.5})
    made.save(tmp_path)
    read = Calibration.load(tmp_path)
    assert read == made
    assert (read.threshold("b"), read.threshold("a")) == (0.5, 1.0)


@pytest.mark.parametrize("text", ["{", "[]", '{"method": "minmax", "samples": 3, "ranges": {}}'])
def test_a_file_of_another_form_is_no_calibration(tmp_path: Path, text: str) -> None:
    """The last one is of the time before thresholds."""
    (tmp_path / Calibration.FILE).write_text(text)
    with pytest.raises(StoreError, match="not a calibration"):
        Calibration.load(tmp_path)

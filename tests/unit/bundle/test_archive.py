"""Archives of bundles: what is written is read again, and nothing else is."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import stat
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.bundle.archive import check_name, check_names, unpack, write
from wherry.errors import BundleError, UsageError

FILES = {"README.md": b"read me", "artifact/model.bin": bytes(range(256)) * 40, "a/b/c": b""}
MOST = 1 << 24
kinds = pytest.mark.parametrize("suffix", ["tar.gz", "zip"])


def read(path: Path, most: int = MOST) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = unpack(path, folder, most_bytes=most)
        on_disk = {
            each.relative_to(folder).as_posix(): each.read_bytes()
            for each in folder.rglob("*")
            if each.is_file()
        }
        assert found == {name: hashlib.sha256(data).hexdigest() for name, data in on_disk.items()}
        return on_disk


def contents(files: dict[str, bytes]) -> bytes:
    told = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in files.items()
    }
    return json.dumps({"bundle": 1, "files": told}).encode()


def hostile(path: Path, members: list[tuple[tarfile.TarInfo | str, bytes]]) -> Path:
    """An archive as somebody else might write it: nothing is checked."""
    if path.name.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members:
                archive.writestr(name.name if isinstance(name, tarfile.TarInfo) else name, data)
        return path
    with tarfile.open(path, "w:gz") as archive:
        for given_, data in members:
            info = tarfile.TarInfo(given_) if isinstance(given_, str) else given_
            if info.type == tarfile.REGTYPE:
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def bundle(files: dict[str, bytes]) -> list[tuple[tarfile.TarInfo | str, bytes]]:
    return [("r/contents.json", contents(files)), *((f"r/{n}", d) for n, d in files.items())]


@kinds
@settings(max_examples=25, deadline=None)
@given(
    files=st.dictionaries(
        st.lists(st.text("abÄ -._", min_size=1, max_size=5), min_size=1, max_size=3).map("/".join),
        st.binary(max_size=2000),
        max_size=5,
    )
)
def test_what_is_written_is_read_again(suffix, files):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"b.{suffix}"
        try:
            check_names(["contents.json", *files])
        except BundleError:
            return
        write(path, "root", files)
        assert read(path) == files


@kinds
def test_the_same_files_give_the_same_bytes_and_others_can_read_them(tmp_path, suffix):
    (tmp_path / "file").write_bytes(FILES["artifact/model.bin"])
    for name in ("one", "two"):
        given_ = {**FILES, "artifact/model.bin": tmp_path / "file"} if name == "two" else FILES
        write(tmp_path / f"{name}.{suffix}", "root", given_)
    assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
    if suffix == "zip":
        with zipfile.ZipFile(tmp_path / "one.zip") as archive:
            assert archive.testzip() is None
            assert archive.read("root/README.md") == b"read me"
    else:
        with tarfile.open(tmp_path / "one.tar.gz") as archive:
            infos = archive.getmembers()
            assert {(i.mtime, i.uid, i.gid, i.mode) for i in infos} == {(0, 0, 0, 0o644)}
            assert infos[0].name == "root/contents.json"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    for suffix in ("tar.gz", "zip"):
        write(folder / f"b.{suffix}", "root", FILES)
    return folder


@kinds
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_is_refused_or_gives_what_was_written(written, suffix, data):
    whole = bytearray((written / f"b.{suffix}").read_bytes())
    change = data.draw(st.sampled_from(["flip", "cut", "insert", "append"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    some = data.draw(st.binary(min_size=1, max_size=20))
    if change == "flip":
        whole[at] ^= data.draw(st.integers(1, 255))
    elif change == "cut":
        del whole[at:]
    else:
        whole[at:at] = some if change == "insert" else b""
        whole += some if change == "append" else b""
    path = written / f"damaged.{suffix}"
    path.write_bytes(whole)
    try:
        found = read(path)
    except BundleError as error:
        assert str(path) in str(error)
    else:
        assert found == FILES, "headers may say other times; the files may not change"


@settings(max_examples=60, deadline=None)
@given(raw=st.binary(max_size=2000))
def test_any_tar_in_a_gzip_is_refused(written, raw):
    path = written / "any.tar.gz"
    path.write_bytes(gzip.compress(raw))
    with pytest.raises(BundleError):
        read(path)


@kinds
@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/x", "a//x", "./x", "a\\x", "a\nx", "x" * 300, ""],
)
def test_no_name_leads_out_of_the_folder(tmp_path, suffix, name):
    files = {name: b"data"}
    with pytest.raises(BundleError):
        write(tmp_path / f"ours.{suffix}", "root", files)
    path = hostile(tmp_path / f"b.{suffix}", [("r/contents.json", contents(files)), ("r/y", b"")])
    with pytest.raises(BundleError, match="name"):
        read(path)
    path = hostile(tmp_path / f"b.{suffix}", [*bundle(FILES), (f"r/{name}", b"data")])
    with pytest.raises(BundleError):
        read(path)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE,
     tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME],
)  # fmt: skip
def test_nothing_but_plain_files_is_taken_of_a_tar(tmp_path, kind):
    info = tarfile.TarInfo("r/README.md")
    info.type, info.linkname = kind, "/etc/passwd"
    members = bundle(FILES)
    members[1] = (info, b"")
    with pytest.raises(BundleError, match="plain file"):
        read(hostile(tmp_path / "b.tar.gz", members))


def test_no_link_is_taken_of_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("r/contents.json", contents({"link": b"/etc/passwd"}))
        info = zipfile.ZipInfo("r/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, b"/etc/passwd")
    with pytest.raises(BundleError, match="link' is no plain file"):
        read(tmp_path / "b.zip")


@kinds
def test_a_file_that_was_changed_or_is_missing_twice_or_too_many_is_named(tmp_path, suffix):
    path = tmp_path / f"b.{suffix}"
    members = bundle(FILES)
    cases = {
        "README.md is not what": [*members[:1], ("r/README.md", b"READ me"), *members[2:]],
        "README.md has 3 bytes": [*members[:1], ("r/README.md", b"abc"), *members[2:]],
        "README.md is missing": [members[0], *members[2:]],
        "'evil' is not in contents.json": [*members, ("r/evil", b"")],
        "'/x/README.md' is not in|'x/README.md' is not in": [
            *members[:1], ("x/README.md", b"read me"), *members[2:],
        ],
        "does not begin with contents.json": members[1:],
        "names itself": bundle({"contents.json": b""})[:1],
        "but for capitals": bundle({"A": b"", "a": b""}),
        "a folder of a file's name": bundle({"a": b"", "a/b": b""}),
        "version": [("r/contents.json", b'{"bundle": 99, "files": {}}')],
        "cannot be read": [("r/contents.json", b'{"bundle": 1, "files": {"a": 7}}')],
    }  # fmt: skip
    for words, case in cases.items():
        with pytest.raises(BundleError, match=words):
            read(hostile(path, case))
    with warnings.catch_warnings():  # zipfile's, of the second
        warnings.simplefilter("ignore")
        hostile(path, [*members, members[1]])
    with pytest.raises(BundleError, match="stands there twice"):
        read(path)


@kinds
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, suffix):
    huge = {"zeros": {"sha256": "0" * 64, "bytes": 1 << 40}}
    told = json.dumps({"bundle": 1, "files": huge}).encode()
    path = hostile(tmp_path / f"b.{suffix}", [("r/contents.json", told), ("r/zeros", b"0")])
    with pytest.raises(BundleError, match="at most"):
        read(path)
    many = {str(n): {"sha256": "0" * 64, "bytes": 0} for n in range(10_001)}
    told = json.dumps({"bundle": 1, "files": many}).encode()
    with pytest.raises(BundleError, match="too many"):
        read(hostile(path, [("r/contents.json", told)]))


def test_zeros_without_end_do_not_fill_the_memory(tmp_path):
    path = tmp_path / "b.tar.gz"
    with gzip.open(path, "wb", 9) as stream:
        stream.write(bytes(1 << 25))
    with pytest.raises(BundleError):
        read(path)
    info = tarfile.TarInfo("r/contents.json")
    info.size = 1 << 30
    path.write_bytes(gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20)))
    with pytest.raises(BundleError, match="too many"):
        read(path)


@pytest.mark.parametrize("name", ["b.tar", "none/b.zip", "file/b.zip", "folder.zip"])
def test_where_no_archive_can_be_is_said_before_one_is_made(tmp_path, name):
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"name ends in|cannot be written"):
        check_name(tmp_path / name)


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "b.tar.gz").write_bytes(b"\x7fELF")
    with pytest.raises(BundleError, match="neither"):
        read(tmp_path / "b.tar.gz")
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "missing.zip")
    with pytest.raises(UsageError, match=r"\.tar\.gz"):
        write(tmp_path / "b.rar", "root", FILES)
    with pytest.raises(UsageError, match="cannot be written"):
        write(tmp_path / "no" / "b.zip", "root", FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["b.tar.gz"]

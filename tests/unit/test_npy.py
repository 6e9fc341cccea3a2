"""Reading NumPy's files: in many threads at once, and what is no such file."""

from __future__ import annotations

import ast
import threading
import time

import numpy as np
import pytest

from wherry.npy import load, load_array, load_arrays, map_array


def test_headers_are_read_one_at_a_time(tmp_path, monkeypatch):
    """CPython mixes up two threads that are in `ast.literal_eval` at once (its issue 106905)."""
    np.save(tmp_path / "one.npy", np.arange(6.0).reshape(2, 3))
    np.savez(tmp_path / "two.npz", a=np.arange(3), b=np.float32(0.5))
    inside, most, failed, evaluate = [], [], [], ast.literal_eval

    def watched(text):
        inside.append(text)
        most.append(len(inside))
        time.sleep(0.002)
        value = evaluate(text)
        inside.pop()
        return value

    def work():
        try:
            for _ in range(3):
                assert load_array(tmp_path / "one.npy").shape == (2, 3)
                assert map_array(tmp_path / "one.npy")[1, 2] == 5
                assert load_arrays(tmp_path / "two.npz")["b"] == 0.5
        except BaseException as error:  # noqa: BLE001 -- told below
            failed.append(error)

    monkeypatch.setattr(ast, "literal_eval", watched)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(most) == 4 * 3 * 4
    assert set(most) == {1}


def test_one_array_is_not_taken_for_several_nor_the_other_way(tmp_path):
    np.save(tmp_path / "one.npy", np.arange(3))
    np.savez(tmp_path / "two.npz", a=np.arange(3))
    assert isinstance(load(tmp_path / "one.npy"), np.ndarray)
    assert list(load(tmp_path / "two.npz")) == ["a"]
    with pytest.raises(ValueError, match="not a file of arrays"):
        load_arrays(tmp_path / "one.npy")
    with pytest.raises(ValueError, match="not one array"):
        load_array(tmp_path / "two.npz")
    with pytest.raises(ValueError, match="magic string"):
        map_array(tmp_path / "two.npz")


def damaged(path):
    """Files that are broken in one of their layers."""
    np.save(path / "whole.npy", np.arange(100))
    np.savez_compressed(path / "whole.npz", a=np.arange(100))
    single, several = (path / "whole.npy").read_bytes(), (path / "whole.npz").read_bytes()
    middle = several.index(b"a.npy") + 60
    return {
        "empty": b"",
        "cut": single[:200],
        "cut in the header": single[:40],
        "header": single[:11] + b"{((([[[" + single[18:],
        "no Python": single[:10] + b"'" + single[11:],
        "cut archive": several[:-30],
        "bytes of a member": several[:middle] + bytes(20) + several[middle + 20 :],
        "text": b"hello",
    }


@pytest.mark.parametrize("read", [load, load_array, load_arrays, map_array])
def test_damage_is_a_value_error(read, tmp_path):
    for name, content in damaged(tmp_path).items():
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ValueError, match=r"."):  # and no other error
            read(tmp_path / "file")
            pytest.fail(name)


def test_a_damaged_archive_is_first_of_all_no_array(tmp_path):
    (tmp_path / "file").write_bytes(damaged(tmp_path)["bytes of a member"])
    with pytest.raises(ValueError, match="not one array"):
        load_array(tmp_path / "file")


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load(tmp_path / "objects.npy")
    with pytest.raises(ValueError, match="Python objects"):
        map_array(tmp_path / "objects.npy")


def test_what_is_no_file_of_numpys_is_not_said_to_hold_objects(tmp_path):
    (tmp_path / "text.npz").write_text("images, labels\n1, 2\n")
    for read in (load, load_array, load_arrays):
        with pytest.raises(ValueError, match="no file of NumPy's"):
            read(tmp_path / "text.npz")

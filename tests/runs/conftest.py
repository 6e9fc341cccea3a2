"""A backend that misbehaves as a manifest tells it to, installed as a stranger's would be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

MOODY = Path(__file__).parent / "moody"
SHAPE = [1, 4, 4]


@pytest.fixture(scope="module")
def kept_home(
    tmp_path_factory: pytest.TempPathFactory, shared_environments: Path
) -> Iterator[Path]:
    """As ``wherry_home``, one for all tests of a file, so that a run serves several."""
    home = tmp_path_factory.mktemp("home")
    (home / "environments").symlink_to(shared_environments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHERRY_HOME", str(home))
        patch.setenv("WHERRY_CONFIG", str(home / "wherry-config"))
        patch.delenv("WHERRY_RECORDS", raising=False)
        yield home


@pytest.fixture(scope="session")
def moody_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH: the package, and the metadata by which it is found."""
    site = tmp_path_factory.mktemp("moody")
    (site / "wherry_moody").symlink_to(MOODY / "wherry_moody")
    about = site / "wherry_moody-1.0.dist-info"
    about.mkdir()
    about.joinpath("METADATA").write_text(
        "Metadata-Version: 2.1\nName: wherry-moody\nVersion: 1.0\n"
    )
    about.joinpath("entry_points.txt").write_text("[wherry]\nmoody = wherry_moody.plugin\n")
    return site


@pytest.fixture(scope="session")
def moody_folder() -> Callable[[Path], Path]:
    """Fills a folder with a network and data for it."""

    def fill(folder: Path) -> Path:
        onnx.save(network(), folder / "net.onnx")
        rng = np.random.default_rng(5)
        np.savez(folder / "data.npz", x=rng.normal(size=(24, *SHAPE[1:])).astype(np.float32))
        return folder

    return fill


@pytest.fixture
def moody(
    moody_site: Path,
    moody_folder: Callable[[Path], Path],
    wherry_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The current folder, filled; this process and its children have the backend."""
    monkeypatch.chdir(moody_folder(tmp_path))
    monkeypatch.syspath_prepend(moody_site)
    monkeypatch.setenv("PYTHONPATH", str(moody_site))
    monkeypatch.setenv("WHERRY_PLUGINS", "wherry-moody")
    return tmp_path


def network() -> onnx.ModelProto:
    """``a = x @ w`` and ``b = relu(x + v)``: outputs that could be taken for one another.

    ``b`` is NaN where the square of an element of ``x`` is beyond float32.
    """
    rng = np.random.default_rng(4)
    weights = {name: rng.normal(size=SHAPE[1:]).astype(np.float32) for name in "wv"}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="matmul"),
            helper.make_node("Add", ["x", "v"], ["sum"], name="add"),
            helper.make_node("Relu", ["sum"], ["positive"], name="relu"),
            helper.make_node("Mul", ["x", "x"], ["square"], name="mul"),
            helper.make_node("Sub", ["square", "square"], ["zero"], name="sub"),
            helper.make_node("Add", ["positive", "zero"], ["b"], name="last"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in "ab"],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

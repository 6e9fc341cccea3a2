"""ONNX into torch and back: what both exporters of torch make of the networks of the papers."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from loading import load

pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.torch

SUPPORT = Path(__file__).parents[1] / "support"
WIDTH = 0.25
CLOSE = 1e-5  # of the outputs' root mean square

LEGACY = ["legacy 13", "legacy 17"]
DYNAMO = [("mobilenet_v3", "dynamo 18", False), ("shufflenet_v2", "dynamo 21", True)]
"""The whole matrix is bench_import.py's."""


@pytest.fixture(scope="module")
def torch_networks():
    return load(SUPPORT / "torch_networks.py")


@pytest.fixture(scope="module")
def trip():
    return load(SUPPORT / "torch_trips.py").trip


def there_and_back(torch_networks, trip, tmp_path, name, way, dynamic):
    network = torch_networks.built(name, WIDTH)
    path = tmp_path / "exported.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters say that they are old, or that they change
        torch_networks.export(network, path, way, dynamic=dynamic)
    found = trip(path, tmp_path / "work")
    assert found.there < CLOSE
    assert found.back < CLOSE
    assert found.trained < CLOSE
    assert found.names
    assert found.spread > 100 * CLOSE  # else any network would pass


NAMES = ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "shufflenet_v1", "shufflenet_v2",
         "squeezenet", "resnet18", "resnet50"]  # fmt: skip


def test_the_names_are_all_there_are(torch_networks):
    assert list(torch_networks.NETWORKS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_by_the_legacy_exporter(torch_networks, trip, tmp_path, name):
    way = LEGACY[NAMES.index(name) % 2]
    there_and_back(torch_networks, trip, tmp_path, name, way, dynamic=NAMES.index(name) % 4 < 2)


@pytest.mark.parametrize(("name", "way", "dynamic"), DYNAMO)
def test_by_the_dynamo_exporter(torch_networks, trip, tmp_path, name, way, dynamic):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    there_and_back(torch_networks, trip, tmp_path, name, way, dynamic)


def test_the_quickstarts_network(trip, tmp_path):
    found = trip(Path(__file__).parents[2] / "manifests" / "digits.onnx", tmp_path / "work")
    assert found.there < CLOSE
    assert found.back < CLOSE
    assert found.trained < CLOSE
    assert found.names

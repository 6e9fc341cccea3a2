"""A small host for the tests of manifests: every kind of descriptor, and nothing that works."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from wherry.dataset import DatasetSource
from wherry.device import Transport
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.manifest import load_manifest
from wherry.metrics import MetricKind
from wherry.passes import Pass
from wherry.target import Backend, RuntimeOptions, convert_option
from wherry.zoo import ZooModel


class NcnnOptions(RuntimeOptions):
    winograd: bool = convert_option(True, description="winograd kernels")
    cores: list[int] = Field(default=[], description="cores to run on")
    mode: Literal["fast", "small"] = Field(default="fast", description="what to spare")


class FileParameters(BaseModel):  # forgets to forbid other keys, as plugins will
    path: Path = Field(description="the file")
    labels: str | None = Field(default=None, description="the labels' key")


class PruneParameters(BaseModel):
    macs: float = Field(gt=0, le=1, description="share of the work that stays")
    widths: list[int] = Field(default=[8], description="multiples")


class Nothing(BaseModel):
    pass


def unused(*_):
    raise AssertionError("loading a manifest calls nothing of a plugin")


class Plugin:
    """A backend with options, one that refuses, and one of everything else."""

    @hookimpl
    def wherry_backends(self):
        common = {"description": "", "runner": Path("runner.py"), "artifact_format": "x"}
        yield Backend(
            name="onnxruntime",
            precisions=("fp32", "fp16"),
            refusals={"bf16": "it has no bfloat16 kernels on a CPU; take fp16"},
            **common,
        )
        yield Backend(
            name="ncnn",
            precisions=("fp32", "fp16", "int8"),
            calibrated=frozenset({"int8"}),
            mixed=frozenset({"int8"}),
            options=NcnnOptions,
            **common,
        )

    @hookimpl
    def wherry_passes(self):
        yield Pass("simplify", "", Nothing)
        yield Pass("prune.filters", "", PruneParameters, needs=frozenset({"calibration"}))

    @hookimpl
    def wherry_transports(self):
        yield Transport("local", "", Nothing, unused, host=True)

    @hookimpl
    def wherry_datasets(self):
        yield DatasetSource("npz", "", FileParameters, unused)
        yield DatasetSource("digits", "", Nothing, unused)

    @hookimpl
    def wherry_metrics(self):
        for name in ("top1", "sqnr"):
            yield MetricKind(name, "", "higher", unused)

    @hookimpl
    def wherry_models(self):
        yield ZooModel("mini", "", PruneParameters, unused)


@pytest.fixture(scope="session")
def manifest_host():
    """A host with the plugin above alone."""
    return Host.load(builtins=False, plugins=(), extra=[Plugin()])


@pytest.fixture
def load_text(tmp_path, manifest_host, monkeypatch):
    """Write files, the manifest as ``m.yaml``, and load it."""
    monkeypatch.setenv("WHERRY_CONFIG", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").touch()

    def write_and_load(text, *, overrides=(), env=None, **files):
        for name, content in {"m": text, **files}.items():
            path = tmp_path / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        return load_manifest(Path("m.yaml"), manifest_host, overrides=overrides, env=env or {})

    return write_and_load

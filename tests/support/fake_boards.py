"""Boards made up for whole runs of the lab, which tests lose, occupy and let fail."""

from __future__ import annotations

import dataclasses
import threading
from contextlib import contextmanager

from pydantic import BaseModel

from wherry.device import BoardInfo, Transport
from wherry.errors import DeviceLostError, DeviceTakenError
from wherry.hookspecs import hookimpl
from wherry.host import Host

TEXT = """
wherry: 1
model: {path: net.onnx}
data:
  evaluation: {source: npz, path: evaluation.npz}
  calibration: {source: npz, path: calibration.npz}
metrics: [first]
targets: [{backend: copy, precision: [fp32, fp16, int8], device: [a, b]}]
measure: {rounds: 2}
parity: {samples: 0}
"""
LOST = DeviceLostError("the device was lost: the cable was pulled", where="a")


class Nothing(BaseModel):
    pass


class FakeBoard:
    """One board; ``open`` and ``load`` are called where tests let it fail."""

    def __init__(self, name: str, bench) -> None:
        self.name, self.bench = name, bench
        self.identity = name
        self.sessions = 0
        self.used_by = ""
        self.leased = threading.Lock()
        self.loaded: list[str] = []
        self.open = lambda: None
        self.load = lambda precision: None

    @property
    def info(self) -> BoardInfo:
        return dataclasses.replace(
            self.bench.info, identity=self.identity, facts={"in_use_by": self.used_by or None}
        )

    def probe(self) -> BoardInfo:
        self.open()
        return self.info

    @contextmanager
    def session(self, *, lease: bool = True, wait: bool = True, report=None):
        self.sessions += lease
        self.open()
        if not lease:
            yield self
            return
        if not self.leased.acquire(blocking=False):
            if not wait:
                raise DeviceTakenError("the device is in use by another run", where=self.name)
            (report or print)(f"{self.name} is in use by another run; waiting for it")
            assert self.leased.acquire(timeout=30)
        try:
            yield self
        finally:
            self.leased.release()

    def runtime_lock(self, backend) -> str:
        return "a runtime"

    @contextmanager
    def host(self, artifact, target, backend, preprocess):
        self.loaded.append(target.precision)
        self.load(target.precision)
        with self.bench.host(artifact, target, backend, preprocess) as runner:
            yield runner


class Boards:
    def __init__(self, bench, names: str) -> None:
        self.by_name = {name: FakeBoard(name, bench) for name in names}

    @hookimpl
    def wherry_transports(self):
        yield Transport("wire", "", Nothing, connect=lambda spec, _: self.by_name[spec.name])


def host_of(lab) -> Host:
    return Host.load(plugins=(), builtins=False, extra=lab.plugins)


def by_device(values) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for result in values["results"]:
        found.setdefault(result["target"]["device"], []).append(result["status"])
    return found


def failing(times: int, error: Exception = LOST, precision: str | None = None):
    """Raises the first ``times`` times that it is called, with a precision or any."""
    left = [times]

    def fail(asked: str | None = None) -> None:
        if left[0] and precision in {None, asked}:
            left[0] -= 1
            raise error

    return fail

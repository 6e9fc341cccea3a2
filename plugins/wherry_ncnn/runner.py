"""Runs a network on a board with ncnn (Python 3.8, numpy, ncnn)."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import ncnn
import numpy as np

_OWN = re.compile(r"out\d+$")
_NO_WORK = {"Input", "MemoryData"}
_POWERSAVE = {"all": 0, "little": 1, "big": 2}


def versions() -> dict[str, str]:
    """What runs here, for the record."""
    return {"ncnn": ncnn.__version__, "numpy": np.__version__}


def load(directory: str, artifact: dict[str, Any], options: dict[str, Any]) -> Runner:
    """A runner over ``model.param`` and ``model.bin``; ValueError where ncnn refuses them."""
    return Runner(Path(directory), artifact, options)


class Runner:
    """One network; every run is an Extractor of its own, so that nothing is remembered."""

    def __init__(self, directory: Path, artifact: dict[str, Any], options: dict[str, Any]) -> None:
        ncnn.set_cpu_powersave(_POWERSAVE[options["powersave"]])
        self._directory, self._artifact, self._options = directory, artifact, options
        self._names = [b["runtime"] for b in artifact["outputs"]]
        # What lies between layers is freed in lightmode, before it can be asked for.
        self._net = self._open(lightmode=options["lightmode"] and all(map(_OWN.match, self._names)))
        wanted = self._net.input_names()  # an input that nothing uses may be missing
        self._bound = [b["runtime"] for b in artifact["inputs"] if b["runtime"] in wanted]
        self._inputs: list[tuple[str, Any]] = []
        self._outputs: list[Any] = []

    def _open(self, *, lightmode: bool) -> Any:
        """The network, loaded; its options have to be set before."""
        net = ncnn.Net()
        _configure(net.opt, self._artifact["precision"], {**self._options, "lightmode": lightmode})
        for load_file, name in (
            (net.load_param, "model.param"),
            (net.load_model, "model.bin"),
        ):
            if load_file(str(self._directory / name)):
                raise ValueError(
                    f"ncnn {ncnn.__version__} does not load {name}; its reason is above"
                )
        return net

    def set_inputs(self, inputs: dict[str, np.ndarray]) -> None:
        """Copy the arrays into ncnn's own memory: its rows are aligned, and layers may write."""
        self._inputs = [(name, ncnn.Mat(inputs[name]).clone()) for name in self._bound]

    def run(self) -> None:
        """One inference."""
        extractor = self._net.create_extractor()
        for name, mat in self._inputs:
            extractor.input(name, mat)
        self._outputs = []
        for name in self._names:
            failed, mat = extractor.extract(name)
            if failed:
                raise ValueError(f"ncnn cannot compute {name!r} ({failed})")
            self._outputs.append(mat)

    def get_outputs(self) -> dict[str, np.ndarray]:
        """Copies of the last run's outputs."""
        return {
            name: np.array(mat)
            for name, mat in zip(self._names, self._outputs)  # noqa: B905 -- Python 3.8 has no strict
        }

    def time_layers(self, inputs: dict[str, np.ndarray], runs: int) -> dict[str, list[int]]:
        """Nanoseconds of each layer in each of ``runs`` inferences.

        ncnn computes what it is asked for and remembers what it computed, so that asking for the
        layers' results one after the other runs one layer at a time. Nothing is converted for the
        asking. It runs without ``lightmode``: layers that would write into their input copy it.
        """
        net = self._open(lightmode=False)
        layers = [(x.name, list(x.tops)) for x in net.layers() if x.type not in _NO_WORK]
        given = [(name, ncnn.Mat(inputs[name]).clone()) for name in self._bound]
        times: dict[str, list[int]] = {name: [] for name, _ in layers}
        for run in range(runs + 1):
            extractor = net.create_extractor()
            for name, mat in given:
                extractor.input(name, mat)
            for name, tops in layers:
                result = ncnn.Mat()
                started = time.perf_counter_ns()
                failed = extractor.extract(tops[0], result, 1)
                spent = time.perf_counter_ns() - started
                if failed:
                    raise ValueError(f"ncnn cannot compute the layer {name!r} ({failed})")
                if run:  # the first one warms up
                    times[name].append(spent)
            del extractor, result
        net.clear()
        return times

    def close(self) -> None:
        """Let the network go, after all that points into it."""
        self._inputs, self._outputs = [], []
        self._net.clear()


def _configure(opt: Any, precision: str, options: dict[str, Any]) -> None:
    """Set ncnn's options, which have to be set before it loads."""
    half = precision == "fp16"
    opt.num_threads = options["threads"]
    opt.lightmode = options["lightmode"]
    opt.openmp_blocktime = options["openmp_blocktime"]
    opt.use_packing_layout = options["packing"]
    opt.use_sgemm_convolution = options["sgemm"]
    for name in ("", "23", "43", "63"):
        setattr(opt, f"use_winograd{name}_convolution", options["winograd"])
    opt.use_fp16_packed = half
    opt.use_fp16_storage = half
    opt.use_fp16_arithmetic = half and options["fp16_arithmetic"]
    opt.use_bf16_storage = False
    if hasattr(opt, "use_bf16_packed"):  # of newer versions
        opt.use_bf16_packed = False
    # What is quantised is computed in int8; in other artifacts nothing is.
    opt.use_int8_inference = precision == "int8"
    opt.use_vulkan_compute = False

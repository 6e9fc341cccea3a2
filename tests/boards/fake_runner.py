"""A runner for the tests of the agent: numpy alone; it fails in the way that its options ask."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np


def load(directory, artifact, options):
    behaviour = options["behaviour"]
    if behaviour == "crash in load":
        ctypes.string_at(0)
    if behaviour == "raise in load":
        raise RuntimeError("the model is not to my taste")
    return Runner(float((Path(directory) / "factor.txt").read_text()), artifact, options)


def versions():
    return {"numpy": np.__version__}


class Runner:
    def __init__(self, factor, artifact, options):
        self.factor = factor
        self.inputs = [binding["runtime"] for binding in artifact["inputs"]]
        self.outputs = [binding["runtime"] for binding in artifact["outputs"]]
        self.options = options
        self.runs = 0
        self.ballast = np.ones(options["ballast_mb"] << 17)  # float64: 8 bytes

    def set_inputs(self, inputs):
        for array in inputs.values():
            assert array.flags.c_contiguous
        self.given = inputs

    def run(self):
        self.runs += 1
        behaviour = self.options["behaviour"]
        if behaviour == "print":
            print("garbage that is no frame", flush=True)  # noqa: T201 -- as runtimes do
            os.write(1, b"more of it\n")
            assert sys.stdin.read() == ""
        if self.runs > 1:  # not the first, which belongs to loading
            if behaviour == "crash":
                sys.stderr.write("about to die\n")
                sys.stderr.flush()
                ctypes.string_at(0)
            elif behaviour == "out of memory":
                os.kill(os.getpid(), signal.SIGKILL)
            elif behaviour == "raise":
                raise ValueError("a bad day")
            elif behaviour == "hang":
                time.sleep(600)
            elif behaviour == "exit":
                os._exit(3)
        if self.options["sleep_s"]:
            time.sleep(self.options["sleep_s"])

    def get_outputs(self):
        factor = np.float32(self.factor)
        return {
            output: self.given[self.inputs[index]] * factor
            for index, output in enumerate(self.outputs)
        }

    def time_layers(self, inputs, runs):
        assert self.runs and set(inputs) == set(self.inputs)
        behaviour = self.options["behaviour"]
        if behaviour == "layers of too few":
            return {"half": [5] * (runs // 2)}
        if behaviour == "layers back in time":
            return {"half": [-1] * runs}
        if behaviour == "layers that fail":
            raise ValueError("no profile today")
        return {"multiply": [3000 + run for run in range(runs)], "copy": np.full(runs, 1000)}

    def close(self):
        marker = self.options["marker"]
        if marker:
            Path(marker).write_text("closed")

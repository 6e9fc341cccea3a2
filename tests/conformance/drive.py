"""Runs artifacts in the environment of their runtime, a process for each: ``drive.py CASES``.

A process is forked when the runtime is imported, which takes longer than a small network, and as
many run at a time as there are cores: some of them wait for another program to start.

CASES is a JSON file: a list of ``runner``, ``binding`` (paths of Python files), ``directory``,
``artifact``, ``options``, ``board`` (of a runner's ``prepare``), ``inputs`` and ``outputs`` (.npz
files, ``SAMPLE/TENSOR``). A case that
crashes leaves no outputs; one that fails leaves ``outputs`` + ``.error``.
"""

import functools
import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np


@functools.cache
def load(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_it_is(raw, spec, shape, dtype):
    assert raw.shape == shape and str(raw.dtype) == dtype and not spec
    return raw


def run(case):
    runner, binding = load(case["runner"]), load(case["binding"])
    artifact = case["artifact"]
    inputs = [binding.Input(entry, {}, as_it_is) for entry in artifact["inputs"]]
    directory = case["directory"]
    if hasattr(runner, "prepare"):
        told = runner.prepare(directory, artifact, case["options"], case["board"])
        assert "unavailable" not in told, told["unavailable"]
        directory = told.get("directory", directory)
    loaded = runner.load(directory, artifact, case["options"])
    samples, results = {}, {}
    for name, array in np.load(case["inputs"]).items():
        sample, _, tensor = name.partition("/")
        samples.setdefault(sample, {})[tensor] = array
    for sample, arrays in samples.items():
        loaded.set_inputs({entry.runtime: entry.prepare(arrays[entry.onnx]) for entry in inputs})
        loaded.run()
        first = loaded.get_outputs()
        loaded.run()
        for name, array in loaded.get_outputs().items():
            same = np.array_equal(array, first[name], equal_nan=array.dtype.kind == "f")
            assert same, "the same inputs gave another output"
        for entry in artifact["outputs"]:
            output = binding.Output(entry)
            output.gather(0, 1, first[entry["runtime"]])
            results[f"{sample}/{entry['onnx']}"] = output.gathered()[0]
    loaded.close()
    np.savez(case["outputs"], **results)


def main(path):
    cases, running = json.loads(Path(path).read_text()), 0
    for case in cases:
        load(case["runner"]), load(case["binding"])
        if running == len(os.sched_getaffinity(0)):
            os.wait()
            running -= 1
        child = os.fork()
        if not child:
            try:
                run(case)
            except Exception as error:  # noqa: BLE001 -- whatever a runner raises is the result
                Path(case["outputs"] + ".error").write_text(f"{type(error).__name__}: {error}")
            finally:
                os._exit(0)
        running += 1
    for _ in range(running):
        os.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Runs an artifact over many samples: ``infer.py CASE``; starts alone, also under emulation.

CASE is a JSON file: ``runner`` (a Python file), ``cpuinfo`` (what it reads for /proc/cpuinfo),
``directory``, ``artifact``, ``options``, ``inputs`` and ``outputs`` (.npy files).
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np


def main(path):
    case = json.loads(Path(path).read_text())
    spec = importlib.util.spec_from_file_location("runner", case["runner"])
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    runner._CPU_INFO = Path(case["cpuinfo"])
    artifact = case["artifact"]
    loaded = runner.load(case["directory"], artifact, case["options"])
    (taken,), (given,) = artifact["inputs"], artifact["outputs"]
    outputs = []
    for sample in np.load(case["inputs"]):
        loaded.set_inputs({taken["runtime"]: sample})
        loaded.run()
        outputs.append(loaded.get_outputs()[given["runtime"]])
    np.save(case["outputs"], np.concatenate(outputs))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Builds engines by the runner's module on TensorRT-RTX, without a GPU: ``rtx_build.py CASES``.

CASES is a JSON file: ``plugins`` (a folder for imports) and ``cases``, each with ``arguments`` of
trtexec and an empty ``folder``. Beside it ``CASES.out`` says what the module can do, and of each
case its files and their sizes, or its error. Runs in the environment of TensorRT-RTX.
"""

import json
import sys
from pathlib import Path

import tensorrt_rtx as trt


class Builder:
    """TensorRT's builder; what it builds is for a GPU that is named, not for the one at hand."""

    def __init__(self, log):
        self.builder = trt.Builder(log)

    def __getattr__(self, name):
        return getattr(self.builder, name)

    def create_builder_config(self):
        config = self.builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        return config


class Named:
    """The module with that builder."""

    Builder = Builder

    def __getattr__(self, name):
        return getattr(trt, name)


def main(path):
    given = json.loads(Path(path).read_text())
    sys.path.insert(0, given["plugins"])
    from wherry_tensorrt import inprocess

    told = {"capabilities": sorted(inprocess.capabilities(trt)), "cases": []}
    for case in given["cases"]:
        folder = Path(case["folder"])
        try:
            inprocess.build_into(folder, case["arguments"], Named())
        except RuntimeError as error:
            told["cases"].append(str(error))
        else:
            told["cases"].append({p.name: p.stat().st_size for p in folder.iterdir()})
    Path(f"{path}.out").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])

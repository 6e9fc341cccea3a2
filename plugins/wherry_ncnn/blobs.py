"""Gives every blob of a network for random inputs: by these its layers are found in the model.

Runs alone, where ncnn is: ``blobs.py REQUEST RESPONSE``. The request names ``directory`` (of
``model.param`` and ``model.bin``), ``inputs`` (an .npz file with ``SAMPLE/BLOB``), ``samples``,
``blobs`` (names), ``options`` (of the runner) and ``output`` (an .npz file with ``SAMPLE/INDEX``
for each of ``blobs``). All is computed in float32, by the plainest of ncnn's algorithms.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:
    from wherry_ncnn.runner import load
else:  # alone, where this file's folder is the first place to look
    from runner import load


def main(request_path: str, response_path: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_path).read_text())
    given = np.load(request["inputs"])
    names = sorted({key.partition("/")[2] for key in given})
    artifact = {
        "precision": "fp32",
        "inputs": [{"runtime": name} for name in names],
        "outputs": [{"runtime": blob} for blob in request["blobs"]],
    }
    plain = {"winograd": False, "lightmode": False, "threads": 1}
    runner = load(request["directory"], artifact, {**request["options"], **plain})
    found: dict[str, Any] = {}
    for sample in range(request["samples"]):
        runner.set_inputs({name: given[f"{sample}/{name}"] for name in names})
        runner.run()
        outputs = runner.get_outputs()
        for index, blob in enumerate(request["blobs"]):
            found[f"{sample}/{index}"] = outputs[blob]
    np.savez(request["output"], **found)
    runner.close()
    Path(response_path).write_text(json.dumps({}))


if __name__ == "__main__":
    main(*sys.argv[1:])

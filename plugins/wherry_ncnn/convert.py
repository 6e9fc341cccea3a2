"""Makes ``model.param`` and ``model.bin`` for ncnn out of an ONNX file, by pnnx's program.

Runs alone, in an environment that holds the pnnx wheel and nothing else:
``convert.py REQUEST RESPONSE``. The request names ``model``, ``inputs`` (in pnnx's form,
``[1,3,8,8]f32``), ``fp16`` and ``output`` (a folder). pnnx writes much beside what ncnn needs, so
that it works in a folder of its own. Which layers ncnn has is for the caller to check; what pnnx
says that it left out is in the response.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

_LEFT_OUT = re.compile(r"^(?:ignore .* param .*|.*is not supported yet.*)$", re.MULTILINE)
_REFUSED = re.compile(r"ort CreateSession failed (.*)")
# The Python file beside the model says which axis of a tensor is the batch, which ncnn's tensors
# do not have; 233 is ncnn's word for none.
_BATCH = re.compile(r"\b((?:in|out)\d+)\.numpy\((?:\), )?batch_index=(\d+)\)")
_NO_BATCH = 233


def main(request_path: str, response_path: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_path).read_text())
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        response = convert(request, Path(folder))
    Path(response_path).write_text(json.dumps(response))


def convert(request: dict[str, object], folder: Path) -> dict[str, object]:
    """Run pnnx on a copy of the model in ``folder``.

    Returns:
        ``pnnx`` (its version), ``left_out`` (lines) and ``batch_axes`` (``in0``, ``out0``, ... to
        an axis or null); or ``error``.
    """
    shutil.copyfile(str(request["model"]), folder / "model.onnx")
    command = [
        str(_program()),
        "model.onnx",
        f"inputshape={request['inputs']}",
        f"fp16={int(bool(request['fp16']))}",
    ]
    run = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    text = run.stdout.decode("utf-8", "replace")
    print(text)
    param, weights = folder / "model.ncnn.param", folder / "model.ncnn.bin"
    if run.returncode or not (param.is_file() and weights.is_file()):
        return {"error": _failure(run.returncode, text)}
    output = Path(str(request["output"]))
    shutil.copyfile(param, output / "model.param")
    shutil.copyfile(weights, output / "model.bin")
    axes = _BATCH.findall((folder / "model_ncnn.py").read_text())
    return {
        "pnnx": importlib.metadata.version("pnnx"),
        "left_out": _LEFT_OUT.findall(text),
        "batch_axes": {name: None if int(axis) == _NO_BATCH else int(axis) for name, axis in axes},
    }


def _program() -> Path:
    """The executable in the wheel, found without importing the package: that would want torch."""
    spec = importlib.util.find_spec("pnnx")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("pnnx")


def _failure(code: int, text: str) -> dict[str, object]:
    refused = _REFUSED.search(text)
    if refused:
        return {
            "message": f"pnnx does not read the model: {refused[1]}",
            "remedy": "Export the model with an older opset, or without this node.",
            "unsupported": True,
        }
    how = f"failed with exit code {code}"
    if code < 0:
        how = f"crashed ({signal.Signals(-code).name})"
    lines = [line for line in text.splitlines() if line.strip()]
    return {
        "message": f"pnnx {how}; its last line: {lines[-1] if lines else 'none'}",
        "remedy": "The whole output is in the step's log. Simplifying the model first may help.",
    }


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Does one pass in a process of its own, on the host's interpreter: ``work.py REQUEST RESPONSE``.

The request names the ``pass`` and its ``function`` (``module:name``) and holds a `Job`'s fields;
the response holds ``figures`` and ``warnings``. The model is written only after ONNX's full check.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wherry.errors import WherryError
from wherry.model import Model
from wherry.quantize.given import is_quantised
from wherry_compress.job import Data, Done, Job, Refusal

_QUANTISED = (
    "The model is quantised already: passes that change weights want it as it was before, and "
    "int8 is a precision of targets."
)


def main(request_path: str, response_path: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_path).read_text())
    module, name = request["function"].split(":")
    try:
        done = getattr(importlib.import_module(module), name)(_job(request))
    except (Refusal, WherryError) as error:
        where = ", ".join(filter(None, [f"pass {request['pass']}", error.where]))
        remedy = error.remedy
        if isinstance(error, Refusal) and is_quantised(Model.load(Path(request["model"]))):
            remedy = f"{remedy or ''} {_QUANTISED}".strip()
        told = {"message": error.message, "where": where, "remedy": remedy}
        response: dict[str, Any] = {"error": told}
    else:
        write(done, Path(request["output"]))
        response = {"figures": dict(done.figures), "warnings": list(done.warnings)}
    Path(response_path).write_text(json.dumps(response))


def write(done: Done, path: Path) -> None:
    """The model as a file, the same bytes for the same model; only if it is valid."""
    import onnx

    onnx.checker.check_model(done.model, full_check=True)
    path.write_bytes(done.model.SerializeToString(deterministic=True))


def _job(request: Mapping[str, Any]) -> Job:
    original = request["original"]
    return Job(
        model=Path(request["model"]),
        parameters=request["parameters"],
        scratch=Path(request["scratch"]),
        data={role: _data(files) for role, files in request["data"].items()},
        original=None if original is None else Path(original),
        seed=request["seed"],
        unfinished=Path(unfinished) if (unfinished := request.get("unfinished")) else None,
    )


def _data(files: Mapping[str, Any]) -> Data:
    inputs = {name: Path(path) for name, path in files["inputs"].items()}
    return Data(inputs, None if files["labels"] is None else np.load(files["labels"]))


if __name__ == "__main__":
    main(*sys.argv[1:])

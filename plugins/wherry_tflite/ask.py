"""Asks onnx2tf for its operators, alone in its environment: ``ask.py REQUEST.json RESPONSE.json``.

The request is empty; the response: ``operators``, a list.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(request_path: str, response_path: str) -> None:
    """Write the list."""
    del request_path
    from onnx2tf.tflite_builder.op_registry import get_supported_onnx_ops

    response = {"operators": sorted(get_supported_onnx_ops())}
    Path(response_path).write_text(json.dumps(response), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

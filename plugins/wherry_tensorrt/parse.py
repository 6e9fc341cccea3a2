"""Asks NVIDIA's ONNX parser and builder, those of TensorRT-RTX, which need no GPU.

Runs alone, in an environment of its own: ``parse.py REQUEST RESPONSE``. The request's ``what`` is
``operators`` (which of the ``names`` it knows) or ``models`` (``files`` are parsed, and built for
the capability ``build`` where it is given). It may have one logger a process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt  # only in its own environment


class Log(trt.ILogger):  # type: ignore[misc] # it has no types
    """Keeps errors."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Take a message of TensorRT's."""
        if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
            self.errors.append(message)


def main(request_path: str, response_path: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    log = Log()
    builder = trt.Builder(log)
    response: dict[str, Any] = {"tensorrt_rtx": trt.__version__}
    if request["what"] == "operators":
        parser = trt.OnnxParser(builder.create_network(0), log)
        response["operators"] = [n for n in request["names"] if parser.supports_operator(n)]
    else:
        response["models"] = {
            path: _try(builder, log, path, request.get("build", "")) for path in request["files"]
        }
    Path(response_path).write_text(json.dumps(response), encoding="utf-8")


def _try(builder: Any, log: Log, path: str, capability: str) -> dict[str, Any]:
    """What the parser and the builder say of a file; ``problems`` is empty where all went well."""
    del log.errors[:]
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(path):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        return {
            "problems": [
                {
                    "node": str(error.node_name()),
                    "operator": str(error.node_operator()),
                    "text": str(error.desc()),
                }
                for error in errors
            ]
        }
    told: dict[str, Any] = {
        "problems": [],
        "layers": [network.get_layer(index).name for index in range(network.num_layers)],
    }
    if capability:
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            told["problems"] = [{"node": "", "operator": "", "text": t} for t in log.errors]
        else:
            told["bytes"] = plan.nbytes
    return told


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Asks ncnn which layers it has, alone in the runtime's environment: ``ask.py REQUEST RESPONSE``.

The request: ``layers``, a list of names; the response: those that it can create.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ncnn

MOST_LAYERS = 500  # more than ncnn has; the ones that it lacks give no layer


def main(request_path: str, response_path: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_path).read_text())
    made = {index for index in range(MOST_LAYERS) if ncnn.create_layer(index) is not None}
    found = [name for name in request["layers"] if ncnn.layer_to_index(name) in made]
    Path(response_path).write_text(json.dumps({"layers": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Short manifests for tests, and what they are read for."""

from __future__ import annotations

import pytest

from wherry.errors import ManifestError

BASE = "wherry: 1\nmodel: {path: net.onnx}\n"
SHORT = BASE + "targets: [{backend: onnxruntime}]\n"
DATA = "data: {evaluation: {source: digits}, calibration: {source: digits}}\n"


def rows(manifest):
    return [(variant, target.id) for variant, target in manifest.rows]


def refusal(load_text, text, **arguments):
    with pytest.raises(ManifestError) as caught:
        load_text(text, **arguments)
    return str(caught.value)

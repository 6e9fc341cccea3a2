"""Bundles: the winner of a run as an archive that runs without wherry, and can be verified.

An archive (``.tar.gz`` or ``.zip``) has one folder. Its first file, ``contents.json``, names all
others with their sizes and sha256; ``bundle.json`` is the lock of everything (`docs/bundle.md`).
"""

from __future__ import annotations

BUNDLE_VERSION = 1
"""Of the archive's layout and of ``bundle.json``."""

CONTENTS = "contents.json"
LOCK = "bundle.json"
ARTIFACT = "artifact"
"""The folder of the artifact's files."""

RUNNER = "runner"
"""The folder of what runs on a board: the backend's runner, and the core's two files beside it."""

CPP = "cpp"
SAMPLES = "samples"

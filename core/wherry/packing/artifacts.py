"""Containers for the files of an artifact that is to travel packed."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import replace
from pathlib import Path

from wherry.artifact import Artifact, Packing
from wherry.model import Model
from wherry.packing import MARK, pack

_CLEARLY = 0.9  # of the file: more than that is not worth the unpacking
_ZLIB, _GZIP = 6, 18  # bytes that each has around what is deflated


def travels_packed(model: Model) -> bool:
    """Whether a pass has asked for it: ``pack.huffman``."""
    key, value = MARK
    return model.metadata.get(key) == value


def gzip_bytes(data: bytes) -> int:
    """What gzip makes of a file at its usual level."""
    return len(zlib.compress(data)) - _ZLIB + _GZIP


def pack_artifact(artifact: Artifact, folder: Path) -> Artifact:
    """The artifact with a container for each file that is clearly smaller in one.

    Args:
        artifact: its folder lies beside ``folder``.
        folder: for the containers (`wherry.artifact.CONTAINERS`); made here.
    """
    folder.mkdir()
    containers, size, gzipped = {}, 0, 0
    for name in artifact.files:
        data = (artifact.directory / name).read_bytes()
        container = pack(data)
        gzipped += gzip_bytes(data)
        if len(container) <= _CLEARLY * len(data):
            digest = hashlib.sha256(container).hexdigest()
            (folder / digest).write_bytes(container)
            containers[name] = digest
            size += len(container)
        else:
            size += len(data)
    return replace(artifact, packing=Packing(containers, size, gzipped))

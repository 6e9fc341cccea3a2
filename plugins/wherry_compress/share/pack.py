"""The pass ``pack.huffman``: what is made of this model travels packed.

The pass changes nothing that is computed. It marks the model; each artifact that is made of it gets
a container (`wherry.packing`) for every file where that is clearly smaller, and the board unpacks
it. The figures are those of the ONNX file itself, beside what others make of it: gzip, and zstd
where Python has it (3.14) or the package zstandard is installed.
"""

from __future__ import annotations

import importlib

from wherry.packing import MARK, pack
from wherry.packing.artifacts import gzip_bytes
from wherry_compress.job import Done, Job


def apply(job: Job) -> Done:
    """The marked model."""
    proto = job.load()
    key, value = MARK
    kept = [entry for entry in proto.metadata_props if entry.key != key]
    del proto.metadata_props[:]
    for entry in kept:
        proto.metadata_props.add(key=entry.key, value=entry.value)
    proto.metadata_props.add(key=key, value=value)
    data = proto.SerializeToString(deterministic=True)
    zstd = zstd_bytes(data)
    figures = {
        "onnx_bytes": len(data),
        "packed_bytes": len(pack(data)),
        "gzip_bytes": gzip_bytes(data),
        **({} if zstd is None else {"zstd_bytes": zstd}),
    }
    return Done(proto, figures)


def zstd_bytes(data: bytes) -> int | None:
    """What zstd makes of a file at level 19, its best that asks for no memory; None: not here."""
    for name in ("compression.zstd", "zstandard"):  # both have compress(data, level)
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        return len(module.compress(data, 19))
    return None

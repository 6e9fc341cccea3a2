"""The pass ``pack.huffman``: what is made of this model travels packed.

The pass changes nothing that is computed. It marks the model; each artifact that is made of it gets
a container (`wherry.packing`) for every file where that is clearly smaller, and the board unpacks
it. The figures are those of the ONNX file itself.
"""

from __future__ import annotations

import zlib

from wherry.packing import MARK, pack
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
    figures = {
        "onnx_bytes": len(data),
        "packed_bytes": len(pack(data)),
        "deflated_bytes": len(zlib.compress(data)),
    }
    return Done(proto, figures)

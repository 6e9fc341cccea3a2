"""Reading an ONNX file from a stranger: what it is, whether it is whole, whether it is valid.

`read` is the only way by which wherry opens an ONNX file. Whatever is wrong with the file is a
`ModelError` that says what was found; nothing outside the file's folder is ever read.
"""

from __future__ import annotations

import functools
import hashlib
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from wherry.errors import ModelError

if TYPE_CHECKING:
    import onnx

LIMIT_BYTES = 2**31 - 1
"""Of a protobuf message, and so of a model whose weights are held inside it."""

SURE_IR, SURE_OPSET = 10, 21
"""The oldest onnxruntime that wherry installs with reads these; newer ones are tried."""

EXPORT = "Export the network to ONNX first (torch.onnx.export, tf2onnx, ...)."

MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer", "Fetch the file itself: git lfs pull."),
    (0, b"\x80", "a Python pickle, perhaps a PyTorch checkpoint", EXPORT),
    (4, b"TFL3", "a TensorFlow Lite model", "Give the ONNX model that it was converted from."),
    (4, b"ORTM", "an ONNX Runtime model (.ort)", "Give the ONNX model that it was made from."),
    (0, b"\x89HDF", "an HDF5 file, perhaps a Keras model", EXPORT),
    (0, b"7767517", "an ncnn .param file", "Give the ONNX model that it was converted from."),
    (0, b"GGUF", "a GGUF model", EXPORT),
    (8, b'{"', "a safetensors file", EXPORT),
    (0, b"\x1f\x8b", "compressed by gzip", "Unpack it first."),
    (0, b"\xfd7zXZ", "compressed by xz", "Unpack it first."),
    (0, b"BZh", "compressed by bzip2", "Unpack it first."),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", "Unpack it first."),
    (0, b"\x93NUMPY", "a numpy array", EXPORT),
    (0, b"\x7fELF", "a program or library", EXPORT),
    (0, b"<", "a text in HTML or XML, perhaps a web page", "Download the file itself."),
)

# Number and wire type of every field of ModelProto, as they stand in a file.
FIELDS = frozenset({0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72, 0xA2, 0xCA, 0xD2})


def read(path: Path) -> tuple[onnx.ModelProto, str]:
    """The model with its external data inside, and its digest.

    The digest is sha256, hex, over the file's bytes; where there is external data, then over the
    name, the size and the bytes of each such file, in the order of their names.

    Raises:
        ModelError: it is missing, not ONNX, cut, too new, too big, or its external data is
            missing, cut, or outside the file's folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    data = _bytes(path)
    _recognise(path, data)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise _unreadable(path, data) from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise _unreadable(path, data)
    _check_versions(path, proto)
    digest = hashlib.sha256(data)
    _load_external(path, proto, len(data), digest)
    return proto, digest.hexdigest()


@contextmanager
def texts(path: Path) -> Iterator[None]:
    """Names in the file that are no UTF-8 raise wherever they are touched: say so."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ModelError(
            f"the file is damaged: it holds a text that is no UTF-8 ({error.reason})",
            where=str(path),
            remedy="Copy or download it again.",
        ) from error


def check(path: Path, proto: onnx.ModelProto) -> None:
    """Refuse what ONNX's own checker and shape inference refuse.

    What does no harm is put right in ``proto``: a graph without a name, outputs without a shape
    where it can be inferred.
    """
    import onnx

    proto.graph.name = proto.graph.name or "graph"
    try:
        if any(map(_no_rank, proto.graph.output)):
            inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
            for value, found in zip(proto.graph.output, inferred.graph.output, strict=True):
                value.CopyFrom(found)
        for word, values in (("input", proto.graph.input), ("output", proto.graph.output)):
            for value in filter(_no_rank, values):
                raise ModelError(
                    f"{word} {value.name!r} does not say how many axes it has",
                    where=str(path),
                    remedy="Export the model with shapes.",
                )
        onnx.checker.check_model(proto, full_check=True)
    except UnicodeDecodeError:
        raise  # see `texts`
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        *(ValueError, RuntimeError, IndexError, OverflowError),  # C++'s own, of damaged files
    ) as error:
        raise ModelError(
            f"not a valid ONNX model: {shorten(str(error))}",
            where=str(path),
            remedy="Export it again, with a current exporter.",
        ) from error


def _no_rank(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")


def shorten(text: str, limit: int = 300) -> str:
    """An error of onnx or onnxruntime as one line, without its places in C++."""
    text = re.sub(r"\[\w*(?:Error|RuntimeError)\]( : \d+ : \w+ :)?", " ", text)
    text = re.sub(r"\S+\.(?:cc|h|cpp):\d+ (?:[^()]*::.*?\)(?: const)? )?", " ", text)
    text = text.replace("==> Context:", "--").replace(" : ", " ")
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3].rstrip() + "..."


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor in a model, those of nested graphs and functions included."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)


def _bytes(path: Path) -> bytes:
    where = str(path)
    try:
        if path.is_dir():
            raise ModelError(
                "a folder, not an ONNX file", where=where, remedy="Name the file in it."
            )
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelError("not a file", where=where, remedy="Name an ONNX file.")
        size = status.st_size
        if size > LIMIT_BYTES:
            raise _too_big(path, size)
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(
            "there is no such file", where=where, remedy="Correct the model's path."
        ) from error
    except OSError as error:
        raise ModelError(
            f"cannot be read: {error.strerror}", where=where, remedy="Check the file's permissions."
        ) from error
    if not data:
        raise ModelError("the file is empty", where=where, remedy="Export or copy it again.")
    return data


def _too_big(path: Path, size: int) -> ModelError:
    return ModelError(
        f"the model has {size / 2**30:.1f} GiB, and one that converters can read has at most 2",
        where=str(path),
        remedy="Give a smaller network, or one with its weights in float16.",
    )


def _recognise(path: Path, data: bytes) -> None:
    """Refuse what is plainly something else, and say what."""
    if data.startswith(b"PK"):
        what, remedy = _recognise_zip(path), EXPORT
    else:
        for offset, magic, what, remedy in MAGIC:  # noqa: B007 -- both are used below
            if data.startswith(magic, offset):
                break
        else:
            return
    raise ModelError(f"not an ONNX file but {what}", where=str(path), remedy=remedy)


def _recognise_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return "a broken zip archive"
    if any(name.endswith("data.pkl") for name in names):
        return "a PyTorch file (.pt, .pth)"
    if any(name.endswith(".weights.h5") for name in names):
        return "a Keras model (.keras)"
    if names and all(name.endswith(".npy") for name in names):
        return "a file of numpy arrays (.npz)"
    return "a zip archive"


def _unreadable(path: Path, data: bytes) -> ModelError:
    missing = _missing_bytes(data)
    if missing is None:
        return ModelError("not an ONNX file", where=str(path), remedy=EXPORT)
    found = f"the file is cut: {len(data)} bytes are there"
    return ModelError(
        f"{found}, at least {missing} more belong to it"
        if missing
        else f"{found}, and the rest of the model is not",
        where=str(path),
        remedy="Copy or download it again.",
    )


def _missing_bytes(data: bytes) -> int | None:
    """How many bytes are missing at the end; None: these are not the fields of a model at all."""
    position = 0
    try:
        while position < len(data):
            tag, position = _varint(data, position)
            if tag not in FIELDS:
                return None
            value, position = _varint(data, position)
            if tag & 7 == 2:
                position += value
    except IndexError:
        return 1
    except OverflowError:
        return None
    return position - len(data)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise OverflowError


def _check_versions(path: Path, proto: onnx.ModelProto) -> None:
    import onnx

    opset = default_opset(proto)
    newest_ir, newest_opset = onnx.IR_VERSION, onnx.defs.onnx_opset_version()
    installed = f"onnx {onnx.__version__}"
    remedy = "Upgrade onnx and onnxruntime, or export the model with an older opset."
    for word, found, newest in (
        ("IR version", proto.ir_version, newest_ir),
        ("opset", opset, newest_opset),
    ):
        if found > newest:
            raise ModelError(
                f"the model has {word} {found}, and the installed {installed} reads up to {newest}",
                where=str(path),
                remedy=remedy,
            )
    if (proto.ir_version > SURE_IR or opset > SURE_OPSET) and (
        refusal := _runtime_refusal(proto.ir_version, opset)
    ):
        raise ModelError(
            f"the model has IR version {proto.ir_version} and opset {opset}, and the installed "
            f"onnxruntime refuses them: {refusal}",
            where=str(path),
            remedy=remedy,
        )


def default_opset(proto: onnx.ModelProto) -> int:
    """The version of ONNX's own operators; 0 where a model uses none."""
    return max(
        (entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}),
        default=0,
    )


@functools.cache
def _runtime_refusal(ir_version: int, opset: int) -> str | None:
    """Why onnxruntime will not take these versions; found by giving it a network of one node."""
    from onnx import TensorProto, helper

    from wherry.reference import open_session

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    imports = [helper.make_opsetid("", opset)]
    tiny = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
    try:
        open_session(tiny.SerializeToString(), threads=1, where="")
    except ModelError as error:
        return error.message
    return None


def _load_external(path: Path, proto: onnx.ModelProto, size: int, digest: Any) -> None:
    """Bring the external data inside; hash its files."""
    import onnx

    external: dict[str, list[onnx.TensorProto]] = {}
    for tensor in tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            external.setdefault(entries.get("location", ""), []).append(tensor)
    files = {name: _external_file(path, name, external[name][0]) for name in sorted(external)}
    size += sum(file.stat().st_size for file in files.values())
    if size > LIMIT_BYTES:
        raise _too_big(path, size)
    for location, file in files.items():
        data = file.read_bytes()
        digest.update(f"{location}\0{len(data)}\0".encode())
        digest.update(data)
        for tensor in external[location]:
            tensor.raw_data = _external_slice(path, tensor, location, data)
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT


def _external_file(path: Path, location: str, tensor: onnx.TensorProto) -> Path:
    where = str(path)
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    outside = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    file = path.parent / location
    if location and not outside and ".." not in parts:
        if not file.is_file():
            raise ModelError(
                f"the external data {location!r} (tensor {tensor.name!r}) is missing",
                where=where,
                remedy="Put it beside the model.",
            )
        # Links may lead to where the model's own link leads, as in the caches of model hubs.
        if any(file.resolve().is_relative_to(home) for home in _homes(path)):
            return file
    raise ModelError(
        f"tensor {tensor.name!r} has external data at {location!r}, which is not a file in the "
        "model's folder",
        where=where,
        remedy="Save the model again, with its external data beside it.",
    )


def _homes(path: Path) -> tuple[Path, Path]:
    return path.parent.resolve(), path.resolve().parent


def _external_slice(path: Path, tensor: onnx.TensorProto, location: str, data: bytes) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", max(len(data) - offset, 0)))
    except ValueError as error:
        raise ModelError(
            f"the external data of tensor {tensor.name!r} is described wrongly: {error}",
            where=str(path),
            remedy="Export the model again.",
        ) from error
    if not 0 <= offset <= offset + length <= len(data):
        raise ModelError(
            f"the external data {location!r} is cut: tensor {tensor.name!r} lies at bytes {offset} "
            f"to {offset + length}, and the file has {len(data)}",
            where=str(path),
            remedy="Copy or download both files again.",
        )
    return data[offset : offset + length]

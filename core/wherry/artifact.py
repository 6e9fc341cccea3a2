"""Artifacts: what a backend's converter made, and how its tensors map to the model's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wherry.errors import StoreError


@dataclass(frozen=True, slots=True)
class Binding:
    """One input or output of an artifact and the ONNX tensor that it stands for.

    The agent turns an ONNX tensor into the runtime's form and back by these fields alone:
    inputs are transposed by ``permutation`` and lose their first axis if ``drop_batch``; outputs
    the other way round.

    Attributes:
        onnx: the tensor's name in the model.
        runtime: its name in the runtime.
        dtype: numpy's name of the type that the runtime takes or gives.
        shape: the static ONNX shape.
        permutation: axes of the ONNX tensor in the runtime's order (NCHW to NHWC: 0, 2, 3, 1);
            None: as in ONNX.
        drop_batch: the runtime has no batch axis (axis 0 of the ONNX tensor, which is 1).
        scale: above 0 where the runtime's whole numbers stand for real ones: the ONNX tensor is
            ``(runtime - zero_point) * scale`` in float32, and an input is rounded to the nearest,
            within the range of ``dtype``; None: the values are what they are.
        zero_point: see ``scale``.
    """

    onnx: str
    runtime: str
    dtype: str
    shape: tuple[int, ...]
    permutation: tuple[int, ...] | None = None
    drop_batch: bool = False
    scale: float | None = None
    zero_point: int = 0


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation of a runtime, and the ONNX nodes that it does.

    Attributes:
        name: the runtime's, as its profile has it; unique in an artifact.
        type: the runtime's word for what it does, e.g. ``CONV_2D``.
        nodes: names of the ONNX nodes that it does, in their order: several where the converter
            fused them; none where it is the runtime's own (a change of layout, a requantisation).
        outputs: ONNX tensor to the runtime's tensor, of those results that stand for one.
        precision: that it computes in: ``fp32``, ``fp16``, ``int8``.
    """

    name: str
    type: str
    nodes: tuple[str, ...]
    outputs: Mapping[str, str] = field(default_factory=dict)
    precision: str = "fp32"


@dataclass(frozen=True, slots=True)
class Packing:
    """How an artifact travels (`wherry.packing`).

    Attributes:
        containers: relative path of a file to the sha256 of its container, for those files that
            are clearly smaller in one.
        size_bytes: what is sent: the containers, and the other files as they are.
        gzip_bytes: what all the files would be, each in gzip's form.
    """

    containers: Mapping[str, str]
    size_bytes: int
    gzip_bytes: int


CONTAINERS = "containers"
"""The folder beside an artifact's in which its containers are, each by its sha256."""


@dataclass(frozen=True)
class Artifact:
    """Files in a folder, all that a runner needs, and what made them.

    Attributes:
        directory: where the files are.
        backend: the backend's name.
        precision: as in the target.
        format: the format's name (``Backend.artifact_format``).
        files: relative POSIX path to sha256, hex.
        inputs: the runtime's inputs.
        outputs: the runtime's outputs, in the model's order.
        provenance: the tool, its version, its notes; JSON values.
        layers: what the runtime does, in its order; empty where the backend does not tell.
        packing: None: it travels as it is.
    """

    directory: Path
    backend: str
    precision: str
    format: str
    files: Mapping[str, str]
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    packing: Packing | None = None

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        *,
        backend: str,
        precision: str,
        format: str,  # noqa: A002 -- the field's name
        inputs: tuple[Binding, ...],
        outputs: tuple[Binding, ...],
        provenance: Mapping[str, Any] | None = None,
        layers: tuple[Layer, ...] = (),
    ) -> Artifact:
        """Hash every file below ``directory`` and describe them."""
        files = {
            path.relative_to(directory).as_posix(): hash_file(path)
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        return cls(
            directory,
            backend,
            precision,
            format,
            files,
            inputs,
            outputs,
            dict(provenance or {}),
            layers,
        )

    @property
    def digest(self) -> str:
        """sha256 over the files' hashes, the bindings and the format; not over what explains."""
        described = self.to_json()
        del described["provenance"], described["layers"], described["packing"]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """The sum of the files' sizes."""
        return sum((self.directory / name).stat().st_size for name in self.files)

    @property
    def shipped(self) -> dict[str, tuple[str, Path]]:
        """Relative path of each file to its sha256, and to where it is."""
        return {name: (digest, self.directory / name) for name, digest in self.files.items()}

    @property
    def containers(self) -> dict[str, tuple[str, Path]]:
        """sha256 of each file that travels packed to its container's, and to where that is."""
        folder = self.directory.parent / CONTAINERS
        packed = self.packing.containers if self.packing else {}
        return {self.files[name]: (digest, folder / digest) for name, digest in packed.items()}

    def to_json(self) -> dict[str, Any]:
        """All but the directory, as JSON values."""
        values = asdict(self)
        del values["directory"]
        return json.loads(json.dumps(values))  # type: ignore[no-any-return] # tuples become lists

    @classmethod
    def from_json(cls, values: Mapping[str, Any], directory: Path) -> Artifact:
        """The inverse of `to_json`; raises `StoreError` where the values are not an artifact."""
        try:
            fields = dict(values)
            for side in ("inputs", "outputs"):
                fields[side] = tuple(_binding(entry) for entry in fields[side])
            fields["layers"] = tuple(_layer(entry) for entry in fields["layers"])
            fields["files"] = dict(fields["files"])
            packing = fields.get("packing")
            fields["packing"] = None if packing is None else Packing(**packing)
            return cls(directory=directory, **fields)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise StoreError(
                f"no description of an artifact: {error!r}",
                where=str(directory),
                remedy="Remove the folder and run again.",
            ) from error


def _binding(entry: Mapping[str, Any]) -> Binding:
    permutation = entry.get("permutation")
    return Binding(
        onnx=entry["onnx"],
        runtime=entry["runtime"],
        dtype=entry["dtype"],
        shape=tuple(entry["shape"]),
        permutation=None if permutation is None else tuple(permutation),
        drop_batch=entry.get("drop_batch", False),
        scale=entry.get("scale"),
        zero_point=entry.get("zero_point", 0),
    )


def _layer(entry: Mapping[str, Any]) -> Layer:
    return Layer(**{**entry, "nodes": tuple(entry["nodes"])})


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""Files for MACE's own tools, beside the artifact: deployment, devices, ranges of activations.

The forms are those of MACE's documentation (docs/user_guide: the deployment file of
``advanced_usage_cmake.rst``, the device file of ``devices/demo_device_nanopi.yml``, the range file
of ``quantization_usage.rst``).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.artifact import hash_file

if TYPE_CHECKING:
    from wherry.calibration import Calibration
    from wherry.model import Model, TensorSpec

DEPLOYMENT, DEVICES, RANGES = "deployment.yml", "devices.yml", "ranges.txt"
ABIS = ("arm64", "armhf", "host")
TYPES = {"fp32": "fp32_fp32", "fp16": "fp16_fp32", "int8": "fp32_fp32"}
"""Precision to MACE's data_type."""


def write(
    directory: Path,
    model: Model,
    *,
    name: str,
    precision: str,
    runtime: str,
    calibration: Calibration | None,
    tensors: Sequence[str] = (),
) -> Path:
    """Write the files into a folder; returns the deployment file.

    Args:
        directory: an existing folder.
        model: that MACE's tools would convert.
        name: of the model in MACE.
        precision: of the target.
        runtime: ``cpu`` or ``gpu``.
        calibration: its ranges are written where it is given.
        tensors: those whose ranges are written; empty: all.
    """
    about: dict[str, Any] = {
        "platform": "onnx",
        "model_file_path": str(model.path),
        "model_sha256_checksum": hash_file(model.path),
        "subgraphs": [_interface(model, calibration)],
        "runtime": runtime,
        "data_type": TYPES[precision],
        "winograd": 0,
        "obfuscate": 0,
    }
    if calibration is not None:
        path = directory / RANGES
        path.write_text(range_text(calibration.ranges, tensors), encoding="utf-8")
        if precision == "int8":
            about |= {"quantize": 1, "quantize_range_file": str(path)}
    deployment = {
        "library_name": "wherry",
        "target_abis": list(ABIS),
        "model_graph_format": "file",
        "model_data_format": "file",
        "models": {name: about},
    }
    (directory / DEPLOYMENT).write_text(_yaml(deployment), encoding="utf-8")
    devices = {
        "devices": {
            "board": {
                "target_abis": list(ABIS[:2]),
                "target_socs": "all",
                "models": "board",
                "address": "127.0.0.1",
                "username": "user",
            }
        }
    }
    (directory / DEVICES).write_text(
        "# Write the board's own chip, model, address and user here.\n" + _yaml(devices),
        encoding="utf-8",
    )
    return directory / DEPLOYMENT


def _interface(model: Model, calibration: Calibration | None) -> dict[str, Any]:
    """Inputs and outputs; pictures have four axes, and ONNX's order."""
    ranges = {} if calibration is None else calibration.ranges
    spans = [ranges.get(spec.name, (-1.0, 1.0)) for spec in model.inputs]
    return {
        **_side("input", model.inputs),
        "input_ranges": [f"{low:.9g},{high:.9g}" for low, high in spans],
        **_side("output", model.outputs),
    }


def _side(side: str, specs: Sequence[TensorSpec]) -> dict[str, list[str]]:
    return {
        f"{side}_tensors": [spec.name for spec in specs],
        f"{side}_shapes": [",".join(map(str, spec.static_shape)) for spec in specs],
        f"{side}_data_types": ["float32" for _ in specs],
        f"{side}_data_formats": [
            "NCHW" if len(spec.static_shape) == 4 else "NONE" for spec in specs
        ],
    }


def range_text(ranges: Mapping[str, tuple[float, float]], tensors: Sequence[str] = ()) -> str:
    """MACE's range file: ``NAME@@LEAST,GREATEST`` a line; others than those have no place in it.

    MACE divides a line at its first ``@@``, so that a name may not hold one, nor end like it.
    """
    wanted = tensors or list(ranges)
    lines = [
        f"{name}@@{ranges[name][0]:.9g},{ranges[name][1]:.9g}"
        for name in wanted
        if name in ranges and "@@" not in f"{name}@" and not {"\n", "\r"} & set(name)
    ]
    return "".join(f"{line}\n" for line in lines)


def _yaml(values: Mapping[str, Any]) -> str:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    stream = io.StringIO()
    yaml.dump(dict(values), stream)
    return stream.getvalue()

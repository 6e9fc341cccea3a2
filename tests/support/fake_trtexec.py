"""A program that behaves as NVIDIA's trtexec of a version, without a GPU: ONNX Runtime computes.

It knows the options of that version and no other, says what trtexec says, and writes its files in
that version's format. An engine of it is a header and the ONNX file; times are made up. `install`
writes the program; its file says the version and the GPU.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

VERSIONS = Path(__file__).with_name("trtexec_versions.yaml")
MAGIC = b"FAKE ENGINE "
STAMP = "[11/29/2026-01:02:03]"
WEAK = ("fp16", "bf16", "int8", "best")
LARGEST_OPSET = {"8": 17, "10": 20, "11": 25}
TYPES = {"FLOAT": "float32", "INT32": "int32"}


def versions() -> dict[str, dict]:
    """Version to ``version`` (its digits) and ``flags`` (without dashes)."""
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(VERSIONS)


def install(path: Path, version: str, *, gpu: str = "Orin", capability: str = "8.7") -> Path:
    """Write the program; without a name the GPU is missing."""
    settings = {**versions()[version], "name": version, "gpu": gpu, "capability": capability}
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from fake_trtexec import Program\nsys.exit(Program({settings!r}, sys.argv).main())\n"
    )
    path.chmod(0o755)
    return path


def say(text: str) -> None:
    """A line on stdout."""
    sys.stdout.write(f"{text}\n")


class Failure(Exception):  # noqa: N818 -- an answer, not a fault
    """Ends the program as trtexec ends, with these errors."""


class Program:
    """One run."""

    def __init__(self, settings: dict, argv: list[str]) -> None:
        self.version, self.name = settings["version"], settings["name"]
        self.flags = set(settings["flags"])
        self.gpu, self.capability = settings["gpu"], settings["capability"]
        self.argv = argv
        self.major = self.name.partition(".")[0]
        build = "" if len(self.version) < 6 or self.version < "100400" else " [b34]"
        self.title = f"TensorRT.trtexec [TensorRT v{self.version}]{build}"

    def main(self) -> int:
        line = f"{self.title} # {' '.join(self.argv)}"
        say(f"&&&& RUNNING {line}")
        asked = {}
        for word in self.argv[1:]:
            name, _, value = word.removeprefix("--").partition("=")
            asked[name] = value
        if "help" in asked:
            self.help()
            return 0
        try:
            unknown = sorted(asked.keys() - self.flags)
            if unknown:
                raise Failure(*(f"Unknown option: --{name} {asked[name]}" for name in unknown))
            self.info("=== Model Options ===")
            self.device()
            engine = self.build(asked) if "onnx" in asked else self.load(asked)
            if "skipInference" in asked or "buildOnly" in asked:
                self.info("Skipped inference phase since --skipInference is added.")
            else:
                self.run(engine, asked)
        except Failure as failure:
            for text in failure.args:
                say(f"{STAMP} [E] {text}")
            say(f"&&&& FAILED {line}")
            return 1
        say(f"&&&& PASSED {line}")
        return 0

    def info(self, text: str) -> None:
        say(f"{STAMP} [I] {text}")

    def help(self) -> None:
        say("=== Build Options ===")
        for name in sorted(self.flags):
            say(f"  --{name:<27} What it does; see --notAnOption of another program")
        say("=== Help ===\n  --help, -h                  Print this message")

    def device(self) -> None:
        self.info("=== Device Information ===")
        if not self.gpu:
            say("Cuda failure: no CUDA-capable device is detected")
            raise Failure("Cuda failure")
        if self.major != "8":
            self.info("Available Devices: ")
            self.info(f'  Device 0: "{self.gpu}" UUID: GPU-0')
        self.info(f"Selected Device: {self.gpu}")
        self.info(f"Compute Capability: {self.capability}")
        self.info(f"TensorRT version: {self.name}.0")

    # --- building --------------------------------------------------------------------------------

    def build(self, asked: dict[str, str]) -> dict:
        import onnx

        path = Path(asked["onnx"])
        if not path.is_file():
            raise Failure(f"Could not open file {path}", "Failed to parse onnx file")
        model = onnx.load(path)
        opset = next(o.version for o in model.opset_import if not o.domain)
        if opset > LARGEST_OPSET[self.major]:
            raise Failure(f"ModelImporter.cpp: opset {opset} is not supported", "Failed to parse")
        for node in model.graph.node:
            if "unbuildable" in node.name:
                raise Failure(
                    f"Error[10]: Could not find any implementation for node {node.name}.",
                    "Engine could not be created from network",
                )
        kinds = {node.op_type for node in model.graph.node}
        halves = any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
        if "int8" in asked and "calib" in asked:
            self.calibration(Path(asked["calib"]))
        elif "int8" in asked and "QuantizeLinear" not in kinds:
            raise Failure("this test: int8 with made up ranges")
        if "fp16" in asked and halves:
            raise Failure("this test: a file with types for a weakly typed network")
        if self.major == "11" or "stronglyTyped" in asked:
            typed = "float16" if halves else "float32"
        else:
            typed = "weak"
        if "timingCacheFile" in asked:
            cache = Path(asked["timingCacheFile"])
            cache.write_bytes((cache.read_bytes() if cache.is_file() else b"") + b"t")
        engine = {
            "version": self.version,
            "hash": hashlib.sha256(path.read_bytes()).hexdigest(),
            "typed": typed,
            "arguments": self.argv[1:],
            "shapes": sorted(name for name in asked if name.endswith("Shapes")),
            "layers": [name for name, _ in self.layers(model)],
            "inputs": {
                value.name: [
                    TYPES[onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)],
                    [axis.dim_value for axis in value.type.tensor_type.shape.dim],
                ]
                for value in model.graph.input
            },
        }
        data = path.read_bytes()
        Path(asked["saveEngine"]).write_bytes(MAGIC + json.dumps(engine).encode() + b"\n" + data)
        if "exportLayerInfo" in asked:
            Path(asked["exportLayerInfo"]).write_text(self.layer_info(model))
        return {**engine, "model": data}

    def calibration(self, path: Path) -> None:
        if not path.is_file():
            raise Failure("this test: calibration on a random batch")
        head = path.read_text().splitlines()[0]
        if head != f"TRT-{self.version}-EntropyCalibration2":
            raise Failure(f"Calibration table {head} does not match calibrator algorithm type.")

    def layers(self, model) -> list[tuple[str, list[str]]]:
        """Names of layers with the nodes that they do: activations are fused into convolutions."""
        found: list[tuple[str, list[str]]] = [
            ("Reformatting CopyNode for Input Tensor 0 to " + model.graph.node[0].name, [])
        ]
        for node in model.graph.node:
            if node.op_type in {"QuantizeLinear", "DequantizeLinear", "Constant", "Cast"}:
                continue
            if node.op_type in {"Relu", "Clip"} and len(found) > 1:
                found[-1][1].append(node.name)
            else:
                found.append(("", [node.name]))
        return [(name or " + ".join(nodes), nodes) for name, nodes in found]

    def layer_info(self, model) -> str:
        layers = [
            {"Name": name, "LayerType": "Convolution"}
            | (
                {}
                if self.name == "8.5"
                else {"Metadata": "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes)}
            )
            for name, nodes in self.layers(model)
        ]
        ports = [value.name for value in (*model.graph.input, *model.graph.output)]
        if self.major == "11":
            io = [{"Name": name, "IOMode": "Input", "DataType": "Float"} for name in ports]
            return json.dumps({"Layers": layers, "I/O Tensors": io})
        return json.dumps({"Layers": layers, "Bindings": ports})

    # --- running ---------------------------------------------------------------------------------

    def load(self, asked: dict[str, str]) -> dict:
        data = Path(asked["loadEngine"]).read_bytes()
        if not data.startswith(MAGIC):
            raise Failure("Error[1]: Error Code 1: Serialization", "Engine could not be created")
        head, _, model = data.removeprefix(MAGIC).partition(b"\n")
        engine = json.loads(head)
        if engine["version"] != self.version:
            raise Failure("Error[6]: The engine plan file is not compatible with this version")
        return {**engine, "model": model}

    def run(self, engine: dict, asked: dict[str, str]) -> None:
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(engine["model"], options)
        given = dict(word.rsplit(":", 1) for word in asked["loadInputs"].split(","))
        shapes = dict(w.rsplit(":", 1) for w in asked.get("shapes", "").split(",") if w)
        if engine["shapes"] and not shapes:
            raise Failure("Dynamic dimensions required for input")
        feeds = {}
        for name, (kind, static) in engine["inputs"].items():
            axes = [int(axis) for axis in shapes[name].split("x")] if name in shapes else static
            data = np.fromfile(given[name], kind)
            if data.size != np.prod(axes):
                raise Failure(f"Note: Expected: {np.prod(axes)} values but got {data.size}")
            feeds[name] = data.reshape(axes)
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        count = max(1, int(asked.get("iterations", 10)))
        self.info("Starting inference")
        self.info("Warmup completed 7 queries over 200 ms")
        self.report(count, asked)
        if "exportTimes" in asked:
            Path(asked["exportTimes"]).write_text(times(count))
        if "exportProfile" in asked:
            Path(asked["exportProfile"]).write_text(profile(count, engine["layers"]))
        copied = (
            "includeDataTransfers" in asked
            if self.major == "11"
            else ("noDataTransfers" not in asked)
        )
        if "exportOutput" in asked:
            Path(asked["exportOutput"]).write_text(exported(outputs, copied=copied))
        if "dumpRawBindingsToFile" in asked:
            dump(feeds, "input")
            dump(outputs if copied else {n: np.zeros_like(v) for n, v in outputs.items()}, "output")

    def report(self, count: int, asked: dict[str, str]) -> None:
        if "exportProfile" in asked and self.major != "11" and "separateProfileRun" not in asked:
            self.info("The e2e network timing is not reported since it is inaccurate")
            return
        self.info("=== Performance summary ===")
        self.info("Throughput: 234.19 qps")
        for word in ("Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency"):
            self.info(
                f"{word}: min = 2 ms, max = 2.00{count % 10} ms, mean = 2.0005 ms, median = 2.0005 "
                "ms, percentile(90%) = 2.001 ms, percentile(95%) = 2.001 ms, percentile(99%) = "
                "2.001 ms"
            )
        say(f"{STAMP} [W] * GPU compute time is unstable, with coefficient of variance = 43.467%.")


def times(count: int) -> str:
    """The file of --exportTimes: inferences of 2 ms and a little more."""
    rows = []
    for index in range(count):
        start, took = index * 2.5, 2 + index % 3 / 1000
        spans = {"Enq": (0, 0.1), "H2d": (0, 0), "Compute": (0, took), "D2h": (took, took)}
        parts = [
            f'"{edge}{word}Ms" : {start + span[edge == "end"]:.6g}'
            for word, span in spans.items()
            for edge in ("start", "end")
        ]
        parts += [f'"computeMs" : {took:.6g}', '"h2dMs" : 0', '"d2hMs" : 0']
        rows.append("{ " + ", ".join([*parts, f'"latencyMs" : {took:.6g}']) + " }\n")
    return "[\n  " + ", ".join(rows) + "]\n"


def profile(count: int, names: list[str]) -> str:
    """The file of --exportProfile: names are not escaped."""
    rows = [f'[\n  {{ "count" : {count} }}\n']
    for index, name in enumerate(names):
        took = 0.25 + index / 100
        rows.append(
            f', {{ "name" : "{name}", "timeMs" : {took * count:.6g}, "averageMs" : {took:.6g}, '
            f'"medianMs" : {took:.6g}, "percentage" : {100 / len(names):.6g} }}\n'
        )
    return "".join([*rows, "]\n"])


def exported(outputs: dict, *, copied: bool) -> str:
    """The file of --exportOutput: six digits."""
    rows = []
    for index, (name, values) in enumerate(outputs.items()):
        words = ", ".join(f"{v if copied else 0:.6g}" for v in values.ravel())
        sep = ", " if index else "  "
        dims = "x".join(map(str, values.shape))
        rows.append(
            f'{sep}{{ "name" : "{name}"\n  , "dimensions" : "{dims}"\n  , "values" : '
            f"[ {words} ]\n  }}\n"
        )
    return "[\n" + "".join(rows) + "]\n"


def dump(tensors: dict, word: str) -> None:
    """The files of --dumpRawBindingsToFile, in the current folder."""
    for name, values in tensors.items():
        safe = re.sub(r"[^A-Za-z0-9._,-]", "_", name)
        dims = ".".join(map(str, values.shape))
        values.tofile(f"{safe}.{word}.{dims}.{str(values.dtype)[:5].upper()}.raw")

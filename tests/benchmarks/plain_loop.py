"""The loop that anyone would write around a runtime, to compare the agent with.

Runs in the runtime's environment: numpy, the runtime, and nothing of ours but the preprocessing,
loaded by its path. ``python plain_loop.py CONFIG.json``; then a line of JSON on stdin asks
``{"time": seconds}`` or ``{"evaluate": true}``, and a line of JSON on stdout answers.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np

WARM_UP_S = 0.05


def onnxruntime(directory, artifact, threads):
    """Give (set_inputs, run, get_outputs); all copying happens in ``run``."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    names = [binding["runtime"] for binding in artifact["outputs"]]
    state = {}

    def set_inputs(inputs):
        state["inputs"] = inputs

    def run():
        state["outputs"] = session.run(names, state["inputs"])

    return set_inputs, run, lambda: state["outputs"]


def tflite(directory, artifact, threads):
    """Likewise; inputs and outputs are copied by the interpreter's own calls."""
    from ai_edge_litert.interpreter import Interpreter

    (path,) = directory.glob("*.tflite")
    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    places = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
    results = [detail["index"] for detail in interpreter.get_output_details()]
    if len(places) == 1:  # the binding may name a signature's input, of which this is the tensor
        places = {artifact["inputs"][0]["runtime"]: next(iter(places.values()))}

    def set_inputs(inputs):
        for name, array in inputs.items():
            interpreter.set_tensor(places[name], array)

    return set_inputs, interpreter.invoke, lambda: [interpreter.get_tensor(i) for i in results]


def ncnn(directory, artifact, threads):
    """Likewise."""
    import ncnn as runtime

    net = runtime.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    (param,), (weights,) = directory.glob("*.param"), directory.glob("*.bin")
    net.load_param(str(param))
    net.load_model(str(weights))
    names = [binding["runtime"] for binding in artifact["outputs"]]
    state = {}

    def set_inputs(inputs):
        state["inputs"] = [(name, runtime.Mat(array).clone()) for name, array in inputs.items()]

    def run():
        extractor = net.create_extractor()
        for name, mat in state["inputs"]:
            extractor.input(name, mat)
        state["outputs"] = [extractor.extract(name)[1] for name in names]

    return set_inputs, run, lambda: [np.array(output) for output in state["outputs"]]


LOOPS = {"onnxruntime": onnxruntime, "tflite": tflite, "ncnn": ncnn}


def timed(loop, inputs, seconds):
    """Nanoseconds of the inference alone, and with its copies, run after run."""
    set_inputs, run, get_outputs = loop
    clock = time.perf_counter_ns
    end = clock() + WARM_UP_S * 1e9
    while clock() < end:
        set_inputs(inputs)
        run()
        get_outputs()
    infer, total = [], []
    end = clock() + seconds * 1e9
    while clock() < end:
        begun = clock()
        set_inputs(inputs)
        before = clock()
        run()
        after = clock()
        get_outputs()
        total.append(clock() - begun)
        infer.append(after - before)
    return {"infer_ns": infer, "total_ns": total}


def evaluated(loop, binding, images, preprocess, spec):
    """Seconds to preprocess and run all images, one after another."""
    set_inputs, run, get_outputs = loop
    shape, dtype = tuple(binding["shape"]), binding["dtype"]
    begun = time.perf_counter()
    outputs = []
    for image in images:
        array = preprocess.apply(image, spec, shape, dtype)
        set_inputs({binding["runtime"]: in_runtime_form(array, binding)})
        run()
        outputs.append(get_outputs())
    return {"seconds": time.perf_counter() - begun}


def in_runtime_form(array, binding):
    """An ONNX tensor as the runtime takes it."""
    if binding["permutation"]:
        array = array.transpose(binding["permutation"])
    if binding["drop_batch"]:
        array = array[0]
    return np.ascontiguousarray(array, binding["dtype"])


def main():
    """Answer until stdin ends."""
    config = json.loads(Path(sys.argv[1]).read_text())
    spec = importlib.util.spec_from_file_location("preprocess", config["preprocess_file"])
    preprocess = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(preprocess)
    artifact = config["artifact"]
    loop = LOOPS[config["backend"]](Path(config["directory"]), artifact, config["threads"])
    binding = artifact["inputs"][0]
    sample = np.random.default_rng(0).random(binding["shape"], np.float32)
    inputs = {binding["runtime"]: in_runtime_form(sample, binding)}
    for line in sys.stdin:
        asked = json.loads(line)
        if "time" in asked:
            answer = timed(loop, inputs, asked["time"])
        else:
            images = np.load(config["images_file"])
            answer = evaluated(loop, binding, images, preprocess, config["preprocess"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

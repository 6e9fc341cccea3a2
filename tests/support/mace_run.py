"""Stands in for MACE's ``mace_run`` where there is none: its flags, its files, what it prints.

It runs a model by the independent reader of the format (``mace_net``), one inference at a time, and
takes what mace_run takes and nothing else: an unknown flag ends it as gflags does. Where it is told
to misbehave (``--`` flags cannot: a file ``trouble`` beside the model does), it does what the real
one does then.
"""

import os
import re
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import mace_net

FLAGS = {
    **dict.fromkeys(
        (
            "model_name", "input_node", "input_shape", "output_node", "output_shape", "input_file",
            "output_file", "input_dir", "model_data_file", "model_file", "opencl_cache_full_path",
            "opencl_binary_file", "opencl_parameter_file", "accelerator_binary_file",
            "accelerator_storage_file",
        ),
        "",
    ),
    "input_data_type": "float32",
    "output_data_type": "float32",
    "input_data_format": "NHWC",
    "output_data_format": "NHWC",
    "output_dir": "output",
    "round": 1,
    "restart_round": 1,
    "malloc_check_cycle": -1,
    "gpu_perf_hint": 3,
    "gpu_priority_hint": 3,
    "num_threads": -1,
    "cpu_affinity_policy": 1,
    "apu_boost_hint": 100,
    "apu_preference_hint": 1,
    "opencl_cache_reuse_policy": 1,
    "accelerator_cache_policy": 0,
    "benchmark": False,
    "fake_warmup": False,
}  # fmt: skip
VERSION = "stand-in of wherry's tests"


def log(text, level="I", place="mace_run.cc:1"):
    sys.stdout.write(f"{level} {place}] {text}\n")


def parse(arguments):
    found = dict(FLAGS)
    for text in arguments:
        matched = re.fullmatch(r"--?([a-z_]+)(?:=(.*))?", text)
        if not matched or matched[1] not in FLAGS:
            sys.stderr.write(
                f"ERROR: unknown command line flag '{text.lstrip('-').split('=')[0]}'\n"
            )
            sys.exit(1)
        name, value = matched[1], matched[2]
        kind = type(FLAGS[name])
        if kind is bool:
            found[name] = value in {None, "true", "1"}
        else:
            found[name] = kind(value)
    return found


def file_name(text):
    return re.sub(r"[^0-9A-Za-z]", "_", text)


def shapes(text):
    return [tuple(int(size) for size in each.split(",")) for each in text.split(":") if each]


class Side:
    """Inputs or outputs, as the flags say."""

    def __init__(self, flags, side):
        self.names = flags[f"{side}_node"].split(",")
        self.shapes = shapes(flags[f"{side}_shape"])
        self.orders = flags[f"{side}_data_format"].split(",")
        types = flags[f"{side}_data_type"].split(",")
        if any(kind != "float32" for kind in types) or len(types) != len(self.names):
            fatal(f"types of {side}: {types}")
        if len(self.orders) != len(self.names):
            fatal(f"orders of {side}: {self.orders}")


def fatal(text):
    log(text, "F")
    sys.stdout.flush()
    os.abort()


def read(path, shape, order):
    try:
        raw = Path(path).read_bytes()
    except OSError:
        fatal("Open input file failed")
    values = np.frombuffer(raw, np.float32, int(np.prod(shape)))
    values = values.reshape(shape)
    return values.transpose(0, 3, 1, 2) if order == "NHWC" and len(shape) == 4 else values


def write(path, values, shape, order):
    if order == "NHWC" and values.ndim == 4:
        values = values.transpose(0, 2, 3, 1)
    if values.size != int(np.prod(shape)):
        fatal(f"Output size exceeds buffer size: {values.shape} vs {shape}")
    with Path(path).open("wb") as stream:
        stream.write(np.ascontiguousarray(values, np.float32).tobytes())
    log(f"Write output file {path} with size {values.size} done.")


def engine(flags, inputs, outputs):
    begun = time.perf_counter()
    while True:
        try:
            network = mace_net.read(Path(flags["model_file"]), Path(flags["model_data_file"]))
            made = mace_net.Interpreter(network)
            known = {info.name for info in network.inputs}, {info.name for info in network.outputs}
            if known != (set(inputs.names), set(outputs.names)):
                raise mace_net.MaceError(f"names: {known}")
            break
        except (mace_net.MaceError, KeyError) as error:  # the real one tries for ever
            log(f"Create engine runtime error, retry ... errcode: {error}", "E")
            time.sleep(0.01)
    took = (time.perf_counter() - begun) * 1e3
    log(f"Create Mace Engine latency: {took:g} ms")
    log(f"Total init latency: {took:g} ms")
    log("runtimes: [CPU]")
    return made, took


def timed(made, values, rows=None):
    """Milliseconds of an inference; its outputs."""
    begun = time.perf_counter()
    try:
        found = made.run(values, rows)
    except mace_net.MaceError as error:
        fatal(f"Check failed: {error}")
    return (time.perf_counter() - begun) * 1e3, found


def folder(flags, inputs, outputs):
    """One file after the other, as the folder tells them."""
    made, _ = engine(flags, inputs, outputs)
    for name, shape, order in zip(inputs.names, inputs.shapes, inputs.orders, strict=True):
        read(f"{flags['input_file']}_{file_name(name)}", shape, order)
    first, count = file_name(inputs.names[0]), 0
    for entry in [path.name for path in Path(flags["input_dir"]).iterdir()]:
        if not entry.startswith(first):
            continue
        count, ending = count + 1, entry[len(first) :]
        values = {
            name: read(f"{flags['input_dir']}/{file_name(name)}{ending}", shape, order)
            for name, shape, order in zip(inputs.names, inputs.shapes, inputs.orders, strict=True)
        }
        _, found = timed(made, values)
        for name, shape, order in zip(outputs.names, outputs.shapes, outputs.orders, strict=True):
            write(f"{flags['output_dir']}/{file_name(name)}{ending}", found[name], shape, order)
    if not count:
        fatal("Found no input file")


def once(flags, inputs, outputs, capability):
    made, init = engine(flags, inputs, outputs)
    values = {
        name: read(f"{flags['input_file']}_{file_name(name)}", shape, order)
        for name, shape, order in zip(inputs.names, inputs.shapes, inputs.orders, strict=True)
    }
    log("Warm up run")
    warmup, found = timed(made, values)
    log(f"1st warm up run latency: {warmup:g} ms")
    log("Run model")
    rows, total = {}, 0.0
    for _ in range(flags["round"]):
        took, found = timed(made, values, rows)
        total += took
    average = total / flags["round"]
    log(f"Average latency: {average:g} ms")
    for name, shape, order in zip(outputs.names, outputs.shapes, outputs.orders, strict=True):
        write(f"{flags['output_file']}_{file_name(name)}", found[name], shape, order)
    out = sys.stdout.write
    out("========================================================\n")
    out("     capability(CPU)        init      warmup     run_avg\n")
    out("========================================================\n")
    out(f"time {capability:15.3f} {init:11.3f} {warmup:11.3f} {average:11.3f}\n")
    if flags["benchmark"]:
        for title in ("Sort by Run Order", "Sort by Computation Time"):
            table(title, rows)


def table(title, rows):
    header = [
        "Op Type", "Start", "First", "Avg(ms)", "%", "cdf%", "GMACPS", "Stride", "Pad",
        "Filter Shape", "Output Shape", "Dilation", "name",
    ]  # fmt: skip
    total = sum(sum(times) for _, times in rows.values()) or 1.0
    data = [
        [
            kind, "0.000", f"{times[0]:.3f}", f"{sum(times) / len(times):.3f}",
            f"{sum(times) * 100 / total:.3f}", "0.000", "0.000", "", "", "", "[1]", "", name,
        ]
        for name, (kind, times) in rows.items()
    ]  # fmt: skip
    if "Computation" in title:
        data.sort(key=lambda row: -float(row[3]))
        data = data[:10]
    widths = [max(len(row[i]) for row in [header, *data]) for i in range(len(header))]
    length = sum(widths) + 3 * len(header) + 1
    lines = ["-" * length, title.rjust(length // 2 + len(title) // 2), "-" * length]
    for row in [header, *data]:
        cells = "".join(f" {cell.rjust(width)} |" for cell, width in zip(row, widths, strict=True))
        lines.append(f"|{cells}")
        if row is header:
            lines.append("-" * length)
    lines.append("-" * length)
    for line in [*lines, ""]:
        log(line, place="statistics.cc:342")


def main():
    flags = parse(sys.argv[1:])
    if not flags["input_node"] or not flags["output_node"]:
        log("mace_run: MACE run model tool, please specify proper arguments.")
        return
    log(f"model name: {flags['model_name']}")
    log(f"mace version: {VERSION}")
    log(f"num_threads: {flags['num_threads']}")
    # The real one calls this an error where a machine does not tell its clocks.
    log("failed to open cpuinfo_max_freq", "E", "mace/port/linux_base/env.cc:87")
    inputs, outputs = flags["input_node"].split(","), flags["output_node"].split(",")
    sizes = len(shapes(flags["input_shape"])), len(shapes(flags["output_shape"]))
    if (len(inputs), len(outputs)) != sizes:
        log(
            "inputs' names do not match inputs' shapes "
            "or outputs' names do not match outputs' shapes"
        )
        return
    sides = Side(flags, "input"), Side(flags, "output")
    for _ in range(flags["restart_round"]):
        if flags["input_dir"]:
            folder(flags, *sides)
        else:
            once(flags, *sides, 12.345)


if __name__ == "__main__":
    main()

"""A runner whose runtime the owner of the board has installed: the tool ``multiplier``, a number.

It prepares a folder of its own, and times itself where its options say so.
"""

import json
from pathlib import Path

import numpy as np


def prepare(directory, artifact, options, board):
    tool = board["tools"].get("multiplier")
    if tool is None:
        return {
            "unavailable": {
                "message": "this board has no multiplier",
                "where": "tool multiplier",
                "remedy": "Install one.",
            }
        }
    made = Path(board["cache"], "made")
    made.mkdir(exist_ok=True)
    made.joinpath("factor.txt").write_text(Path(tool).read_text())
    return {"directory": str(made), "record": {"tool": tool, "machine": board["machine"]}}


def load(directory, artifact, options):
    factor = np.float32(Path(directory, "factor.txt").read_text())
    return (Timing if options["behaviour"] == "times itself" else Runner)(factor)


class Runner:
    def __init__(self, factor):
        self.factor = factor

    def set_inputs(self, inputs):
        (self.given,) = inputs.values()

    def run(self):
        return 12

    def get_outputs(self):
        return {"out0": self.given * self.factor}

    def peak_memory_bytes(self):
        return 77

    def close(self):
        pass


class Timing(Runner):
    timed_by = "stopwatch"

    def measure(self, inputs, plan):
        assert json.dumps(plan)  # plain values
        self.set_inputs(inputs)
        return {
            "infer_ns": [5000] * plan["min_runs"],
            "warmup_runs": plan["warmup_runs"],
            "steady": True,
            "record": {"convention": "its own"},
        }

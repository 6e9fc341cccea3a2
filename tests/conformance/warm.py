"""Runs tools one after another in one process: ``warm.py``, a JSON line for each on stdin.

A line names ``script``, ``request`` and ``response``; the script's ``main`` is called with the two
paths, as it would call itself, in the folder of the request, where wherry would start it. The
answer on stdout is a line: empty, or the error that escaped.
"""

import contextlib
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

scripts = {}


def script(path):
    if path not in scripts:
        sys.path.insert(0, str(Path(path).parent))  # as Python does for a script
        spec = importlib.util.spec_from_file_location(f"warm_{len(scripts)}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # before execution: annotations look their module up
        spec.loader.exec_module(module)
        scripts[path] = module
    return scripts[path]


def enter(folder):
    """Work in a folder, also with temporary files."""
    os.chdir(folder)
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = folder


def keep_schema():
    """Let onnx2tf compile its schema once, and not for each folder that it writes into."""
    builder = sys.modules.get("onnx2tf.tflite_builder")
    if builder is not None and not hasattr(builder, "kept_schema"):
        with tempfile.TemporaryDirectory() as folder:
            builder.kept_schema = builder.load_schema_module(folder)
        builder.load_schema_module = lambda folder: builder.kept_schema


def main():
    answers = sys.stdout
    for line in sys.stdin:
        asked = json.loads(line)
        said = ""
        enter(str(Path(asked["request"]).parent))
        keep_schema()
        with contextlib.redirect_stdout(sys.stderr):
            try:
                script(asked["script"]).main(asked["request"], asked["response"])
            except Exception as error:  # noqa: BLE001 -- whatever a tool raises is the answer
                said = f"{type(error).__name__}: {error}"
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

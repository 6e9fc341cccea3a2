"""Drives the converter of a user's own MACE checkout: ``convert.py REQUEST RESPONSE``.

The request names ``checkout`` (a folder with MACE's sources), ``python`` (the interpreter of the
environment that MACE's tools want, a program or a path), ``config`` (a deployment file), ``name``
(of the model in it) and ``output`` (a folder, into which ``model.pb`` and ``model.data`` go).
Nothing of this runs unless a manifest asks for it and says where.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = Path("tools", "python", "convert.py")


def main(request_path: str, response_path: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_path).read_text())
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        response = convert(request, Path(folder))
    Path(response_path).write_text(json.dumps(response))


def convert(request: dict[str, str], folder: Path) -> dict[str, object]:
    """Run the converter in the checkout; its version in the response, or ``error``."""
    checkout, name = Path(request["checkout"]), request["name"]
    if not (checkout / SCRIPT).is_file():
        return _error(
            f"there is no {SCRIPT} in {checkout}",
            "Give the folder of MACE's sources as checkout.",
        )
    python = shutil.which(request["python"])
    if python is None:
        return _error(
            f"there is no {request['python']}",
            "Give the interpreter of the environment for MACE's tools as checkout_python.",
        )
    command = [python, str(SCRIPT), f"--config={request['config']}", f"--output={folder}"]
    run = subprocess.run(
        command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    text = run.stdout.decode("utf-8", "replace")
    print(text)
    made = [folder / name / "model" / f"{name}{ending}" for ending in (".pb", ".data")]
    if run.returncode or not all(path.is_file() for path in made):
        lines = [line for line in text.splitlines() if line.strip()]
        return _error(
            f"MACE's converter failed (exit code {run.returncode}); its last line: "
            f"{lines[-1] if lines else 'none'}",
            "Its whole output is in the step's log; converter: own does without it.",
        )
    for path in made:
        shutil.copyfile(path, Path(request["output"], f"model{path.suffix}"))
    return {"checkout": str(checkout), "commit": _commit(checkout)}


def _error(message: str, remedy: str) -> dict[str, object]:
    return {"error": {"message": message, "where": "converter: checkout", "remedy": remedy}}


def _commit(checkout: Path) -> str:
    """Of the checkout; empty where it is none of git's."""
    git = shutil.which("git")
    if git is None:
        return ""
    command = [git, "-C", str(checkout), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Runs on the board as ``python3 -c``: install the agent if it is not there, then become it.

Arguments: the folder of ours on the board, the sha256 of the agent's files, the interpreter that
the agent needs, the agent's own arguments. Says ``wherry-bootstrap have`` or ``wherry-bootstrap
need`` on a line of its own; after ``need`` the files come on stdin: a line with their size, then a
JSON object of path to text.

Every agent starts with this, and nearly every time the files are there: what only `install` needs
is imported there, which leaves a third of the time.
"""

import os
import sys


def start(home: str, digest: str, python: str, *arguments: str) -> None:
    """Become the agent, run by ``python`` (empty: the interpreter that runs this)."""
    if sys.version_info < (3, 8):  # noqa: UP036 -- a board may have an older one than we run on
        sys.exit(f"wherry-bootstrap: Python 3.8 or later is needed, this is {sys.version}")
    # os.path, not pathlib: see above; abspath keeps symbolic links
    root = os.path.abspath(os.path.expanduser(home))  # noqa: PTH100, PTH111
    folder = os.path.join(root, "agent", digest)  # noqa: PTH118
    have = os.path.isdir(folder)  # noqa: PTH112
    os.write(1, b"\nwherry-bootstrap %s\n" % (b"have" if have else b"need"))
    if not have:
        install(folder, digest)
    python = python or sys.executable
    # utf8: a board without a locale must not mangle names. -B: on a full disk Python leaves half a
    # file of bytecode, with which no later start gets on.
    command = [
        python,
        "-I",
        "-B",
        "-X",
        "utf8",
        os.path.join(folder, "wherry-agent"),  # noqa: PTH118
        root,
        *arguments,
    ]
    os.execv(python, command)  # noqa: S606 -- a shell is what must not stand between


def install(place: str, digest: str) -> None:
    """Take the files from stdin and put them at ``place``."""
    import hashlib
    import json
    import shutil
    import tempfile
    from pathlib import Path

    folder = Path(place)
    size = b""
    while not size.endswith(b"\n"):
        size += read(1)
    text = b""
    while len(text) < int(size):
        text += read(int(size) - len(text))
    if hashlib.sha256(text).hexdigest() != digest:
        sys.exit("wherry-bootstrap: the agent's files were damaged on the way")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            sources = json.loads(text.decode())
            for name, source in sources.items():
                path = building / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(source, "utf-8")
            try:
                for name, source in sources.items():
                    keep_bytecode(str(building / name), str(folder / name), source)
            except OSError:  # the disk is full: it starts slower
                for path in list(building.rglob("*.pyc")):
                    path.unlink()
            os.sync()  # a power cut must not leave a folder of empty files
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)  # it is there only where this failed
    except OSError as error:
        if not folder.is_dir():  # else another start was faster
            sys.exit(f"wherry-bootstrap: cannot install the agent: {error}")


def keep_bytecode(path: str, final: str, source: str) -> None:
    """Compile a file of the agent's: small boards take long for it, and would at every start.

    Its form is PEP 552's by hash that is not checked: the folder's name is the sources' hash.
    """
    import importlib.util
    import marshal
    from pathlib import Path

    compiled = Path(importlib.util.cache_from_source(path))
    code = marshal.dumps(compile(source, final, "exec", dont_inherit=True))
    flags = (0b01).to_bytes(4, "little")
    digest = importlib.util.source_hash(source.encode())
    compiled.parent.mkdir(exist_ok=True)
    compiled.write_bytes(importlib.util.MAGIC_NUMBER + flags + digest + code)


def read(size: int) -> bytes:
    """At most ``size`` bytes of stdin, unbuffered: the rest is for the agent."""
    data = os.read(0, size)
    if not data:
        sys.exit("wherry-bootstrap: the host is gone")
    return data


if __name__ == "__main__":
    start(*sys.argv[1:])

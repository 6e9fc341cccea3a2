"""A PostgreSQL server of our own, from Debian's package, on a socket in a folder of the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from wherry.records.database import Records


def find_programs() -> Path | None:
    """The folder of the newest ``initdb`` and ``postgres``; None: there is none."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4])
    )
    if found:
        return found[-1].parent
    there = shutil.which("initdb")
    return Path(there).resolve().parent if there else None


class Server:
    """A server that runs.

    Attributes:
        folder: of its socket.
        port: names the socket.
    """

    def __init__(self, programs: Path, folder: Path, *, durable: bool) -> None:
        self._programs = programs
        self._durable = durable
        self.folder = folder
        self.port = 5432

    def url(self, database: str, user: str = "wherry", more: str = "") -> str:
        """Of one of its databases."""
        return f"postgresql://{user}@/{database}?host={self.folder}&port={self.port}{more}"

    def sql(self, *statements: str, database: str = "postgres") -> str:
        """Run statements as the owner of all; gives what they print."""
        command = [
            str(self._programs / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1",
            "-h", str(self.folder), "-p", str(self.port), "-U", "wherry", "-d", database,
        ]  # fmt: skip
        for statement in statements:
            command += ["-c", statement]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-k {self.folder} -p {self.port} -c listen_addresses=''"
        if not self._durable:
            options += " -c fsync=off -c full_page_writes=off"
        self._control("start", "-w", "-t", "60", "-l", str(self.folder / "log"), "-o", options)

    def stop(self) -> None:
        """Stop it at once; its databases stay."""
        self._control("stop", "-m", "immediate", "-w")

    def _control(self, *words: str) -> None:
        subprocess.run(
            [*as_owner(), str(self._programs / "pg_ctl"), "-D", str(self.folder / "data"), *words],
            check=True,
            stdout=subprocess.DEVNULL,  # else the server would hold our pipe
            stderr=subprocess.DEVNULL,
            cwd="/",
        )


def as_owner() -> list[str]:
    """Before a command: the server refuses to run as root."""
    return ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []


@contextmanager
def running(folder: Path, *, durable: bool = False) -> Iterator[Server]:
    """A fresh server whose files are in ``folder``, an empty one with a short path.

    Args:
        folder: of nobody else.
        durable: it waits for the disk, as servers do by themselves.
    """
    programs = find_programs()
    assert programs is not None
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    folder.chmod(0o755)
    subprocess.run(
        [
            *as_owner(), str(programs / "initdb"), "-D", str(folder / "data"), "-U", "wherry",
            "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync",
        ],
        check=True,
        capture_output=True,
        cwd="/",
    )  # fmt: skip
    server = Server(programs, folder, durable=durable)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@dataclass(frozen=True)
class Both:
    """Two databases of records, which both wait for the disk.

    Attributes:
        folder: of all their files.
        server: PostgreSQL's.
        file: SQLite's.
        url: PostgreSQL's.
        lite: the first, open.
        postgres: the second, open.
    """

    folder: Path
    server: Server
    file: Path
    url: str
    lite: Records
    postgres: Records


@contextmanager
def both_databases(parent: Path | None = None) -> Iterator[Both]:
    """Both, without runs, for a benchmark; ``parent`` is the folder for theirs (else /tmp)."""
    folder = Path(tempfile.mkdtemp(prefix="wherry-pg-", dir=parent or "/tmp"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        folder.chmod(0o755)
        server = stack.enter_context(running(folder / "pg", durable=True))
        server.sql("CREATE DATABASE records")
        file, url = folder / "records.db", server.url("records")
        lite = stack.enter_context(Records.open(f"sqlite:///{file}"))
        yield Both(folder, server, file, url, lite, stack.enter_context(Records.open(url)))

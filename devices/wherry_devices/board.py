"""The host's side of the service agent: the lease, the store, sensors and commands of one board."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import platform
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from wherry.errors import (
    DeviceError,
    DeviceLostError,
    DeviceTakenError,
    WherryError,
)
from wherry.measurement import Sensors
from wherry_devices.agent import frames
from wherry_devices.channel import AgentEnded, AgentSilent, Channel
from wherry_devices.connection import Connection
from wherry_devices.shipping import Pace, Shipment

SILENCE_S = 60.0  # an agent or a host that says nothing for so long is taken for gone
_PINGS = 6  # in that time
_CALL_S = 60.0  # for a question that the board answers at once
_TOOLS_S = 180.0  # for a board's own tools, each of which has a limit
_END_S = 5.0  # for the agent to end what it started
_DISK_S = 600.0  # for a look at all bytes of files
_SHIP_TRIES = 3  # what broke off may be found damaged, and then what had arrived before it
_POLL_S = (0.05, 1.0)  # first and longest pause between two tries for the lease
_log = logging.getLogger(__name__)


class Board:
    """A running service agent.

    Args:
        connection: to the board.
        name: of the device, for errors.
        silence_s: see ``SILENCE_S``.
    """

    def __init__(self, connection: Connection, name: str, silence_s: float = SILENCE_S) -> None:
        self.name = name
        self.token: str | None = None
        self._probed: Mapping[str, Any] | None = None
        self._silence_s = silence_s
        self._calling = threading.Lock()
        self._number = 0
        self._pace = Pace()
        self._closed = threading.Event()
        arguments = ["service", "--lease", connection.lease, "--silence", str(silence_s)]
        self._channel = Channel(connection, "", arguments, silence_s)
        self._heartbeat = threading.Thread(target=self._beat, name="wherry-heartbeat", daemon=True)
        self._runs: weakref.WeakSet[Channel] = weakref.WeakSet()
        try:
            hello = self._hello()
        except BaseException:
            self._channel.close(0)
            raise
        self.pid: int = hello["pid"]
        self.root: str = hello["root"]
        self.lease_file: str = hello["lease"]
        self._heartbeat.start()

    def close(self) -> None:
        """End the agent, and with it the lease and whatever still runs for us on the board."""
        self._closed.set()
        self._channel.close(_END_S)
        self._heartbeat.join()

    def watch(self, run: Channel) -> None:
        """End a run's channel too when the board falls silent: nothing else ends a dead link."""
        self._runs.add(run)

    def call(self, question: str, *, answer_s: float = _CALL_S, **fields: Any) -> Mapping[str, Any]:
        """Ask the agent something and wait for the answer.

        Raises:
            DeviceLostError: the board was lost.
            DeviceError: it refused.
        """
        with self._calling:
            self._number += 1
            self._channel.send({"op": question, "id": self._number, **fields})
            return self._answer(self._number, answer_s)

    def check(self) -> None:
        """Raise `DeviceLostError` if the board was lost."""
        self.call("ping")

    def probe(self) -> Mapping[str, Any]:
        """What the board is, JSON values; of its lease only who holds it, in words.

        It is asked once: what it says is of that time.
        """
        if self._probed is None:
            found = dict(self.call("probe")["board"])
            facts = dict(found["facts"])
            lease = facts.pop("lease")
            facts["in_use_by"] = None if lease is None else describe_holder(lease)
            self._probed = {**found, "facts": facts}
        return self._probed

    def sensors(self) -> Sensors:
        """Read the sensors now."""
        return as_sensors(self.call("sensors")["reading"])

    def tools(
        self, wanted: Mapping[str, Sequence[str]], named: Mapping[str, str]
    ) -> Mapping[str, Any]:
        """The state of the owner's tools; see the agent's ``tools.py``."""
        places = {name: list(usual) for name, usual in wanted.items()}
        state: Mapping[str, Any] = self.call("tools", wanted=places, named=dict(named))["tools"]
        return state

    def lease(
        self, wait_s: float, report: Callable[[str], None], ended: Container[str] = ()
    ) -> None:
        """Take the lease.

        Args:
            wait_s: for whoever holds it, seconds.
            report: told who holds it while we wait.
            ended: tokens of our own sessions that are over. An agent that goes on holding one, as
                it is stopped or has not noticed that the link was lost, is ended.

        Raises:
            DeviceTakenError: it was not free within ``wait_s`` seconds.
        """
        self.token = token = secrets.token_hex(16)
        owner = {
            "owner": _user(),
            "host": platform.node(),
            "process": os.getpid(),
            "token": token,
        }
        begun = time.monotonic()
        deadline = begun + wait_s
        pause, least = _POLL_S[0], ""
        while (holder := (answer := self.call("lease", owner=owner))["holder"]) is not None:
            held_by = describe_holder(holder)
            if time.monotonic() >= deadline:
                raise DeviceTakenError(
                    f"the device is in use by {held_by}; waited {wait_s:g} s",
                    where=self.name,
                    remedy="Try again when it is free, or choose another device.",
                )
            if holder.get("token") in ended and time.monotonic() - begun >= _END_S:
                with contextlib.suppress(DeviceError):  # it is ending: the next answer says more
                    self.unlock(holder["token"])
            if holder.get("token", "") != least:  # say it once for each holder
                least = holder.get("token", "")
                report(f"{self.name} is in use by {held_by}; waiting for it")
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, _POLL_S[1])
        for text in answer["left"]:  # of the clocks that an earlier session had fixed
            report(f"{self.name}: {text}")

    def unlock(self, token: str | None = None) -> Mapping[str, Any] | None:
        """End the agent that holds the lease, if our account may; who it was, None: it was free.

        Args:
            token: of the only holder that is meant; None: whoever holds it.
        """
        ended = self.call("unlock", token=token)["ended"]
        return None if ended is None else dict(ended)

    def clean(self, unused_s: float) -> tuple[list[str], int]:
        """Remove what nobody used for so long: the environments' names, and bytes of files."""
        answer = self.call("clean", answer_s=_DISK_S, unused_s=unused_s)
        return list(answer["environments"]), int(answer["bytes"])

    def end_run(self, pid: int) -> None:
        """End the process of a run; nothing where it has ended, or the board was lost."""
        with contextlib.suppress(WherryError):
            self.call("end_run", answer_s=_END_S, pid=pid)

    def ship(
        self,
        files: Mapping[str, tuple[str, Path]],
        containers: Mapping[str, tuple[str, Path]] | None = None,
    ) -> str:
        """A folder on the board with these files; only what the board lacks is sent.

        Args:
            files: relative POSIX path on the board to (sha256, file on the host).
            containers: sha256 of files that travel packed to (sha256, file) of their containers.
        """
        sources = dict(files.values())
        tree = {name: digest for name, (digest, _) in files.items()}
        for _ in range(_SHIP_TRIES):
            missing = self._missing(sources)
            # of which the board has a part, the rest is sent as it is
            packed = {
                digest: container
                for digest, container in (containers or {}).items()
                if missing.get(digest) == 0
            }
            damaged = self._send(
                {digest: start for digest, start in missing.items() if digest not in packed},
                sources,
            )
            damaged += self._send_packed(packed, sources)
            if not damaged:
                answer = self.call("tree", answer_s=_DISK_S, files=tree)
                if "directory" in answer:
                    return str(answer["directory"])
                damaged = answer["damaged"]
            _log.warning("%s: %d damaged files are sent again", self.name, len(damaged))
        raise DeviceError(
            f"{len(damaged)} files were damaged on the board's disk, also after they were sent "
            "again",
            where=self.name,
            remedy="Check the board's disk or SD card.",
        )

    def _missing(self, sources: Mapping[str, Path]) -> Mapping[str, int]:
        """sha256 of those that the board lacks, and from which byte on."""
        hashes = sorted(sources)
        answer = self.call("missing", answer_s=_DISK_S, hashes=hashes)
        return dict(answer["missing"])

    def _send(self, missing: Mapping[str, int], sources: Mapping[str, Path]) -> list[str]:
        """See `wherry_devices.shipping.Shipment.send`."""
        with self._calling:  # the answers come while the next chunks are sent
            return Shipment(self._put, self._put_answer, self._pace).send(missing, sources)

    def _send_packed(
        self, packed: Mapping[str, tuple[str, Path]], sources: Mapping[str, Path]
    ) -> list[str]:
        """Send containers and have them unpacked; those that were damaged on the board's disk."""
        inner = dict(packed.values())
        damaged = self._send(self._missing(inner), inner) if inner else []
        for digest, (container, _) in packed.items():
            if container not in damaged:
                size = sources[digest].stat().st_size
                answer = self.call(
                    "unpack", answer_s=_DISK_S, container=container, sha256=digest, size=size
                )
                damaged += answer.get("damaged", [])
        return damaged

    def execute(
        self, argv: Sequence[str], *, limit_s: float, environment: Mapping[str, str] | None = None
    ) -> Mapping[str, Any]:
        """Run a command on the board: its ``status``, ``timed_out``, and ``output``'s end."""
        return self.call(
            "execute",
            answer_s=limit_s + _CALL_S,
            argv=list(argv),
            limit_s=limit_s,
            environment=dict(environment or {}),
        )

    def stabilise(self, power_mode: int | None) -> tuple[list[str], list[str]]:
        """Fix the board's clocks: what was set, and what could not be, sentences."""
        answer = self.call("stabilise", answer_s=_TOOLS_S, power_mode=power_mode)
        return list(answer["done"]), list(answer["problems"])

    def restore(self) -> list[str]:
        """Give the board's clocks back; what could not be, sentences."""
        return list(self.call("restore", answer_s=_TOOLS_S)["problems"])

    def _put(self, number: int | None, header: Mapping[str, Any], data: frames.Tensor) -> int:
        """Send a chunk of a file; the number of the answers that will come."""
        if number is None:
            self._number += 1
            number = self._number
        self._channel.send({"op": "put", "id": number, **header}, [data])
        return number

    def _put_answer(self, number: int) -> Mapping[str, Any]:
        return self._answer(number, _CALL_S)

    def _answer(self, number: int, limit_s: float) -> Mapping[str, Any]:
        deadline = time.monotonic() + limit_s
        while True:
            header = self._receive(max(0.0, deadline - time.monotonic())).header
            if header.get("id") != number:
                continue  # a pong, or a late answer to a question that we gave up
            if "error" in header:
                raise DeviceError(
                    f"the board refused: {header['error']}",
                    where=self.name,
                    remedy="Check the board's disk and permissions.",
                )
            return header

    def _hello(self) -> Mapping[str, Any]:
        """What the agent says first; where it cannot start, no further try will help."""
        try:
            return self._receive(_CALL_S).header
        except DeviceLostError as error:
            ended = error.__cause__
            if not isinstance(ended, AgentEnded) or not ended.status or ended.status < 0:
                raise
            raise DeviceError(
                f"the agent cannot start: {describe_end(ended)}",
                where=self.name,
                remedy="The board needs a Python 3.8 or later, and room in our folder there.",
            ) from ended

    def _receive(self, limit_s: float) -> frames.Frame:
        try:
            return self._channel.receive(limit_s)
        except AgentEnded as ended:
            raise DeviceLostError(
                f"the device was lost: {describe_end(ended)}",
                where=self.name,
                remedy="Check that the board is up, and run again.",
            ) from ended
        except AgentSilent as silent:
            raise DeviceLostError(
                f"the device does not answer: {silent}",
                where=self.name,
                remedy="Check the board's load and the connection, and run again.",
            ) from silent

    def _beat(self) -> None:
        """The thread that keeps the agent alive, and ends it where it no longer answers."""
        while not self._closed.wait(self._silence_s / _PINGS):
            if self._channel.silent_s > self._silence_s:
                for channel in (self._channel, *self._runs):
                    channel.kill(f"it was silent for {self._silence_s:g} s")
                return
            self._channel.ping({"op": "ping"})


def as_sensors(reading: Mapping[str, Any]) -> Sensors:
    """An agent's reading."""
    return Sensors(float(reading["time_s"]), dict(reading["values"]))


def describe_holder(holder: Mapping[str, Any]) -> str:
    """Who holds a lease, and for how long, for people."""
    if not holder:
        return "someone who did not say who"
    text = f"{holder.get('owner')}@{holder.get('host')} (process {holder.get('process')})"
    held = holder.get("held_s")
    return f"{text} for {held:.0f} s" if held is not None else text


def describe_end(ended: AgentEnded) -> str:
    """Why an agent is gone, for people."""
    text = ended.reason or "the agent ended"
    if ended.status:
        text += f" with status {ended.status}"
    return f"{text}; it last said: {ended.stderr}" if ended.stderr else text


def _user() -> str:
    with contextlib.suppress(KeyError, OSError):  # a user id without a name, as in containers
        return getpass.getuser()
    return str(os.getuid())

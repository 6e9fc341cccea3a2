"""``wherry bundle verify``: every byte of an archive, and then the network itself on a board.

Nothing that stands in an archive is executed: the runner is the installed plugin's, which the
archive's has to be like, to the byte, or the report says so.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from wherry.artifact import Artifact, hash_file
from wherry.bench import Bench, known_name
from wherry.bundle import ARTIFACT, BUNDLE_VERSION, LOCK, RUNNER, SAMPLES, archive, signing
from wherry.errors import BundleError, ParityError, StoreError, UsageError
from wherry.measurement import MeasureSettings
from wherry.npy import map_array
from wherry.parity import Parity, check, compare
from wherry.stats import summarise
from wherry.target import ParityThreshold, Target

if TYPE_CHECKING:
    from wherry.device import HostedRunner, RawTiming
    from wherry.host import Host
    from wherry.target import Backend

_TIMED = MeasureSettings(rounds=1, warmup_s=0.2, duration_s=0.5)
_AGAIN = "Get the archive again from whoever made it."


class _Sample(BaseModel):
    """A sample of a lock: ONNX name to file."""

    model_config = ConfigDict(frozen=True)

    inputs: dict[str, str]
    reference: dict[str, str]
    outputs: dict[str, str]


class _Samples(BaseModel):
    model_config = ConfigDict(frozen=True)

    ready: bool
    entries: list[_Sample]


class _Target(BaseModel):
    model_config = ConfigDict(frozen=True)

    backend: str
    precision: str
    options: dict[str, Any]


class _Threshold(BaseModel):
    model_config = ConfigDict(frozen=True)

    sqnr_db: float
    cosine: float


class _Latency(BaseModel):
    model_config = ConfigDict(frozen=True)

    median_ms: float | None


class _Measured(BaseModel):
    model_config = ConfigDict(frozen=True)

    latency: _Latency | None


class _Lock(BaseModel):
    """What is needed of ``bundle.json`` here."""

    model_config = ConfigDict(frozen=True)

    bundle: int
    name: str
    result: str
    target: _Target
    artifact: dict[str, Any]
    preprocess: dict[str, dict[str, Any]]
    thresholds: _Threshold
    samples: _Samples
    measured: _Measured


@dataclass(frozen=True)
class _Opened:
    """An archive whose bytes are as its contents say, unpacked."""

    folder: Path
    lock: _Lock
    files: Mapping[str, str]
    artifact: Artifact


def verify(
    path: Path,
    *,
    device: str,
    public_key: str | None,
    most_bytes: int,
    host: Host | None,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Check an archive, and run it.

    Args:
        path: the archive.
        device: on which it is run.
        public_key: see `wherry.bundle.signing.read_public_key`; None: no signature is asked for.
        most_bytes: how much may be unpacked.
        host: the loaded plugins; None: load them.
        tell: told what is being done.

    Returns:
        JSON values, as ``--json`` prints them (``docs/bundle.md``); ``failed`` says why it does
        not hold, or is null.

    Raises:
        BundleError: it is no bundle, or not as it was made; the file is named.
        UsageError: there is no such file, device or key.
        WherryError: it could not be run.
    """
    signature = _signature(path, public_key)
    bench = Bench.open(host)
    (spec,) = bench.specs([device])
    with _opened(path, most_bytes, tell) as opened:
        target, backend = _target(opened, device, bench.host)
        board = bench.device(spec)
        tell(f"running it on {device}")
        specs = {} if opened.lock.samples.ready else opened.lock.preprocess
        with (
            board.session(report=tell) as session,
            session.host(opened.artifact, target, backend, specs) as runner,
        ):
            info = session.info
            parities = _compared(opened, runner)
            timed = runner.time(next(_arrays(opened, "inputs")), _TIMED)
        return {
            "file": str(path),
            "sha256": hash_file(path),
            "name": opened.lock.name,
            "result": opened.lock.result,
            "files": len(opened.files),
            "signature": signature,
            "runner": _runner(opened, backend),
            "device": {
                "name": device,
                **{key: getattr(info, key) for key in ("model", "cpu", "machine", "emulated")},
            },
            "samples": len(opened.lock.samples.entries),
            **{kind: None if p is None else asdict(p) for kind, p in parities.items()},
            "thresholds": opened.lock.thresholds.model_dump(),
            "latency": _latency(timed, opened.lock.measured.latency),
            "failed": _failed(opened.lock, parities),
        }


def _signature(path: Path, public_key: str | None) -> dict[str, Any]:
    file = path.with_name(path.name + signing.SUFFIX)
    if public_key is None:
        return {"state": "not checked" if file.is_file() else "none", "comment": None}
    key = signing.read_public_key(public_key)
    if not path.is_file():
        raise UsageError("there is no such file", where=str(path), remedy="Correct the path.")
    return {"state": f"valid, by {key.name}", "comment": signing.check(path, file, key)}


@contextmanager
def _opened(path: Path, most_bytes: int, tell: Callable[[str], None]) -> Iterator[_Opened]:
    with tempfile.TemporaryDirectory(prefix="wherry-bundle-") as scratch:
        folder = Path(scratch)
        tell("checking its files")
        files = archive.unpack(path, folder, most_bytes=most_bytes)
        try:
            values = json.loads((folder / LOCK).read_text(encoding="utf-8"))
            lock = _Lock.model_validate(values)
            described = {**lock.artifact, "packing": None}
            digest = described.pop("digest", None)
            artifact = Artifact.from_json(described, folder / ARTIFACT)
        except (OSError, ValueError, ValidationError, StoreError, RecursionError) as error:
            raise BundleError(
                f"{LOCK} does not say what a bundle has to: {error}", where=str(path), remedy=_AGAIN
            ) from error
        if lock.bundle != BUNDLE_VERSION:
            raise BundleError(f"{LOCK} is of version {lock.bundle}", where=str(path))
        told = {name: files.get(f"{ARTIFACT}/{name}") for name in artifact.files}
        for name, found in told.items():
            if found != artifact.files[name]:
                raise BundleError(
                    f"{ARTIFACT}/{name} is not the file that {LOCK} describes",
                    where=str(path),
                    remedy=_AGAIN,
                )
        if digest != f"sha256:{artifact.digest}":
            raise BundleError(
                f"{LOCK} describes another artifact than it names", where=str(path), remedy=_AGAIN
            )
        if not lock.samples.entries:
            raise BundleError("it has no samples to run", where=str(path), remedy=_AGAIN)
        if not all(each.reference for each in lock.samples.entries):
            raise BundleError(
                "a sample has no outputs to compare with", where=str(path), remedy=_AGAIN
            )
        yield _Opened(folder, lock, files, artifact)


def _target(opened: _Opened, device: str, host: Host) -> tuple[Target, Backend]:
    """As the lock says; raises `BundleError` where the backend takes no such options."""
    about = opened.lock.target
    backend = host.backends[known_name(about.backend, host.backends, "backend")]
    try:
        options = backend.options.model_validate(about.options)
    except ValidationError as error:
        raise BundleError(
            f"the installed {about.backend} does not take the bundle's options: {error}",
            remedy="Use the wherry that made it.",
        ) from error
    return Target(about.backend, about.precision, device, options), backend


def _runner(opened: _Opened, backend: Backend) -> str:
    """Whether the archive's runner is the one that was run."""
    for path in backend.board_code:
        if opened.files.get(f"{RUNNER}/{path.name}") != hash_file(path):
            return f"the bundle's {path.name} is of another version; the installed one was run"
    return "the same as the installed one, which was run"


def _arrays(opened: _Opened, kind: str) -> Iterator[dict[str, np.ndarray]]:
    """The samples' arrays, mapped: a header may claim any size."""
    for entry in opened.lock.samples.entries:
        files: Mapping[str, str] = getattr(entry, kind)
        yield {name: _array(opened, file) for name, file in files.items()}


def _array(opened: _Opened, file: str) -> np.ndarray:
    name = f"{SAMPLES}/{file}"
    if name not in opened.files:
        raise BundleError(f"{LOCK} names {name}, which is not there", remedy=_AGAIN)
    try:
        return map_array(opened.folder / name)
    except (ValueError, OSError, MemoryError) as error:
        raise BundleError(f"{name} is no array of numbers: {error}", remedy=_AGAIN) from error


def _compared(opened: _Opened, runner: HostedRunner) -> dict[str, Parity | None]:
    """What came out against the model in fp32, and against what came out where it was bundled."""
    outputs = list(runner.infer(_arrays(opened, "inputs")))
    found: dict[str, Parity | None] = {}
    for kind, key in (("parity", "reference"), ("agreement", "outputs")):
        expected = list(_arrays(opened, key))
        found[kind] = compare(outputs, expected) if all(expected) else None
    return found


def _failed(lock: _Lock, parities: Mapping[str, Parity | None]) -> str | None:
    threshold = ParityThreshold(**lock.thresholds.model_dump())
    words = {"parity": "against the model in fp32", "agreement": "against the bundle's own outputs"}
    for kind, parity in parities.items():
        if parity is None:
            continue
        try:
            check(parity, threshold, words[kind], precision=lock.target.precision)
        except ParityError as error:
            return str(error)
    return None


def _latency(timed: RawTiming, measured: _Latency | None) -> dict[str, Any]:
    summary = summarise(timed.infer_ns, [len(timed.infer_ns)], seed=0)
    return {
        "median_ms": summary.median_ms,
        "samples": summary.samples,
        "timed_by": timed.timed_by,
        "steady": timed.steady,
        "measured_ms": None if measured is None else measured.median_ms,
    }

"""What comparing needs of a run: small, checked, and the form in which a baseline lives in git."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wherry.entry import canonical
from wherry.errors import StoreError, UsageError
from wherry.reports import RunRecord
from wherry.reports.words import one_line

VERSION = 1
"""Of the baseline file's form."""

MOST_BYTES = 16 << 20
"""Of a baseline file: 10,000 targets of 5 rounds."""

DIGITS = 7
"""Significant digits of what was measured: a nanosecond in ten milliseconds."""

MOST_TEXT = 4096
Text = Annotated[str, Field(max_length=MOST_TEXT)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Timing(_Part):
    """A target's latency.

    Attributes:
        median_ms: of all samples.
        round_ms: [rounds], the median of each; empty where the record does not tell the rounds.
        timed_by: what held the clock.
        convention: see `wherry.measurement.CONVENTION`.
    """

    median_ms: Positive
    round_ms: Annotated[list[Positive], Field(max_length=1000)]
    timed_by: Text
    clean: bool
    emulated: bool
    convention: Count


class Board(_Part):
    """What a target ran on; empty where it is not known.

    Attributes:
        name: of its type.
        fingerprint: see `wherry.device.BoardInfo`.
        identity: likewise.
        system: operating system and kernel, for people.
        clocks: governors by clock, the power mode, and whether wherry fixed them.
    """

    name: Text
    fingerprint: Text
    identity: Text
    system: Text
    clocks: dict[Text, Text]


class Score(_Part):
    """A metric's value, and what made it; see the report's ``metrics``."""

    value: Finite | None
    better: Literal["higher", "lower"]
    unit: Text
    against: Text
    definition: Text


class TargetSnapshot(_Part):
    """One result of a run, with all that decides whether it is like another.

    Attributes:
        name: of the result, for people.
        options: all of the backend's.
        run_id: the run that it is of.
        measured_in: the run that measured it; empty where the record does not tell.
        turns: what it has in common with what was measured in turns with it; empty without.
        fp32: name of its peer in fp32, in the same run; empty without.
        error: the first line, where it was not measured; then nothing else is known.
        model: digest of the original.
        data: digest of the evaluation data; empty without.
        evaluated: samples that the metrics are over.
        energy_by: how the energy was found.
        runtime: names and versions, for people.
    """

    name: Text
    variant: Text
    backend: Text
    precision: Text
    device: Text
    options: dict[Text, Any]
    run_id: Text
    measured_in: Text
    turns: Text = ""
    fp32: Text
    error: Text | None = None
    timing: Timing | None = None
    board: Board
    model: Text
    data: Text
    evaluated: Count
    scores: dict[Text, Score]
    size_bytes: Count | None
    peak_memory_bytes: Count | None
    energy_mj: Amount | None
    energy_by: Text
    artifact: Text
    runtime: Text


class Snapshot(_Part):
    """A run, or targets of several runs, as one side of a comparison.

    Attributes:
        source: for people: what was asked for, and what it is.
        run_id: of the run; empty where the targets are of several.
        manifest: the file's name.
    """

    source: Text
    run_id: Text
    tag: Text | None
    wherry: Text
    manifest: Text
    finished: Text
    targets: Annotated[list[TargetSnapshot], Field(max_length=10_000)]


def snapshot(record: RunRecord) -> Snapshot:
    """What a run's record says."""
    values = record.values
    samples = record.samples or ({},) * len(values["results"])
    tag = f" ({values['tag']})" if values["tag"] else ""
    return Snapshot(
        source=plain(f"run {values['run_id']}{tag}"),
        run_id=values["run_id"],
        tag=None if values["tag"] is None else plain(values["tag"]),
        wherry=values["wherry"],
        manifest=plain(PurePath(values["manifest"]).name),
        finished=values["finished"],
        targets=[
            _target(result, arrays, values)
            for result, arrays in zip(values["results"], samples, strict=True)
        ],
    )


def _target(
    result: Mapping[str, Any], arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]
) -> TargetSnapshot:
    target, extra = result["target"], result["extra"]
    measured = result["status"] == "ok"
    energy = extra.get("energy") or {}
    return TargetSnapshot(
        name=plain(result["name"]),
        variant=plain(result["variant"]),
        backend=target["backend"],
        precision=target["precision"],
        device=target["device"],
        options=target["options"],
        run_id=values["run_id"],
        measured_in=result.get("measured_in") or "",
        turns=_turns(result, values),
        fp32=plain(result.get("fp32") or ""),
        error=None if measured else plain((result["error"].splitlines() or [""])[0]),
        timing=_timing(result["latency"], arrays, values) if measured else None,
        board=_board(result, values),
        model=(values["model"] or {}).get("digest", ""),
        data=values["data"].get("evaluation", {}).get("digest", ""),
        evaluated=result["evaluated"],
        scores={
            metric["name"]: Score(
                value=_rounded(result["metrics"].get(metric["name"]), 15),
                better=metric["better"],
                unit=metric["unit"],
                # runs that were kept before these were told are like nothing but themselves
                against=metric.get("against", ""),
                definition=metric.get("definition", ""),
            )
            for metric in values["metrics"]
            if measured
        },
        size_bytes=result["size_bytes"],
        peak_memory_bytes=result["peak_memory_bytes"],
        energy_mj=_rounded(result["energy_mj"]),
        energy_by=plain(" ".join(str(energy.get(key, "")) for key in ("method", "source"))),
        artifact=result["artifact"] or "",
        runtime=_words(extra.get("runtime")),
    )


def _turns(result: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """What was taken from another run was not measured in this one's turns."""
    own = result.get("measured_in") == values["run_id"]
    return plain(values.get("turns") or "") if own else ""


def _timing(
    latency: Mapping[str, Any], arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]
) -> Timing | None:
    if not latency["median_ms"]:  # a clock that is too coarse for this network
        return None
    infer, sizes = arrays.get("infer_ns"), latency.get("round_sizes")
    medians: list[float] = []
    if infer is not None and sizes and sum(sizes) == len(infer):
        rounds = np.split(np.asarray(infer, np.float64) / 1e6, np.cumsum(sizes)[:-1])
        medians = [float(np.median(one)) for one in rounds if len(one)]
    return Timing(
        median_ms=_rounded(latency["median_ms"]),
        round_ms=[_rounded(value) for value in medians if value > 0],
        timed_by=latency["timed_by"],
        clean=latency["clean"],
        emulated=latency["emulated"],
        convention=values["measure"].get("convention", 1),  # the first had no number
    )


def _board(result: Mapping[str, Any], values: Mapping[str, Any]) -> Board:
    info = values["devices"].get(result["target"]["device"], {})
    return Board(
        name=plain(info.get("model") or info.get("cpu") or ""),
        fingerprint=info.get("fingerprint", ""),
        identity=info.get("identity", ""),
        system=plain(f"{info.get('system', '')}, {info.get('kernel', '')}".strip(", ")),
        clocks=_clocks(result, values["measure"]),
    )


def _clocks(result: Mapping[str, Any], measure: Mapping[str, Any]) -> dict[str, str]:
    """What the governors were, and the power mode, in all readings; and what wherry set."""
    seen: dict[str, set[str]] = {}
    for reading in result["sensors"]:
        for name, value in reading["values"].items():
            if name.startswith("governor.") or name == "power_mode":
                seen.setdefault(name, set()).add(str(value))
    clocks = {plain(name): plain(", ".join(sorted(found))) for name, found in seen.items()}
    return {**clocks, "stabilised": "yes" if measure["stabilise"] else "no"}


def _rounded(value: Any, digits: int = DIGITS) -> Any:
    return None if value is None else float(f"{value:.{digits}g}")


def plain(text: str) -> str:
    """Any text on one line, of a bounded length, without what no file can hold."""
    return one_line(text)[:MOST_TEXT]


def _words(runtime: Any) -> str:
    """``onnxruntime 1.20``."""
    if isinstance(runtime, Mapping):
        return plain(", ".join(f"{name} {version}" for name, version in sorted(runtime.items())))
    return "" if runtime is None else plain(str(runtime))


def render(record: RunRecord) -> str:
    """The baseline file: JSON with sorted keys, a line a value, what was measured only.

    The checksum tells a file that was edited or badly merged; it is no signature.

    Raises:
        UsageError: nothing was measured.
    """
    whole = snapshot(record)
    kept = [target for target in whole.targets if target.error is None]
    kept.sort(key=lambda target: target.name)
    if not kept:
        raise UsageError(
            f"nothing was measured in {whole.source}: it is no baseline",
            remedy="Name a run that has results.",
        )
    body = whole.model_copy(update={"targets": kept}).model_dump(mode="json")
    del body["source"]  # what is true of the file now need not be so later
    form = {"wherry_baseline": VERSION, "sha256": _checksum(body), **body}
    return json.dumps(form, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(body)).hexdigest()


def read_baseline(path: Path) -> Snapshot:
    """A baseline file; raises `StoreError`, with its name, where it is none or not whole."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, f"it cannot be read: {error.strerror}") from error
    if len(data) > MOST_BYTES:
        raise _unreadable(path, f"it is larger than {MOST_BYTES >> 20} MiB")
    try:
        form = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"it is no JSON: {error}") from error
    if not isinstance(form, dict) or "wherry_baseline" not in form:
        raise _unreadable(path, "it is no baseline of wherry's")
    version, checksum = form.pop("wherry_baseline"), form.pop("sha256", None)
    if version != VERSION:
        raise _unreadable(path, f"its version is {version!r}, and this wherry reads {VERSION}")
    try:
        whole = checksum == _checksum(form)
    except (ValueError, RecursionError):  # NaN, which json takes
        whole = False
    if not whole:
        raise _unreadable(path, "its checksum is not that of its content: it was edited or merged")
    try:
        return Snapshot.model_validate({**form, "source": plain(f"baseline {path.name}")})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _unreadable(path, f"{place}: {first['msg']}") from error


def _unreadable(path: Path, why: str) -> StoreError:
    return StoreError(
        f"the baseline cannot be used: {why}",
        where=str(path),
        remedy="Write it anew: `wherry report RUN --output NAME.baseline.json`.",
    )

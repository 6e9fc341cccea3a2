"""What ``wherry debug layers`` found: as JSON values, and on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.debug import bisect as bisection
from wherry.debug import layers
from wherry.debug.case import Case, Choice, opened
from wherry.errors import UsageError
from wherry.stages.retry import Tries

if TYPE_CHECKING:
    from rich.table import Table

    from wherry.console import Console
    from wherry.engine.local import Event
    from wherry.host import Host
    from wherry.plan import Plan
    from wherry.stages.services import Services

SHOWN = 25
"""Layers in the table, unless all are asked for."""

WIDE = 130
"""Columns of a terminal from which on the whole table is shown."""

UNFOLDED = 10_000
"""Columns that no table fills."""

OnEvent = Callable[["Event"], None] | None


def _no_display(_plan: Plan) -> AbstractContextManager[OnEvent]:
    return nullcontext()


@dataclass(frozen=True)
class Asked:
    """What is to be found out.

    Attributes:
        samples: None: `wherry.debug.layers.SAMPLES`, `wherry.debug.bisect.SAMPLES`.
        bisect: search for the least set of nodes, too.
        want: its accuracy, ``METRIC=VALUE``; None: see `wherry.debug.bisect.wanted`.
    """

    samples: int | None = None
    bisect: bool = False
    want: str | None = None


def debug(
    manifest: Path,
    choice: Choice,
    asked: Asked,
    *,
    sets: Sequence[str] = (),
    host: Host | None = None,
    on_plan: Callable[[Plan], AbstractContextManager[OnEvent]] = _no_display,
    progress: Callable[[str], None] = lambda _text: None,
    tell: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Find out, and return JSON values; see ``docs/debugging.md``.

    Args:
        manifest: the file.
        choice: of the row.
        asked: what is to be found out.
        sets: overrides as ``key.path=value``.
        host: the loaded plugins; None: load them.
        on_plan: see `wherry.debug.case.opened`.
        progress: told what is being done, again and again.
        tell: told what the user has to know.

    Raises:
        UsageError: no row is like that, several are, or what is wanted cannot be.
        UnsupportedError: the backend cannot do this.
        WherryError: a step, the device or the runner failed.
    """
    if asked.want is not None and not asked.bisect:
        raise UsageError("--want is what --bisect searches for", remedy="Give --bisect too.")

    def check(services: Services) -> None:
        bisection.wanted(services, asked.want)

    with opened(
        manifest, choice, sets=sets, host=host, check=check, on_plan=on_plan, tell=tell
    ) as case:
        services = case.services
        services.notify = lambda _step, text: progress(text)
        metric, make = bisection.wanted(services, asked.want)
        tries = Tries(services, "debug", case.target.device)

        def on_the_board() -> dict[str, Any]:
            with services.session(case.target.device, report=tell) as session:
                few = min(asked.samples or layers.SAMPLES, layers.SAMPLES)
                samples = few if asked.bisect else asked.samples or layers.SAMPLES
                report = layers.look(case, session, samples, progress)
                tries.success()
                found = None
                if asked.bisect:
                    count = asked.samples or bisection.SAMPLES
                    scorer = bisection.Scorer(case, session, count, metric, progress)
                    want = make(scorer.original)
                    found = bisection.bisect(
                        case, report.units, scorer, want, progress, done=tries.success
                    )
                return _values(manifest, case, report, found)

        return tries.keep_on(on_the_board)


def _values(
    manifest: Path,
    case: Case,
    report: layers.LayerReport,
    found: bisection.Bisection | None,
) -> dict[str, Any]:
    target = case.target
    rows = (*report.ranked, *report.others)
    own = [_entry(keep) for keep in target.options.keep_fp32]
    blamed = list(report.blamed) if target.precision in case.backend.mixed else []
    keep = blamed
    if found is not None:
        keep = [] if found.found is None else list(found.found.nodes)
    return {
        "manifest": str(manifest),
        "variant": case.variant,
        "target": {
            "backend": target.backend,
            "precision": target.precision,
            "device": target.device,
            "options": target.options.model_dump(mode="json"),
        },
        "name": f"{case.variant} on {target.describe()}",
        "data": case.role,
        "samples": report.samples,
        "effect_samples": report.effect_samples,
        "outputs": {
            name: {"sqnr_db": ratio, "cosine": cosine}
            for name, (ratio, cosine) in report.outputs.items()
        },
        "predicted_sqnr_db": report.predicted_db,
        "layers": [row.to_json() for row in rows],
        "mixed": target.precision in case.backend.mixed,
        "keep_fp32": [*own, *keep] if keep else [],
        "bisect": None if found is None else found.to_json(),
        "warnings": [*case.warnings, *report.warnings],
    }


def _entry(keep: Any) -> Any:
    return keep if isinstance(keep, str) else keep.model_dump()


# --- on a terminal -------------------------------------------------------------------------------


def show(values: Mapping[str, Any], console: Console, *, everything: bool = False) -> None:
    """Print the layers, what is to blame, and what to paste."""
    from wherry.console import Console

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    say(
        f"{values['name']}: {values['samples']} samples of the {values['data']} data, "
        f"against the reference in fp32"
    )
    if console.is_terminal:
        console.print(_table(values, everything, console.width))
    else:  # into a file it goes whole
        Console(file=console.file, width=UNFOLDED).print(_table(values, everything, WIDE))
    rows = values["layers"]
    figured = [row for row in rows if row["tensor"] is not None]
    if not everything and len(figured) > SHOWN:
        say(f"{len(figured) - SHOWN} more layers do less: --all or --json shows them")
    if silent := [row for row in rows if row["tensor"] is None]:
        say("without a tensor to compare: " + "; ".join(map(_silent, silent[:12])) + (
            f"; and {len(silent) - 12} more" if len(silent) > 12 else ""))  # fmt: skip
    for name, output in values["outputs"].items():
        say(
            f"output {name}: SQNR {output['sqnr_db']:.1f} dB, cosine {output['cosine']:.5f}; "
            f"the layers' effects add up to {values['predicted_sqnr_db']:.1f} dB"
        )
    for text in values["warnings"]:
        say(f"note: {text}", "yellow")
    if values["bisect"] is not None:
        _show_search(values["bisect"], say)
    _show_keep(values, say)


def _silent(row: Mapping[str, Any]) -> str:
    nodes = ", ".join(row["own_nodes"])
    return f"{row['layer']} ({row['type']})" + (f" does {nodes}" if nodes else "")


def _table(values: Mapping[str, Any], everything: bool, width: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    cells: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "ONNX nodes": lambda row: " + ".join(row["nodes"]),
        "layer": lambda row: f"{row['type']} {row['precision']}",
        "share": lambda row: f"{row['share']:.1%}",
        "effect dB": lambda row: f"{row['effect_db']:.1f}",
        "own dB": lambda row: f"{row['own']['sqnr_db']:.1f}",
        "so far dB": lambda row: f"{row['accumulated']['sqnr_db']:.1f}",
        "cosine": lambda row: f"{row['accumulated']['cosine']:.4f}",
        "reference": lambda row: _range(row["reference_range"]),
        "deployed": lambda row: _range(row["deployed_range"]),
        "clipped": lambda row: "" if row["saturation"] is None else f"{row['saturation']:.2%}",
        "ms": lambda row: "" if row["median_ms"] is None else f"{row['median_ms']:.3f}",
    }
    if not any(row["median_ms"] is not None for row in values["layers"]):
        del cells["ms"]
    if width < WIDE:
        for head in ("layer", "effect dB", "reference", "deployed"):
            del cells[head]
    table = Table()
    for head in cells:
        words = head in {"ONNX nodes", "layer"}
        table.add_column(
            head, justify="left" if words else "right", overflow="fold", no_wrap=not words
        )
    rows = [row for row in values["layers"] if row["tensor"] is not None]
    for row in rows if everything else rows[:SHOWN]:
        table.add_row(*(Text(cell(row)) for cell in cells.values()))
    return table


def _range(ends: Sequence[float] | None) -> str:
    return "not finite" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}"


def _show_search(found: Mapping[str, Any], say: Callable[..., None]) -> None:
    want, metric = found["want"], found["want"]["metric"]
    say(
        f"wanted: {want['text']}; the original has {found['original'][metric]:.6g} on "
        f"{found['samples']} samples"
    )
    for number, attempt in enumerate(found["tries"], start=1):
        nodes = attempt["nodes"]
        few = ", ".join(nodes[:2]) + (f", and {len(nodes) - 2} more" if len(nodes) > 2 else "")
        verdict = "reached" if attempt["met"] else "missed"
        say(
            f"try {number}: {metric} {attempt['metrics'][metric]:.6g}, {verdict}, with "
            + bisection.in_fp32(len(nodes))
            + (f": {few}" if nodes else "")
        )
    if found["found"] is None:
        say("It is not reached even with all of these layers in fp32: the fault lies elsewhere "
            "(the variant itself, the data, or what is wanted).", "red")  # fmt: skip
    elif not found["found"]["nodes"]:
        say("It is reached as it is: no node has to stay in fp32.", "green")
    else:
        say(
            f"The least set that was found, run on the device: {metric} "
            f"{found['found']['metrics'][metric]:.6g} with "
            f"{bisection.in_fp32(len(found['found']['nodes']))}, "
            f"{found['found']['size_bytes']} bytes",
            "green",
        )


def _show_keep(values: Mapping[str, Any], say: Callable[..., None]) -> None:
    if values["keep_fp32"]:
        say("To keep them in fp32, paste into the target's entry of the manifest:")
        say(keep_text(values["keep_fp32"]))
        if values["bisect"] is None:
            say("`--bisect` finds the least set for a wanted accuracy, and runs it.")
    elif values["bisect"] is None:
        if not values["mixed"]:
            say("Single nodes cannot stay in fp32 here.")
        else:
            say(
                f"No layer makes {layers.STANDS_OUT:.0%} of the errors or more: none stands out. "
                "Try another calibration, or `--bisect`."
            )


def keep_text(keep: Sequence[Any]) -> str:
    """Lines of a manifest; each entry is JSON, which is YAML too."""
    import json

    return "\n".join(["keep_fp32:", *(f"  - {json.dumps(entry)}" for entry in keep)])

"""How fast a model is on a target of the manifest, measured while a pass still looks for it.

For passes that are told a latency and not a size: each candidate is converted, checked, shipped and
timed as a row of the report is, and kept in the store, so that a search that is done again measures
nothing again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from wherry.measurement import merge
from wherry.passes import MeasuredOn
from wherry.plan import Step
from wherry.stages import convert
from wherry.stages.context import HostContext, take_or_build
from wherry.stages.keys import agent_code, files_digest, own_code
from wherry.stages.rounds import RoundContext
from wherry.stages.services import Services
from wherry.stats import summarise
from wherry.store import Key

if TYPE_CHECKING:
    from wherry.model import Model
    from wherry.stages.convert import Converted

ROUNDS = 3
"""Processes that time a candidate; the report's own figures come from ``measure:``."""

FILE = "latency.json"


def latency_ms(
    model: Model, backend: str, device: str | None, precision: str, step: str, services: Services
) -> float:
    """The median of an inference, milliseconds, on zeros.

    Args:
        model: with static shapes.
        backend: of the target.
        device: of the target; None: the only one that the manifest has for this backend.
        precision: of the target; one that needs no calibration.
        step: that asks, for logs.
        services: of the run.

    Raises:
        UsageError: the manifest has no such target, or several.
        WherryError: whatever converting and measuring may raise.
    """
    wanted = MeasuredOn(backend, device, precision)
    target = wanted.among(row.target for row in services.plan.rows)
    asked = Step(f"{step}:candidate", "convert", "convert a candidate", ("model",), target=target)
    converted: Converted = convert.run(asked, {"model": model}, services).value
    artifact, descriptor = converted.artifact, services.host.backends[backend]
    probed = services.probe(target.device)
    settings = replace(services.manifest.measure, rounds=ROUNDS, layers=False, sustained=0.0)
    key = Key(
        "candidate",
        {
            "artifact": artifact.digest,
            "options": target.options.model_dump(mode="json"),
            "runtime": probed.runtime(backend),
            "runner": files_digest((descriptor.runner,)),
            "agent": agent_code(services, target.device),
            "board": probed.info.fingerprint,
            "identity": probed.info.identity,
            "device": target.device,
            "settings": asdict(settings),
            "code": own_code("measurement", "stats"),
        },
    )

    def build(context: HostContext) -> None:
        with services.session(target.device) as session:
            if converted.unchecked is not None:
                converted.unchecked.on(target.device, services, f"{step}:parity", session)
            rounds = []
            for number in range(ROUNDS):
                context.progress(f"measuring a candidate on {target.device}")
                about = RoundContext(
                    services,
                    context.step,
                    context.output,
                    context.scratch,
                    context.log,
                    context.warnings,
                    backend=descriptor,
                    round=number,
                    settings=settings,
                    metrics={},
                    reference_outputs=None,
                )
                rounds.append(services.host.profile(artifact, target, None, session, about))
        merged = merge(rounds)
        found = summarise(merged.infer_ns, merged.round_sizes, seed=services.manifest.seed)
        (context.output / FILE).write_text(json.dumps({"median_ms": found.median_ms}))

    entry, _, _ = take_or_build(services, f"{step}:candidate", key, build)
    return float(json.loads((entry.directory / FILE).read_text())["median_ms"])

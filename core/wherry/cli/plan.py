"""``wherry plan``: what a run would do, and what it could not, before anything is paid for."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wherry.errors import UnsupportedError
from wherry.outlook import UNKNOWN, Contents, Outlook
from wherry.wording import counted

if TYPE_CHECKING:
    from rich.table import Table

    from wherry.host import Host
    from wherry.manifest import Manifest
    from wherry.model import Model
    from wherry.passes import Pass, PassStep
    from wherry.plan import Plan


def plan(manifest: str | Path, *, sets: Sequence[str] = ()) -> dict[str, Any]:
    """Lay out a manifest's plan.

    Reads the model and asks each backend's pre-flight; converts, runs and reaches nothing.

    Returns:
        JSON values: ``steps`` (id, kind, title), ``rows`` (variant, target, ``changed``: the
        options that are not the default, and ``unsupported``: operators that the backend does
        not convert in the original model), ``passes`` (what each brings on each of the targets'
        backends), ``variants`` (name to ``macs``, a share of the model's, and
        ``sent_bytes_fp32``, each null where only a run tells, and ``words`` of them, empty where
        the passes change neither), ``costs`` of the model as it is given (``macs``,
        ``parameters``, ``peak_activation_bytes`` and the ``peak_node`` where they are alive,
        ``uncounted`` and ``nodes``: see `wherry.costs`; or a ``problem``), ``model``,
        ``candidates``: tags by which targets ask for a device, to the devices that have them all.
    """
    from wherry.execute import prepare

    prepared = prepare(Path(manifest), overrides=sets, reach=False)
    host, path = prepared.services.host, prepared.plan.manifest.model.path
    with tempfile.TemporaryDirectory(prefix="wherry-plan-") as folder:
        model, static = _model(prepared.plan.manifest, host, Path(folder))
        rows = _rows(prepared.plan, static, host)
        variants = _outlooks(prepared.plan.manifest, model, host)
        costs = _costs(static)
    return {
        "manifest": str(prepared.plan.manifest.path),
        "costs": costs,
        "model": {
            "path": None if path is None else str(path),
            "digest": model.digest,
            "opset": model.opset,
            "inputs": [[spec.name, spec.dtype, list(spec.shape)] for spec in model.inputs],
            "outputs": [[spec.name, spec.dtype, list(spec.shape)] for spec in model.outputs],
        },
        "steps": [
            {"id": step.id, "kind": step.kind, "title": step.title}
            for step in prepared.plan.steps.values()
        ],
        "rows": rows,
        "candidates": _candidates(prepared.plan.manifest),
        "passes": _effects(prepared.plan.manifest, host),
        "variants": variants,
    }


def _costs(model: Model) -> dict[str, Any]:
    """What the model costs as the file says it, or why that cannot be counted."""
    from wherry.costs import measure

    try:
        found = measure(model.proto())
    except UnsupportedError as error:
        return {"problem": str(error)}
    return {
        "macs": found.macs,
        "parameters": found.parameters,
        "peak_activation_bytes": found.peak_bytes,
        "peak_node": found.peak_node,
        "uncounted": dict(found.uncounted),
        "nodes": [{"node": name, **asdict(node)} for name, node in found.nodes.items()],
    }


def _effects(manifest: Manifest, host: Host) -> dict[str, dict[str, str]]:
    """Pass to what it brings on each backend of the targets."""
    used = {step.name for steps in manifest.variants.values() for step in steps}
    backends = dict.fromkeys(target.backend for target in manifest.targets)
    found: dict[str, dict[str, str]] = {}
    for name in sorted(used):
        effects = host.passes[name].effects
        usual = effects.get("*", "the pass does not say what it brings")
        found[name] = {backend: effects.get(backend, usual) for backend in backends}
    return found


def _outlooks(manifest: Manifest, model: Model, host: Host) -> dict[str, dict[str, Any]]:
    """Each variant beside the model, before anything is made."""
    contents = Contents.of(model.proto())
    fp32 = any(target.precision == "fp32" for target in manifest.targets)
    found = {}
    for name, steps in manifest.variants.items():
        outlook, problems = Outlook(), []
        for step in steps:
            try:
                outlook = _after(host.passes[step.name], step, outlook)
            except Exception as error:  # noqa: BLE001 -- a plugin's; a run goes on without it
                outlook = replace(UNKNOWN, packed=outlook.packed)
                told = f"{type(error).__name__}: {error}"
                problems.append(f"a bug of the plugin of {step.name}, report it: {told}")
        found[name] = {
            "macs": outlook.macs,
            "sent_bytes_fp32": outlook.sent_bytes(contents),
            "words": "; ".join(filter(None, [*problems, outlook.words(contents, fp32=fp32)])),
        }
    return found


def _after(descriptor: Pass, step: PassStep, before: Outlook) -> Outlook:
    """What a pass leaves, as far as it says."""
    if descriptor.outlook is None:
        return replace(UNKNOWN, packed=before.packed)
    after: Any = descriptor.outlook(step.parameters, before)
    if not isinstance(after, Outlook):
        raise TypeError(f"Pass.outlook gave {type(after).__name__}, and not an Outlook")
    return after


def _candidates(manifest: Manifest) -> dict[str, list[str]]:
    from wherry.tags import is_tagged, tagged

    words = dict.fromkeys(t.device for t in manifest.targets if is_tagged(t.device))
    return {word: list(tagged(word, manifest.inventory.devices)) for word in words}


def _model(manifest: Manifest, host: Host, folder: Path) -> tuple[Model, Model]:
    """The model as it is and with static shapes, checked as the run's first step would."""
    from wherry.model import Model
    from wherry.stages.prepare import check_kept, check_names, static_model

    section = manifest.model
    path = section.path
    if path is None:
        assert section.zoo is not None
        path = folder / "zoo.onnx"
        host.models[section.zoo].build(section.zoo_parameters, path)
    model = Model.load(path)
    check_names(model, manifest)
    static = static_model(model, manifest, folder)
    check_kept(static, manifest)
    return model, static


def _rows(plan: Plan, model: Model, host: Host) -> list[dict[str, Any]]:
    from wherry.target import split_options

    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    rows = []
    for row in plan.rows:
        target = row.target
        options = target.options.model_dump(mode="json")
        key = (target.backend, target.precision, repr(split_options(target.options)[0]))
        if key not in found:
            found[key] = [
                {"op_type": u.op_type, "count": u.count, "node": u.node, "remedy": u.remedy}
                for u in host.backends[target.backend].preflight(model, target)
            ]
        rows.append(
            {
                "variant": row.variant,
                "target": {
                    "backend": target.backend,
                    "precision": target.precision,
                    "device": target.device,
                    "options": options,
                },
                "changed": target.options.model_dump(mode="json", exclude_defaults=True),
                "unsupported": found[key],
            }
        )
    return rows


@click.command(name="plan", short_help="Show what a run would do.")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Override a value.")
@click.option("--nodes", is_flag=True, help="Show what each node of the model costs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(manifest: Path, sets: tuple[str, ...], nodes: bool, as_json: bool) -> None:
    """Show the steps and targets of MANIFEST, and the operators that a backend does not support."""
    found = plan(manifest, sets=sets)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    from rich.markup import escape
    from rich.table import Table

    from wherry.console import Console
    from wherry.reports.words import option_text

    console = Console()
    kinds = [step["kind"] for step in found["steps"]]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    targets = counted(len(found["rows"]), "target")
    console.print(f"{escape(found['manifest'])}: {targets}; steps: {counts}")
    table = Table("variant", "backend", "precision", "device", "options", "pre-flight")
    for row in found["rows"]:
        target = row["target"]
        options = ", ".join(f"{k}={option_text(v)}" for k, v in row["changed"].items())
        problems = "; ".join(f"{u['op_type']} x{u['count']}" for u in row["unsupported"])
        verdict = f"not supported: {problems}" if problems else "ok"
        words = (row["variant"], target["backend"], target["precision"], target["device"], options)
        table.add_row(*(escape(word) for word in (*words, verdict)))
    console.print(table)
    console.print(escape(_costs_in_words(found["costs"])), soft_wrap=True)
    if nodes and "nodes" in found["costs"]:
        console.print(_nodes(found["costs"]))
    for word, names in found["candidates"].items():
        console.print(escape(f"{word}: the first free of {', '.join(names)}"), soft_wrap=True)
    for backend, problem in _problems(found):
        console.print(escape(f"{backend}: {problem}"), soft_wrap=True)
    for name, outlook in found["variants"].items():
        if outlook["words"]:
            console.print(escape(f"variant {name}: {outlook['words']}"), soft_wrap=True)
    for name, effects in found["passes"].items():
        alike: dict[str, list[str]] = {}
        for backend, effect in effects.items():
            alike.setdefault(effect, []).append(backend)
        for effect, backends in alike.items():
            text = f"pass {name} on {', '.join(backends)}: {effect}"
            console.print(escape(text), soft_wrap=True)


def _costs_in_words(costs: Mapping[str, Any]) -> str:
    from wherry.reports.words import bytes_text

    if "problem" in costs:
        return f"model: {costs['problem']}"
    where = f", at {costs['peak_node']}" if costs["peak_node"] else ""
    left = ", ".join(f"{count} {operator}" for operator, count in costs["uncounted"].items())
    return (
        f"model: {_short(costs['macs'])} multiply-accumulates, {_short(costs['parameters'])} "
        f"parameters, at most {bytes_text(costs['peak_activation_bytes'])} of activations{where}"
        + (f"; not counted: what {left} does" if left else "")
    )


def _nodes(costs: Mapping[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from wherry.reports.words import bytes_text

    table = Table()
    for head in ("node", "operator"):
        table.add_column(head, overflow="fold")  # names are there to be copied
    for head in ("MACs", "of all", "parameters", "output"):
        table.add_column(head, justify="right")
    for node in costs["nodes"]:
        if node["operator"] == "Constant":
            continue
        share = f"{node['macs'] / costs['macs']:.1%}" if node["macs"] else ""
        numbers = (_short(node["macs"]), share, _short(node["parameters"]))
        words = (node["node"], node["operator"], *numbers, bytes_text(node["output_bytes"]))
        table.add_row(*map(Text, words))
    return table


def _short(count: int) -> str:
    """``1.25 M``; whole below a thousand."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:  # what is rounded to a thousand of the lesser
            return f"{count / size:.3g} {letter}"
    return str(count)


def _problems(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Each backend's unsupported operators once, with the first node and the remedy."""
    lines: dict[tuple[str, str], None] = {}
    for row in found["rows"]:
        for item in row["unsupported"]:
            text = (
                f"{item['op_type']}: {counted(item['count'], 'node')}, the first is "
                f"{item['node']!r}. {item['remedy']}"
            )
            lines[row["target"]["backend"], text] = None
    return list(lines)

"""What stands in a bundle: the lock of everything, the README, the licences, and the files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import wherry
from wherry import __version__
from wherry.artifact import hash_file
from wherry.bundle import ARTIFACT, BUNDLE_VERSION, CPP, LOCK, RUNNER, SAMPLES
from wherry.bundle.archive import Content
from wherry.bundle.cpp import header, raw_samples
from wherry.bundle.runtime import UNKNOWN, Package, Runtime, installed_package
from wherry.npy import load_array
from wherry.reports.markdown import escaped
from wherry.reports.words import one_line

if TYPE_CHECKING:
    from wherry.bundle.gather import Material
    from wherry.model import Model

_CORE = Path(wherry.__file__).parent
_LICENCE_KEYS = ("license", "licence", "licenses", "spdx", "license_link")
_MEASURED = (
    "latency", "metrics", "evaluated", "parity", "size_bytes", "peak_memory_bytes", "energy_mj",
    "sustained", "speedup_vs_fp32", "speedup_vs_original", "pareto", "warnings", "sensors",
)  # fmt: skip
_OF_BOARDS = (
    "model", "cpu", "cores", "memory_bytes", "machine", "system", "kernel", "python", "glibc",
    "emulated", "fingerprint",
)  # fmt: skip

_CHECK = (
    "`wherry bundle verify FILE --device NAME` checks every byte and runs it on a board; "
    "`sha256sum -c SHA256SUMS` checks the files alone, and `minisign -Vm FILE -p KEY.pub` a "
    "signature."
)
_WITHOUT = "The samples have no outputs of the artifact itself, but those of the model in fp32:"
_LICENCES = (
    "As the parts say it in their own metadata, and the backend's plugin of native/; wherry has "
    "not checked it. *unknown* means that nothing is said: ask whoever made it."
)


def name_of(material: Material) -> str:
    """Of the archive's folder: short, and safe whatever the model's name is."""
    text = f"{_model_name(material)}-{material.result['variant']}-{material.target.id}"
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._")[:80] or "bundle"


def files_of(material: Material, runtime: Runtime) -> dict[str, Content]:
    """Relative POSIX path of each file to its bytes, or to where it is."""
    artifact, backend = material.artifact, material.backend
    files: dict[str, Content] = {
        f"{ARTIFACT}/{name}": artifact.directory / name for name in artifact.files
    }
    files |= {f"{RUNNER}/{path.name}": path for path in backend.runner_files}
    files[f"{RUNNER}/runner.py"] = backend.runner
    files |= {f"{RUNNER}/{name}.py": _CORE / f"{name}.py" for name in ("preprocess", "binding")}
    files["example.py"] = _CORE / "bundle" / "example.py"
    files |= {f"native/{name}": path for name, path in runtime.native.items()}
    files |= {
        f"{SAMPLES}/{name}": material.samples.directory / name
        for entry in material.samples.entries
        for kind in ("inputs", "reference", "outputs")
        for name in entry[kind].values()
    }
    lock = lock_of(material, runtime)
    if backend.examples and material.samples.entries:
        files |= {f"{CPP}/{path.name}": path for path in backend.examples}
        options = material.target.options.model_dump(mode="json")
        files[f"{CPP}/model.h"] = header(artifact, options, lock["thresholds"]["cosine"]).encode()
        files |= {f"{CPP}/{name}": data for name, data in _raw_samples(material).items()}
    if material.classes:
        lines = "".join(f"{one_line(name)}\n" for name in material.classes)
        files["labels.txt"] = lines.encode()
    if runtime.requirements:
        files["requirements.txt"] = runtime.requirements.encode()
    if backend.converter is not None:
        files["locks/converter.txt"] = _converter(material).encode()
    files["LICENCES.md"] = licences_of(material, runtime).encode()
    files["README.md"] = readme_of(material, runtime, lock).encode()
    files[LOCK] = (json.dumps(lock, indent=1, allow_nan=False) + "\n").encode()
    files["SHA256SUMS"] = "".join(
        f"{_sha256(files[name])}  {name}\n" for name in sorted(files)
    ).encode()
    return files


def _raw_samples(material: Material) -> dict[str, bytes]:
    """The first sample for programs in C++."""
    entry, folder = material.samples.entries[0], material.samples.directory

    def load(names: Mapping[str, str]) -> dict[str, np.ndarray]:
        return {name: load_array(folder / file) for name, file in names.items()}

    outputs = load(entry["outputs"] or entry["reference"])
    specs = {} if material.samples.ready else material.manifest.model.preprocess
    return raw_samples(material.artifact, load(entry["inputs"]), outputs, specs)


def _sha256(content: Content) -> str:
    return hash_file(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()


# --- the lock ---------------------------------------------------------------------------------


def lock_of(material: Material, runtime: Runtime) -> dict[str, Any]:
    """``bundle.json``: what was bundled, what made it, and what was measured; JSON values."""
    values, result, target = material.record.values, material.result, material.target
    manifest, artifact, backend = material.manifest, material.artifact, material.backend
    threshold = manifest.parity.thresholds.get(target.precision) or backend.threshold(
        target.precision
    )
    calibration = material.calibration
    board = values["devices"].get(target.device) or {}
    described = artifact.to_json()
    del described["packing"]  # the files are here as the runtime reads them
    return {
        "bundle": BUNDLE_VERSION,
        "name": name_of(material),
        "result": result["name"],
        "wherry": __version__,
        "run": {key: values[key] for key in ("run_id", "tag", "started", "finished", "wherry")},
        "variant": result["variant"],
        "target": result["target"],
        "model": {
            "name": _model_name(material),
            "sha256": material.original.digest,
            "converted_sha256": material.model.digest,
            "opset": material.original.opset,
            "licence": _model_licence(material.original),
        },
        "passes": [
            {"name": step.name, "parameters": step.parameters.model_dump(mode="json")}
            for step in manifest.variants[result["variant"]]
        ],
        "passes_told": result["passes"],
        "calibration": None
        if calibration is None
        else {
            "method": calibration.method,
            "samples": calibration.samples,
            "sha256": calibration.digest,
        },
        "artifact": {**described, "digest": f"sha256:{artifact.digest}"},
        "preprocess": {name: dict(spec) for name, spec in manifest.model.preprocess.items()},
        "data": values["data"],
        "locks": _locks(material, runtime),
        "runtime": {
            "made_for": dict(runtime.made_for),
            "packages": [[each.name, each.version, each.licence] for each in runtime.packages],
            "tools": {name: list(usual) for name, usual in backend.tools.items()},
            "native": sorted(runtime.native),
            "missing": list(runtime.missing),
        },
        "thresholds": {"sqnr_db": threshold.sqnr_db, "cosine": threshold.cosine},
        "samples": {
            "source": material.samples.source,
            "ready": material.samples.ready,
            "without_outputs": material.samples.without_outputs,
            "entries": [dict(entry) for entry in material.samples.entries],
        },
        "measured": {
            "on": {key: board.get(key) for key in _OF_BOARDS},
            **{key: result.get(key) for key in _MEASURED},  # earlier runs have not all
        },
    }


def _locks(material: Material, runtime: Runtime) -> dict[str, Any]:
    """sha256 of the locked environments: of the converter here, and of the runtime."""
    converter = material.backend.converter
    environments = material.services.environments
    return {
        "converter": None if converter is None else environments.lock(converter).sha256,
        "runtime": hashlib.sha256(runtime.requirements.encode()).hexdigest()
        if runtime.requirements
        else None,
    }


def _converter(material: Material) -> str:
    assert material.backend.converter is not None
    return material.services.environments.lock(material.backend.converter).text


def _model_name(material: Material) -> str:
    section = material.manifest.model
    return section.path.stem if section.path is not None else str(section.zoo)


def _model_licence(model: Model) -> str:
    """As the model's own metadata says it."""
    told = {key.casefold(): value for key, value in model.metadata.items()}
    return next((one_line(told[key]) for key in _LICENCE_KEYS if told.get(key)), UNKNOWN)


# --- for people -------------------------------------------------------------------------------


def licences_of(material: Material, runtime: Runtime) -> str:
    """``LICENCES.md``: whose licences hold, as far as the parts say it themselves."""
    backend = material.backend
    of_wherry, strangers = _runners(material)
    lines = [
        "# Licences",
        "",
        _LICENCES,
        "",
        "| part | version | licence | in this archive |",
        "| --- | --- | --- | --- |",
        _row("the network", "", _model_licence(material.original), "artifact/"),
        _row("the samples", "", UNKNOWN, "samples/"),
        _row("wherry's own files", __version__, "Apache-2.0", of_wherry),
        *strangers,
    ]
    known = backend.native.licences if backend.native is not None else {}
    lines += [
        _row(name, "", known.get(name, UNKNOWN), f"native/{name}")
        for name in sorted(runtime.native)
    ]
    lines += [_row(each.name, each.version, each.licence, "no") for each in runtime.packages]
    lines += [
        _row(name, "", "of the board's owner's installation", "no")
        for name in sorted(backend.tools)
    ]
    if not runtime.packages and backend.runtime:
        lines += ["", "The runtime's packages could not be looked at."]
    return "\n".join(lines) + "\n"


def _runners(material: Material) -> tuple[str, list[str]]:
    """Which files are wherry's own, and the row of those that a stranger's plugin brings."""
    owner = material.services.host.owner("backends", material.backend.name)
    if owner.own:
        return "example.py, runner/, cpp/", []
    told = Package(owner.name, "", UNKNOWN)
    if owner.distribution is not None:
        told = installed_package(owner.distribution)
    shared = "example.py, runner/preprocess.py, runner/binding.py, cpp/model.h"
    return shared, [_row(told.name, told.version, told.licence, "the rest of runner/ and cpp/")]


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"


def readme_of(material: Material, runtime: Runtime, lock: Mapping[str, Any]) -> str:
    """``README.md``."""
    measured, samples = lock["measured"], material.samples
    latency, board = measured["latency"], measured["on"]
    states = [
        word
        for word, holds in (
            ("emulated: the latency means nothing", latency["emulated"]),
            ("not clean: something disturbed it", not latency["clean"]),
        )
        if holds
    ]
    low, high = latency["ci95_ms"]
    figures = [
        f"median {latency['median_ms']:.6g} ms, 95 % interval {low:.6g} to {high:.6g} ms",
        f"timed by {latency['timed_by']}",
        *(f"{name} {value:.6g}" for name, value in measured["metrics"].items()),
        f"{measured['size_bytes']} bytes",
        *states,
    ]
    machine = f"{board['model'] or board['cpu']} ({board['machine']}, {board['system']})"
    python = [
        "```",
        *(
            ["pip install --no-deps --require-hashes -r requirements.txt"]
            if runtime.requirements
            else ["pip install numpy"]
        ),
        "python example.py",
        "```",
    ]
    lines = [
        f"# {escaped(lock['name'])}",
        "",
        f"{escaped(lock['result'])}; bundled by wherry {escaped(lock['wherry'])}.",
        "",
        f"Measured in the run {escaped(lock['run']['run_id'])} on {escaped(machine)}:",
        "",
        *_list(figures),
        "",
        "## Use it",
        "",
        *python,
        "",
        _runs(runtime),
    ]
    if material.backend.examples and samples.entries:
        lines += ["", "`cpp/` has the same in C++; how to build it stands in its first lines."]
    if samples.without_outputs:
        lines += [
            "",
            _WITHOUT + f" {escaped(samples.without_outputs)}.",
        ]
    lines += [*(["", "Missing here:", ""] if runtime.missing else []), *_list(runtime.missing)]
    lines += [
        "",
        "## Check it",
        "",
        _CHECK,
        "",
        "| | |",
        "| --- | --- |",
        _row("artifact/", "the network's files"),
        _row("runner/", "what runs them, and the declared preprocessing"),
        _row("samples/", f"{len(samples.entries)} of {samples.source}, with expected outputs"),
        *([_row("labels.txt", "the classes' names")] if material.classes else []),
        _row("bundle.json", "what made it: digests, passes, calibration, locks, figures"),
        _row("LICENCES.md", "licences, as far as they are known"),
    ]
    return "\n".join(lines) + "\n"


def _runs(runtime: Runtime) -> str:
    runs = "runs the samples and compares; `Network` of `example.py` is for your own program."
    if not runtime.requirements:
        return runs
    made_for = f"Python {runtime.made_for['python']} on {runtime.made_for['machine']}"
    return f"{runs} `requirements.txt` is for {escaped(made_for)}."


def _list(texts: Iterable[str]) -> list[str]:
    return [f"- {escaped(text)}" for text in texts]

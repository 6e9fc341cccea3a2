"""``wherry init``: a manifest for an ONNX file that runs as it is, with comments to go on from."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wherry.errors import DataError, ModelError, StoreError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from wherry.dataset import Dataset
    from wherry.host import Host
    from wherry.model import Model
    from wherry.requirements import Requirements

SIZES = (224, 32, 64, 128, 256, 299, 320, 512, 640, 16, 8)
"""Tried in this order for axes that the model leaves open."""

SPECS: tuple[dict[str, Any], ...] = (
    {},
    {"scale": 0.00392156862745098},
    {"scale": 0.00392156862745098, "layout": "nhwc"},
)
"""Tried in this order as the preprocessing of data."""

PRECISIONS = ("fp32", "fp16", "int8")
"""Those that are written, where a backend has them and there is the data that they need."""

ROLES = ("evaluation", "calibration")


def init(
    model: str | Path,
    *,
    output: str | Path = "wherry.yaml",
    data: Sequence[str | Path] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    force: bool = False,
    host: Host | None = None,
) -> Path:
    """Write a manifest for a model and the backends of the plugins in use.

    Args:
        model: the ONNX file.
        output: the manifest.
        data: up to two ``.npz`` files: the evaluation data, the calibration data.
        shapes: input name to static shape, for inputs whose axes the model leaves open; what is
            not given is guessed, tried, and marked in the file.
        force: overwrite ``output``.
        host: the loaded plugins; None: load them.

    Returns:
        The manifest's path.

    Raises:
        UsageError: ``output`` exists, no backend is installed, or too much data is given.
        ModelError: the model cannot be used, or no guess fits its open axes.
        DataError: the data cannot be used, or does not fit the model.
        UnsupportedError: none of the backends takes the model's operators.
    """
    from wherry.model import Model as ModelClass

    if host is None:
        from wherry.host import Host as HostClass

        host = HostClass.load()
    path = Path(output)
    if path.exists() and not force:
        raise _exists(path)
    if not host.backends:
        raise UsageError("no backend is installed", remedy="`wherry doctor` says why.")
    if len(data) > len(ROLES):
        raise UsageError(
            f"{len(data)} files of data are given",
            remedy="Give the evaluation data, and after it the calibration data.",
        )
    loaded = ModelClass.load(Path(model))
    given = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    with tempfile.TemporaryDirectory(prefix="wherry-") as folder:
        static, chosen = _fix_shapes(loaded, given, Path(folder))
        draft = _Draft(loaded, static, host, path.absolute().parent)
        draft.shapes, draft.guessed = chosen, chosen.keys() - given.keys()
        for role, file in zip(ROLES, data, strict=False):
            draft.add_data(role, Path(file))
        text = "\n".join(draft.lines(path.name)) + "\n"
    _write(path, text, force=force)
    return path


def _fix_shapes(
    model: Model, given: Mapping[str, tuple[int, ...]], folder: Path
) -> tuple[Model, dict[str, tuple[int, ...]]]:
    """The model with static shapes, and those that the manifest has to give."""
    leading = {spec.shape[0] for spec in model.inputs if spec.shape}
    # A symbol of a first axis is the batch wherever it stands, and the batch is 1.
    unknown = [
        spec
        for spec in model.inputs
        if spec.name not in given
        and any(isinstance(axis, str) and axis not in leading for axis in spec.shape[1:])
    ]
    error: ModelError | None = None
    for size in SIZES if unknown else SIZES[:1]:
        shapes = dict(given)
        for spec in unknown:
            guesses = [3 if (len(spec.shape), axis) == (4, 1) else size for axis in range(16)]
            shapes[spec.name] = tuple(
                said if isinstance(said, int) else 1 if said in leading else guesses[axis]
                for axis, said in enumerate(spec.shape)
            )
        try:
            return model.with_static_shapes(shapes, folder), shapes
        except ModelError as found:
            error = found
    assert error is not None, "at least one size was tried"
    if not unknown:
        raise error
    name = unknown[0].name
    raise ModelError(
        f"the input {name!r} has open axes, and none of the sizes {', '.join(map(str, SIZES))} "
        f"fits them all; at last: {error.message}",
        where=str(model.path),
        remedy=f"Give its shape: --shape {name}=1,3,...",
    ) from error


@dataclass(frozen=True)
class _DataContext:
    """`wherry.dataset.DataContext` for files."""

    base: Path

    def packages(self, requirements: Requirements) -> Path:
        raise DataError(
            f"data from a package ({', '.join(requirements.packages)}) is not read here",
            remedy="Name the source in the manifest.",
        )


@dataclass
class _Draft:
    """What goes into the manifest."""

    model: Model
    static: Model
    host: Host
    base: Path
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    guessed: set[str] = field(default_factory=set)
    data: dict[str, Path] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    labelled: bool = False

    def add_data(self, role: str, path: Path) -> None:
        """Check an ``.npz`` file against the model; find a preprocessing with which it fits."""
        from wherry.data.views import check_dataset

        source = self.host.datasets.get("npz")
        if source is None:
            raise UsageError("no source for .npz files is installed", remedy="Leave --data out.")
        parameters = source.parameters.model_validate({"path": path.absolute()})
        dataset = source.load(parameters, _DataContext(self.base))
        if not self.data:
            self.spec = self._fitting(dataset)
        check_dataset(dataset, self.static, self._specs(self.spec), where=str(path))
        if not self.data:
            self.labelled = isinstance(dataset[0].label, int)
        self.data[role] = path

    def _fitting(self, dataset: Dataset) -> dict[str, Any]:
        """The first preprocessing that takes the first sample; none where the check will fail."""
        from wherry.data.views import Preprocessed

        for spec in SPECS if len(dataset) else ():
            try:
                Preprocessed(dataset, self._specs(spec), self.static.inputs)[0]
            except DataError:
                continue
            return spec
        return {}

    def _specs(self, spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {tensor.name: spec for tensor in self.static.inputs} if spec else {}

    def lines(self, name: str) -> Iterator[str]:
        """The manifest's text."""
        yield f"# `wherry plan {name}` shows what a run would do, `wherry run {name}` does it."
        yield "# docs/manifest.md explains every key, and how an editor completes and checks them."
        yield "wherry: 1"
        yield ""
        yield from self._model()
        yield ""
        yield from self._data()
        yield ""
        yield "# Named lists of optimisations; `wherry plugins list` shows the passes."
        yield "variants:"
        yield "  original: []"
        yield ""
        yield from self._targets()
        yield ""
        yield "# Thresholds that fail the run, with the exit code 3."
        yield "# gates:"
        yield "#   - {metric: latency.median_ms, max: 20}"
        yield "#   - {metric: size_bytes, max: 10000000, where: {precision: fp16}}"

    def _model(self) -> Iterator[str]:
        yield "model:"
        yield f"  path: {_word(_relative(self.model.path, self.base))}"
        said = [spec for spec in self.model.inputs if spec.name in self.shapes or self.spec]
        if not said:
            yield "  # From raw samples to an input, (value * scale - mean) / std:"
        mark = "" if said else "# "
        yield f"  {mark}inputs:"
        for spec in said or self.model.inputs:
            yield f"  {mark}  {_key(spec.name)}:  # {spec.dtype}, {_axes(spec.shape)} in the file"
            if spec.name in self.shapes:
                guess = "  # a guess that fits" if spec.name in self.guessed else ""
                yield f"      shape: {list(self.shapes[spec.name])}{guess}"
            if self.spec:
                yield f"      preprocess: {_flow(self.spec)}  # a guess: as the network was trained"
            elif not said:
                yield f"  {mark}    preprocess: {_flow({**SPECS[1], 'mean': [0.5], 'std': [0.25]})}"

    def _data(self) -> Iterator[str]:
        if not self.data:
            yield "# Without data, zeros are timed and parity is checked on random inputs."
        mark = "" if self.data else "# "
        yield f"{mark}data:"
        for role, path in (self.data or {ROLES[0]: self.base / "FILE.npz"}).items():
            yield f"{mark}  {role}: {{source: npz, path: {_word(_relative(path, self.base))}}}"
        names = ("top1", "agreement") if self.labelled else ("sqnr_db", "cosine")
        metrics = [name for name in names if name in self.host.metrics]
        if metrics:
            yield f"{mark}metrics: [{', '.join(metrics)}]"

    def _targets(self) -> Iterator[str]:
        groups: dict[tuple[str, ...], list[str]] = {}
        without: list[str] = []
        waiting: set[str] = set()
        for name, backend in self.host.backends.items():
            if backend.tools:  # the owner of a board installs them, and this host may have none
                needs = ", ".join(backend.tools)
                without.append(f"# {name} is left out: add it for a device that has {needs}")
                continue
            offered = tuple(word for word in PRECISIONS if word in backend.precisions)
            precisions = offered or backend.precisions[:1]
            if "calibration" not in self.data:
                waiting |= {word for word in precisions if word in backend.calibrated}
                precisions = tuple(word for word in precisions if word not in backend.calibrated)
            if not precisions:
                continue
            unsupported = self._unsupported(name, precisions[0])
            if unsupported:
                without.append(f"# {name} is left out: {unsupported}")
            else:
                groups.setdefault(precisions, []).append(name)
        if not groups:
            why = without or [f"{', '.join(sorted(waiting))} needs calibration data"]
            raise UnsupportedError(
                "no backend that is installed runs this model:\n" + "\n".join(why),
                where=str(self.model.path),
            )
        yield "# Lists multiply. Other keys of an entry: device, variants, and options of a backend"
        yield "# under its name, such as `onnxruntime: {graph_optimization: [all, basic]}`."
        yield "targets:"
        for precisions, backends in groups.items():
            yield f"  - backend: [{', '.join(backends)}]"
            yield f"    precision: [{', '.join(precisions)}]"
            yield "    threads: 1"
        if waiting:
            yield f"# With samples to calibrate on there is {', '.join(sorted(waiting))} too:"
            yield "# `calibration:` below `data:`, a few hundred that are not evaluated."
        yield from without

    def _unsupported(self, name: str, precision: str) -> str:
        """What a backend's pre-flight does not take, in a line."""
        from wherry.target import Target

        backend = self.host.backends[name]
        target = Target(name, precision, "local", backend.options())
        found = backend.preflight(self.static, target)
        return "; ".join(f"{item.count} x {item.op_type} ({item.node})" for item in found)


def _relative(path: Path, base: Path) -> str:
    """As the manifest says it: from its own folder."""
    return Path(os.path.relpath(path.absolute(), base)).as_posix()


def _key(text: str) -> str:
    """Text as a key of YAML."""
    from wherry.manifest.source import resolve

    if re.fullmatch(r"[A-Za-z_.][A-Za-z0-9_./-]*", text) and resolve(text) == text:
        return text
    return json.dumps(text, ensure_ascii=False)


def _word(text: str) -> str:
    """Text as a value of YAML, where a dollar sign means more."""
    return _key(text).replace("$", "$$")


def _flow(values: Mapping[str, Any]) -> str:
    """A mapping of words to words, numbers and lists of numbers."""
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


def _axes(shape: tuple[int | str, ...]) -> str:
    """A shape as the file says it, on one line whatever it says."""
    return "[" + ", ".join(" ".join(str(axis).split()) for axis in shape) + "]"


def _exists(path: Path) -> UsageError:
    return UsageError(
        f"{path} exists already", remedy="Give another --output, or --force to overwrite it."
    )


def _write(path: Path, text: str, *, force: bool) -> None:
    """Write by rename; without ``force`` never over a file, even one that has just come."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        try:
            if not force:
                path.touch(exist_ok=False)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise StoreError(
            f"the manifest cannot be written: {error.strerror}",
            where=str(path),
            remedy="Name a file in a folder that exists and that you may write to.",
        ) from error


def _shapes(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """Parse ``NAME=1,3,224,224``; a name may hold any sign."""
    shapes = {}
    for value in values:
        name, _, sizes = value.rpartition("=")
        if not name or not re.fullmatch(r"[1-9][0-9]{0,9}(,[1-9][0-9]{0,9})*", sizes):
            raise click.BadParameter(f"{value!r} is not NAME=1,3,224,224", ctx, param)
        shapes[name] = tuple(map(int, sizes.split(",")))
    return shapes


@click.command(name="init", short_help="Write a manifest for an ONNX file.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default="wherry.yaml",
    show_default=True,
    help="The manifest.",
)
@click.option(
    "--data",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Samples and labels; a second one is for calibration.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=_shapes,
    metavar="NAME=1,3,...",
    help="An input's static shape.",
)
@click.option("--force", is_flag=True, help="Overwrite the manifest.")
def command(
    model: Path,
    output: Path,
    data: tuple[Path, ...],
    shapes: dict[str, tuple[int, ...]],
    force: bool,
) -> None:
    """Write a manifest for MODEL that runs as it is on the backends that are installed.

    Axes that the model leaves open are guessed and marked; comments say how to go on.
    """
    path = init(model, output=output, data=data, shapes=shapes, force=force)
    click.echo(f"wrote {path}; `wherry plan {path}` shows what it would do")

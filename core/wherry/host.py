"""The host: loads the plugins, knows what each provides, and calls the stages' hooks.

wherry's own plugins and strangers' come by the same call. A plugin that is broken is skipped with
a warning and remembered in `Host.skipped`; two plugins that provide one name are refused.

Two environment variables are switches. ``WHERRY_PLUGINS`` unset: every installed plugin is
loaded; empty: wherry's own alone; names with commas: wherry's own and those.
``WHERRY_TRACE_HOOKS=1``: every call of a hook is written to stderr.

Importing this file brings numpy and pydantic; `wherry.installed` lists plugins without either.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import logging
import re
import sys
import traceback
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import pluggy

from wherry import hookspecs, hooktrace
from wherry.artifact import Artifact, hash_file
from wherry.calibration import Calibration
from wherry.context import CalibrateContext, OptimizeContext, ProfileContext, StepContext
from wherry.dataset import Dataset, DatasetSource
from wherry.device import Session, Transport
from wherry.errors import PluginError, WherryError
from wherry.installed import PluginInfo, selected_plugins
from wherry.measurement import Measurement
from wherry.metrics import MetricKind
from wherry.model import Model
from wherry.passes import Pass, PassStep
from wherry.reports import Report
from wherry.target import Backend, Target
from wherry.trackers import Tracker
from wherry.zoo import ZooModel

KINDS: Mapping[str, type] = {
    "backends": Backend,
    "passes": Pass,
    "transports": Transport,
    "datasets": DatasetSource,
    "metrics": MetricKind,
    "reports": Report,
    "models": ZooModel,
    "trackers": Tracker,
    "commands": click.Command,
}
"""What plugins provide: ``wherry_<kind>`` is the hook that yields descriptors of the type."""
STAGES: Mapping[str, tuple[str, type]] = {
    "wherry_optimize": ("passes", Model),
    "wherry_calibrate": ("backends", Calibration),
    "wherry_convert": ("backends", Artifact),
    "wherry_profile": ("backends", Measurement),
}
"""The stages' hooks: the kind whose owner does the work, and what the hook returns."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # fits manifests, options and file names
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SkippedPlugin:
    """A plugin that is not in use, or whose verbs are not, and why."""

    plugin: PluginInfo
    cause: str


class Host:
    """The plugins in use, and what they provide; made by `Host.load`.

    Attributes:
        backends: by name, as all that follow.
        passes: optimisations.
        transports: ways to reach boards.
        datasets: sources of data.
        metrics: what is said of outputs.
        reports: forms of a report.
        models: network designs.
        trackers: who can be told of a finished run.
        plugins: those in use, in the order of loading.
        skipped: those that are not, and why.
    """

    def __init__(self) -> None:
        self.backends: dict[str, Backend] = {}
        self.passes: dict[str, Pass] = {}
        self.transports: dict[str, Transport] = {}
        self.datasets: dict[str, DatasetSource] = {}
        self.metrics: dict[str, MetricKind] = {}
        self.reports: dict[str, Report] = {}
        self.models: dict[str, ZooModel] = {}
        self.trackers: dict[str, Tracker] = {}
        self.plugins: list[PluginInfo] = []
        self.skipped: list[SkippedPlugin] = []
        self._objects: dict[PluginInfo, object] = {}
        self._owners: dict[tuple[str, str], PluginInfo] = {}
        self._code: dict[PluginInfo, str] = {}
        self._manager = pluggy.PluginManager("wherry")
        self._manager.add_hookspecs(hookspecs)

    @classmethod
    def load(
        cls,
        *,
        plugins: Iterable[str] | None = None,
        extra: Iterable[object] = (),
        builtins: bool = True,
        trace: bool | None = None,
    ) -> Host:
        """Import the plugins and ask each what it provides.

        Args:
            plugins: names of entry points or distributions to load besides wherry's own; None:
                as ``WHERRY_PLUGINS`` says.
            extra: plugin objects (modules, instances) that are not installed.
            builtins: load wherry's own.
            trace: write every call of a hook to stderr; None: as ``WHERRY_TRACE_HOOKS`` says.

        Raises:
            PluginError: two plugins provide one name, or the default of one stage.
            UsageError: a name in ``plugins`` is not installed.
        """
        host = cls()
        if hooktrace.wanted() if trace is None else trace:
            hooktrace.trace(host._manager)
        for info, entry in selected_plugins(plugins):
            if builtins or not info.own:
                host._add(info, entry.load)
        for given in extra:
            name = getattr(given, "__name__", type(given).__name__)
            module = getattr(given, "__module__", name)
            host._add(PluginInfo(name, None, None, module), partial(_itself, given))
        host._refuse_two_defaults()
        host._manager.register(_Guard(host))  # the last one, so that it wraps innermost
        return host

    # What the plugins provide

    def owner(self, kind: str, name: str) -> PluginInfo:
        """The plugin that provides ``name``; ``kind`` is a key of `KINDS`, e.g. ``backends``.

        Raises:
            PluginError: none provides it.
        """
        try:
            return self._owners[kind, name]
        except KeyError:
            names = sorted(found for of, found in self._owners if of == kind)
            near = difflib.get_close_matches(name, names, n=1)
            known = f"There are: {', '.join(names)}." if names else None
            remedy = f"Did you mean {near[0]!r}?" if near else known
            raise PluginError(f"no plugin provides {_word(kind)} {name!r}", remedy=remedy) from None

    def code(self, plugin: PluginInfo) -> str:
        """What stands for all of a plugin's code in the store's keys: sha256, hex.

        It is over its name and the Python files beside its module and below; of a module that is in
        no package, over its own file. What else a stranger's plugin has changes with its version.
        """
        if plugin not in self._code:
            module = sys.modules.get(plugin.module.partition(":")[0])
            file = getattr(module, "__file__", None)
            files = [Path(file)] if file else []
            if file and getattr(module, "__package__", ""):
                files = sorted(files[0].parent.rglob("*.py"))
            lines = [
                f"{plugin.name} {plugin.module}" if plugin.own else f"{plugin} {plugin.module}"
            ]
            lines += [f"{path.name} {hash_file(path)}" for path in files]
            self._code[plugin] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        return self._code[plugin]

    def provided(self, plugin: PluginInfo) -> dict[str, list[str]]:
        """What ``plugin`` provides: kind to names; kinds without any are left out."""
        found: dict[str, list[str]] = {}
        for (kind, name), owner in self._owners.items():
            if owner == plugin:
                found.setdefault(kind, []).append(name)
        return found

    def wrapped(self, plugin: PluginInfo) -> list[str]:
        """The stages' hooks that ``plugin`` wraps, whatever the backend."""
        given = self._objects[plugin]
        return [hook for hook in STAGES if any(i.plugin is given for i in self._wrappers(hook))]

    def commands(self, reserved: Collection[str] = ()) -> dict[str, click.Command]:
        """The plugins' verbs, asked for now; verbs of a plugin that are broken are skipped.

        Args:
            reserved: verbs that no plugin may take.

        Raises:
            PluginError: two plugins provide one verb.
        """
        verbs: dict[str, click.Command] = {}
        for info, plugin in self._objects.items():
            try:
                given = self._ask(plugin, "commands")
                for name in sorted(given.keys() & set(reserved)):
                    raise PluginError(f"wherry_commands yielded {name!r}, a verb of wherry's own")
            except (Exception, SystemExit) as error:  # noqa: BLE001 -- a stranger's code raises anything
                self._skip(info, error, "its verbs are skipped")
                continue
            for name in given:
                self._claim("commands", name, info)
            verbs.update(given)
        return verbs

    # The stages

    def optimize(self, model: Model, step: PassStep, context: OptimizeContext) -> Model:
        """Call ``wherry_optimize`` on the plugin of the pass."""
        return self._call(
            "wherry_optimize", step.name, Model, model=model, step=step, context=context
        )

    def calibrate(
        self, model: Model, dataset: Dataset, target: Target, context: CalibrateContext
    ) -> Calibration:
        """Call ``wherry_calibrate`` on the plugin of the backend, else on the default."""
        return self._call(
            "wherry_calibrate",
            target.backend,
            Calibration,
            model=model,
            dataset=dataset,
            target=target,
            context=context,
        )

    def convert(
        self, model: Model, target: Target, calibration: Calibration | None, context: StepContext
    ) -> Artifact:
        """Call ``wherry_convert`` on the plugin of the backend."""
        return self._call(
            "wherry_convert",
            target.backend,
            Artifact,
            model=model,
            target=target,
            calibration=calibration,
            context=context,
        )

    def profile(
        self,
        artifact: Artifact,
        target: Target,
        dataset: Dataset | None,
        session: Session,
        context: ProfileContext,
    ) -> Measurement:
        """Call ``wherry_profile`` on the plugin of the backend, else on the default."""
        return self._call(
            "wherry_profile",
            target.backend,
            Measurement,
            artifact=artifact,
            target=target,
            dataset=dataset,
            session=session,
            context=context,
        )

    def _call(self, hook: str, name: str, expected: type[_T], **arguments: object) -> _T:
        """Call a stage's hook on the plugin that does the work and on every wrapper, no other."""
        worker = self._objects[self.worker(hook, name)]
        others = {i.plugin for i in self._workers(hook)} - {worker}
        try:
            result = self._manager.subset_hook_caller(hook, others)(**arguments)
        except WherryError:
            raise
        except Exception as error:  # from a wrapper: the guard lets nothing else through
            raise PluginError(
                f"a wrapper of {hook} raised {_one_line(error)}; {self._suspects(hook)}"
            ) from error
        if not isinstance(result, expected):
            raise PluginError(
                f"a wrapper of {hook} returned {_an(result)}, not {_a(expected.__name__)}; "
                f"{self._suspects(hook)}",
                remedy="A wrapper has to return what its `yield` gave.",
            )
        return result

    def worker(self, hook: str, name: str) -> PluginInfo:
        """The plugin that does a stage's work for a pass or a backend: its owner or the default.

        Raises:
            PluginError: there is none.
        """
        kind, _ = STAGES[hook]
        owner = self.owner(kind, name)
        workers = self._workers(hook)
        for implementation in workers:
            if implementation.plugin is self._objects[owner]:
                return owner
        for implementation in workers:
            if implementation.trylast:
                return self._info(implementation)
        raise PluginError(
            f"{_word(kind)} {name!r} is the plugin {owner}'s, which has no {hook}, "
            "and no plugin has a default for it"
        )

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return caller.get_hookimpls()

    def _workers(self, hook: str) -> list[pluggy.HookImpl]:
        return [i for i in self._implementations(hook) if not (i.wrapper or i.hookwrapper)]

    def _wrappers(self, hook: str) -> list[pluggy.HookImpl]:
        return [i for i in self._implementations(hook) if i.wrapper or i.hookwrapper]

    def _suspects(self, hook: str) -> str:
        wrappers = [i for i in self._wrappers(hook) if not isinstance(i.plugin, _Guard)]
        return "it is wrapped by " + ", ".join(str(self._info(i)) for i in wrappers)

    def _info(self, implementation: pluggy.HookImpl) -> PluginInfo:
        return next(i for i, given in self._objects.items() if given is implementation.plugin)

    # Loading

    def _add(self, info: PluginInfo, load: Callable[[], object]) -> None:
        """Import, register and ask one plugin; of a broken one nothing stays."""
        key = f"{info.name} ({info.distribution or 'extra'} {len(self._objects)})"
        try:
            if info in self._objects:
                raise PluginError("a plugin of this name is loaded already")
            plugin = load()
            self._manager.register(plugin, key)
            self._check_hooks(plugin)
            provided = {kind: self._ask(plugin, kind) for kind in KINDS if kind != "commands"}
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- a stranger's code raises anything
            self._manager.unregister(name=key)
            self._skip(info, error, "it is skipped")
            return
        self.plugins.append(info)
        self._objects[info] = plugin
        for kind, descriptors in provided.items():
            for name in descriptors:
                self._claim(kind, name, info)
            getattr(self, kind).update(descriptors)

    def _check_hooks(self, plugin: object) -> None:
        """Check what pluggy does not; raises `PluginError`."""
        hooks = {caller.name for caller in self._manager.get_hookcallers(plugin) or ()}
        if not hooks:
            raise PluginError("it implements no hook", remedy="Mark its functions with @hookimpl.")
        known = [*(f"wherry_{kind}" for kind in KINDS), *STAGES]
        for name in sorted(hooks.difference(known)):
            near = difflib.get_close_matches(name, known, n=1)
            remedy = f"Did you mean {near[0]}?" if near else None
            raise PluginError(f"there is no hook {name}", remedy=remedy)
        for name in known:
            if name not in hooks and callable(getattr(plugin, name, None)):
                raise PluginError(f"{name} is not marked with @hookimpl")
            wraps = any(i.plugin is plugin for i in self._wrappers(name))
            if wraps and name not in STAGES:
                raise PluginError(f"{name} cannot be wrapped; only the stages' hooks can")
            if wraps and any(i.plugin is plugin for i in self._workers(name)):
                remedy = "Give the wrapper an entry point of its own."
                raise PluginError(f"{name} is both implemented and wrapped", remedy=remedy)

    def _ask(self, plugin: object, kind: str) -> dict[str, Any]:
        """Call a registration hook on one plugin; raises `PluginError` for what does not fit."""
        hook, expected = f"wherry_{kind}", KINDS[kind]
        if not any(i.plugin is plugin for i in self._workers(hook)):
            return {}
        others = self._manager.get_plugins() - {plugin}
        results = self._manager.subset_hook_caller(hook, others)()
        result = results[0] if results else None  # pluggy leaves a None out
        if not isinstance(result, Iterable) or isinstance(result, (str, expected)):
            raise PluginError(f"{hook} returned {_an(result)}; it has to yield descriptors")
        descriptors: dict[str, Any] = {}
        for descriptor in result:
            if not isinstance(descriptor, expected):
                raise PluginError(f"{hook} yielded {_an(descriptor)}, not {_a(expected.__name__)}")
            name = getattr(descriptor, "name", None)
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                remedy = "Names are letters, digits, '.', '_' and '-'."
                raise PluginError(f"{hook} yielded the name {name!r}", remedy=remedy)
            if name in descriptors:
                raise PluginError(f"{hook} yielded the name {name!r} twice")
            descriptors[name] = descriptor
        return descriptors

    def _claim(self, kind: str, name: str, info: PluginInfo) -> None:
        first = self._owners.setdefault((kind, name), info)
        if first != info:
            raise PluginError(
                f"two plugins provide {_word(kind)} {name!r}: {first} and {info}", remedy=_CHOOSE
            )

    def _refuse_two_defaults(self) -> None:
        for hook in STAGES:
            defaults = sorted(str(self._info(i)) for i in self._workers(hook) if i.trylast)
            if len(defaults) > 1:
                raise PluginError(
                    f"{hook} has more than one default (trylast=True): {' and '.join(defaults)}",
                    remedy=_CHOOSE,
                )

    def _skip(self, info: PluginInfo, error: BaseException, outcome: str) -> None:
        cause = str(error) if isinstance(error, WherryError) else _one_line(error)
        self.skipped.append(SkippedPlugin(info, cause))
        _log.warning("the plugin %s is broken, %s: %s", info, outcome, cause)
        _log.debug("traceback of the plugin %s", info, exc_info=error)


_CHOOSE = (
    "Uninstall one, or name in WHERRY_PLUGINS those that shall be loaded besides wherry's own."
)


def _itself(given: object) -> object:
    """A plugin that need not be loaded."""
    return given


class _Guard:
    """The innermost wrapper of every stage: it checks a result before other wrappers see it."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @hookspecs.hookimpl(wrapper=True, trylast=True)
    def wherry_optimize(self, step: PassStep) -> Generator[None, object, object]:
        return (yield from self._check("wherry_optimize", step.name))

    @hookspecs.hookimpl(wrapper=True, trylast=True)
    def wherry_calibrate(self, target: Target) -> Generator[None, object, object]:
        return (yield from self._check("wherry_calibrate", target.backend))

    @hookspecs.hookimpl(wrapper=True, trylast=True)
    def wherry_convert(self, target: Target) -> Generator[None, object, object]:
        return (yield from self._check("wherry_convert", target.backend))

    @hookspecs.hookimpl(wrapper=True, trylast=True)
    def wherry_profile(self, target: Target) -> Generator[None, object, object]:
        return (yield from self._check("wherry_profile", target.backend))

    def _check(self, hook: str, name: str) -> Generator[None, object, object]:
        worker = self._host.worker(hook, name)
        _, expected = STAGES[hook]
        try:
            result = yield
        except WherryError:
            raise
        except Exception as error:
            raise PluginError(
                f"{hook} of the plugin {worker} raised {_one_line(error)}",
                remedy="Report it to the plugin's authors.",
            ) from error
        if not isinstance(result, expected):
            raise PluginError(
                f"{hook} of the plugin {worker} returned {_an(result)}, "
                f"not {_a(expected.__name__)}",
                remedy="Report it to the plugin's authors.",
            )
        return result


def _word(kind: str) -> str:
    """A kind in the singular, for messages."""
    return {"passes": "the pass", "commands": "the verb"}.get(kind) or f"the {kind.rstrip('s')}"


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def _an(value: object) -> str:
    return "nothing" if value is None else _a(type(value).__name__)


def _one_line(error: BaseException) -> str:
    """An exception's class and words, and the plugin's line that it came from."""
    text = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
    ours = (
        "<frozen",
        __file__,
        str(Path(pluggy.__file__).parent),
        str(Path(importlib.__file__).parent),
    )
    places = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(ours)
    ]
    return f"{text} ({places[-1]})" if places else text

"""Which ONNX operators a backend supports, asked of its tool and runtime on this machine.

A backend answers for operators in general (`Support`); its pre-flight answers for one model, and
is more exact: a form of an operator may be refused that another form of it is not.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from wherry.errors import UsageError
from wherry.wording import counted

if TYPE_CHECKING:
    from wherry.engine.environments import Environments
    from wherry.host import Host
    from wherry.requirements import Requirements
    from wherry.target import Backend

LEVELS = ("yes", "partly", "no")


@dataclass(frozen=True, slots=True)
class Support:
    """What a backend says of an operator.

    Attributes:
        level: ``partly`` where some forms of it are refused.
        reason: what is refused, or what to do instead, a sentence; empty for ``yes``.
    """

    level: Literal["yes", "partly", "no"]
    reason: str = ""


class Asking(Protocol):
    """What a backend may use to answer."""

    def run_tool(
        self, script: Path, request: Mapping[str, Any], *, requirements: Requirements | None
    ) -> dict[str, Any]:
        """As `wherry.context.StepContext.run_tool`."""
        ...


@dataclass(frozen=True)
class Tools:
    """`Asking` on this machine.

    Attributes:
        environments: those of the tools, made on first use.
        folder: an empty one.
    """

    environments: Environments
    folder: Path

    def run_tool(
        self, script: Path, request: Mapping[str, Any], *, requirements: Requirements | None
    ) -> dict[str, Any]:
        """See `Asking`."""
        from wherry.engine.worker import Limits, run_tool

        python = Path(sys.executable)
        if requirements is not None:
            python = self.environments.ensure(requirements)
        scratch = Path(tempfile.mkdtemp(dir=self.folder))
        log = scratch / "log"
        return run_tool(python, script, request, scratch=scratch, log=log, limits=Limits())


def ask(host: Host, backends: Iterable[str] | None = None) -> Mapping[str, Mapping[str, Support]]:
    """What each backend says of every operator that it knows of.

    Args:
        host: the loaded plugins.
        backends: their names; None: all that can tell.

    Returns:
        Backend to operator to its support; operators that are missing are not supported.

    Raises:
        EnvironmentError_: a tool's environment cannot be made.
    """
    from wherry.engine.environments import Environments
    from wherry.home import home

    found: dict[str, Mapping[str, Support]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tools = Tools(Environments(home(), threading.Event()), Path(folder))
        for backend in _chosen(host, backends):
            if backend.operators is not None:
                found[backend.name] = backend.operators(tools)
    return found


def ask_for(
    host: Host, path: Path, backends: Iterable[str] | None = None
) -> Mapping[str, Mapping[str, Support]]:
    """What each backend's pre-flight says of the operators in a model.

    Args:
        host: the loaded plugins.
        path: an ONNX file; leading axes without a number are 1.
        backends: as for `ask`.

    Returns:
        Backend to each operator in the model.

    Raises:
        ModelError: it is no model, or has other axes without a number.
    """
    from wherry.model import Model
    from wherry.target import Target

    found: dict[str, dict[str, Support]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Model.load(path).with_static_shapes({}, Path(folder))
        for backend in _chosen(host, backends):
            target = Target(backend.name, backend.precisions[0], "local", backend.options())
            row = {name: Support("yes") for name in model.operators()}
            for problem in backend.preflight(model, target):
                nodes = model.operators().get(problem.op_type, ())
                every = len(nodes) <= problem.count
                where = f"{counted(problem.count, 'node')}, first {problem.node!r}"
                reason = f"{where}: {problem.remedy}"
                row[problem.op_type] = Support("no" if every else "partly", reason)
            found[backend.name] = row
    return found


def _chosen(host: Host, names: Iterable[str] | None) -> list[Backend]:
    if names is None:
        return list(host.backends.values())
    for name in names:
        if name not in host.backends:
            raise UsageError(
                f"there is no backend {name!r}",
                remedy=f"There are {', '.join(host.backends)}.",
            )
    return [host.backends[name] for name in names]

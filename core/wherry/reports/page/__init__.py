"""The parts of our pages: templates, style and scripts, which the report and other pages share.

`page` renders one of the templates as a file that opens offline: style, scripts and data are in it,
and its policy lets nothing else run, and nothing be loaded.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from wherry.reports import words

if TYPE_CHECKING:
    from jinja2 import Environment

SCRIPTS = ("theme", "table", "charts", "pareto", "latency", "board", "layers", "report")
"""The files that make up our script, in their order: one function's body, so none is a global."""


def page(template: str, data: Mapping[str, Any], *, library: str | None, **names: Any) -> str:
    """A page whole.

    Args:
        template: its file in ``templates``; it extends ``base.html``.
        data: what the script reads, as JSON.
        library: the charts' JavaScript (`charts.library`); None: it is not installed. It is packed
            in the page, which halves most reports; `charts.js` unpacks it.
        names: what the template shows; every text is cleaned and escaped there.
    """
    packed = None
    if library is not None:
        packed = base64.b64encode(gzip.compress(library.encode(), mtime=0)).decode()
    return (
        environment()
        .get_template(template)
        .render(
            **names,
            frame="file.html",
            data=cleaned(data),
            style=style(),
            script=script(),
            library=packed,
            policy=policy([script(), *([] if library is None else [library])], style()),
        )
    )


def policy(scripts: list[str], sheet: str) -> str:
    """The Content-Security-Policy by which these run, and nothing else does."""
    allowed = " ".join(_source(text) for text in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_source(sheet)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def style() -> str:
    """The style sheet."""
    return part("style.css")


@cache
def script() -> str:
    """Our script."""
    return scoped([part(f"{name}.js") for name in SCRIPTS])


def scoped(parts: Iterable[str]) -> str:
    """Scripts as one function's body."""
    body = "\n".join(parts)
    return f'(() => {{\n"use strict";\n{body}\n}})();\n'


def part(name: str) -> str:
    """A file of this folder."""
    return (resources.files(__name__) / name).read_text(encoding="utf-8")


def cleaned(value: Any) -> Any:
    """JSON values in which no text can do harm: see `words.clean`."""
    if isinstance(value, str):
        return words.clean(value)
    if isinstance(value, Mapping):
        return {words.clean(key): cleaned(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(inner) for inner in value]
    return value


@cache
def environment(*packages: str) -> Environment:
    """The templates; what they show is cleaned and escaped.

    Args:
        packages: others that have a folder ``templates``.
    """
    import jinja2

    def finalize(value: Any) -> Any:
        made_here = hasattr(value, "__html__")  # by a macro of the template
        return words.clean(value) if isinstance(value, str) and not made_here else value

    found = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (__name__, *packages)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return found

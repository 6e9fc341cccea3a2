"""The pages as HTML: our templates in the look of the report, and the files that they load."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

from starlette.responses import HTMLResponse, Response

from wherry.reports import page as shared
from wherry.reports import words
from wherry.reports.page import charts
from wherry.serve.guard import Session

if TYPE_CHECKING:
    import jinja2
    from starlette.requests import Request

    from wherry.reports import RunRecord
    from wherry.serve.site import Site

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 -4 28 28">'
    '<path d="M1 12h24l-4 6H6z" fill="#56606b"/><path d="M12 1v9H4z" fill="#0b62c4"/>'
    '<path d="M14 3v7h7z" fill="#9fabb6"/></svg>'
)
_JAVASCRIPT, _CSS = "text/javascript; charset=utf-8", "text/css; charset=utf-8"


@dataclass(frozen=True)
class File:
    """A file that pages load: its address has a hash of it, so that browsers may keep it."""

    body: bytes
    kind: str

    @functools.cached_property
    def version(self) -> str:
        """Of the address."""
        return hashlib.sha256(self.body).hexdigest()[:16]


@functools.cache
def static() -> Mapping[str, File]:
    """The files by their names."""
    own = (resources.files(__package__) / "site.css").read_text(encoding="utf-8")
    found = {
        "style.css": File((shared.style() + own).encode(), _CSS),
        "icon.svg": File(_ICON.encode(), "image/svg+xml"),
        "report.js": File(shared.script().encode(), _JAVASCRIPT),
        "site.js": File(_script().encode(), _JAVASCRIPT),
    }
    library = charts.library()
    if library is not None:
        found["charts.js"] = File(library.encode(), _JAVASCRIPT)
    return found


def _script() -> str:
    own = [(f"{name}.js", resources.files(__package__)) for name in ("trend", "live", "site")]
    parts = [shared.part(f"{name}.js") for name in ("theme", "table", "charts")]
    parts += [(folder / name).read_text(encoding="utf-8") for name, folder in own]
    return shared.scoped(parts)


@functools.cache
def _environment() -> jinja2.Environment:
    found = shared.environment(__package__)
    found.filters["when"] = _when
    found.filters["path"] = lambda text: text.rpartition("/")[2] or text
    return found


def _when(text: str | None) -> str:
    """``2026-11-24 04:05``, in UTC."""
    return "-" if text is None else f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}"


def html(
    request: Request,
    template: str,
    *,
    status: int = 200,
    data: Mapping[str, Any] | None = None,
    scripts: tuple[str, ...] = ("site.js",),
    **names: Any,
) -> Response:
    """A page.

    Args:
        request: that it answers.
        template: its file.
        status: of the answer.
        data: what the script reads.
        scripts: names of `static` that it loads; those that are not there are left out.
        names: what the template shows; every text is cleaned and escaped there.
    """
    site: Site = request.app.state.site
    session = site.keeper.session(request)
    files = static()
    text = (
        _environment()
        .get_template(template)
        .render(
            **{"library": None, "words": words, **names},
            frame="site.html",
            data=shared.cleaned(data or {}),
            style=_address("style.css"),
            icon=_address("icon.svg"),
            scripts=[_address(name) for name in scripts if name in files],
            session=session,
            told=_told(session),
            has_token=site.keeper.has_token,
            here=request.url.path,
        )
    )
    return HTMLResponse(text, status)


def _address(name: str) -> str:
    return f"/static/{static()[name].version}/{name}"


def _told(session: Session | None) -> str:
    """What the session has to be told, once."""
    if session is None:
        return ""
    text, session.told = session.told, ""
    return text


def report(request: Request, record: RunRecord, *, before: str | None) -> Response:
    """A run: its report within the site's frame; ``before`` is the id of the one before."""
    from wherry.records.rows import target_key
    from wherry.reports.html import parts

    data, names = parts(record)
    keys = [(each["name"], target_key(each)) for each in record.values["results"]]
    scripts = ("charts.js", "report.js")
    return html(
        request, "run.html", data=data, scripts=scripts, targets=keys, before=before, **names
    )


def trend(request: Request, found: Mapping[str, Any], query: Mapping[str, str]) -> Response:
    """A figure of a target over time."""
    metric = found["metric"]
    unit = {"latency.median_ms": "ms", "energy_mj": "mJ"}.get(metric, "")
    points, rows = [], []
    last: dict[str, Any] = {}  # by manifest: another one's target is of another network
    for each in found["points"]:
        before = last.get(each["manifest"])
        other = before is not None and each["model"] not in {None, before["model"]}
        text = _figure_text(metric, each["value"])
        point = {**each, "text": text, "another_model": other}
        points.append(point)
        rows.append({**point, "before": before})
        if point["value"] is not None:
            last[each["manifest"]] = point
    return html(
        request,
        "trend.html",
        data={**found, "points": points, "unit": unit},
        scripts=("charts.js", "site.js"),
        rows=rows[::-1],
        library="charts.js" in static(),
        manifests=len({point["manifest"] for point in points}),
        query=query,
        **found,
    )


def _figure_text(metric: str, value: float | None) -> str:
    if metric == "latency.median_ms":
        return words.ms_text(value)
    if metric.endswith("_bytes"):
        return words.bytes_text(None if value is None else round(value))
    if metric == "energy_mj":
        return words.energy_text(value)
    return words.metric_text(value)


def comparison(request: Request, found: Mapping[str, Any] | None, **names: Any) -> Response:
    """Two runs side by side, or the form that asks which."""
    from wherry.reports import comparison_words as said

    kinds = {"worse": "bad", "better": "good", "same": "plain", "not comparable": "warn"}
    return html(request, "compare.html", comparison=found, said=said, kinds=kinds, **names)

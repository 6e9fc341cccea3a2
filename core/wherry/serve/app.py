"""The application: which address gives what, as HTML or JSON, and how errors are told."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from wherry.errors import UsageError, WherryError
from wherry.reports.words import one_line
from wherry.serve import actions, pages, views
from wherry.serve.guard import COOKIE, Guarded, has_proof
from wherry.serve.refusals import Refusal, remedy_of
from wherry.serve.site import Site

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_log = logging.getLogger(__name__)
_MOST_BODY = 64 * 1024
_SEE_OTHER = 303
_PROBLEMS = (HTTPException, WherryError)


def make_app(site: Site, hosts: Collection[str] = ()) -> ASGIApp:
    """The pages over a site.

    Args:
        site: what they show.
        hosts: names by which the server is called (`wherry.serve.guard.Guarded`).
    """
    app = Starlette(routes=_routes(), exception_handlers=dict.fromkeys(_PROBLEMS, _problem))
    app.state.site = site
    return Guarded(app, hosts)


def _routes() -> list[Route]:
    return [
        Route("/", _runs),
        Route("/live", _live),
        Route("/runs", lambda _request: RedirectResponse("/")),
        Route("/runs/{run}", _run),
        Route("/runs/{run}/live", _live_run),
        Route("/runs/{run}/report.html", _file),
        Route("/runs/{run}/tag", _tag, methods=["POST"]),
        Route("/runs/{run}/delete", _delete, methods=["POST"]),
        Route("/targets", _targets),
        Route("/targets/{key}", _trend),
        Route("/compare", _compare),
        Route("/boards", _boards),
        Route("/boards/probe", _probe, methods=["POST"]),
        Route("/sign-in", _sign_in_page),
        Route("/sign-in", _sign_in, methods=["POST"]),
        Route("/sign-out", _sign_out, methods=["POST"]),
        Route("/static/{version}/{name}", _static),
        Route("/api/runs", _answer(views.runs)),
        Route("/api/runs/{run}", _answer(lambda site, _query, run: site.records.load(run).values)),
        Route("/api/runs/{run}", _api_delete, methods=["DELETE"]),
        Route("/api/runs/{run}/tag", _api_tag, methods=["POST"]),
        Route("/api/live", _answer(views.live)),
        Route("/api/live/{run}", _answer(lambda site, _query, run: views.live_run(site, run))),
        Route("/api/targets", _answer(views.targets)),
        Route(
            "/api/targets/{key}", _answer(lambda site, query, key: views.trend(site, key, query))
        ),
        Route("/api/compare", _answer(views.compare)),
        Route("/api/boards", _answer(views.boards)),
        Route("/api/boards/{name}/probe", _api_probe, methods=["POST"]),
    ]


# pages


def _site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


def _runs(request: Request) -> Response:
    site, query = _site(request), request.query_params
    asked = {key: value for key, value in query.items() if value and key != "before"}
    found = views.runs(site, query)
    following = urlencode({**asked, "before": found["next"]}) if found["next"] else None
    return pages.html(
        request, "runs.html", **found, live=views.live(site, {})["runs"], query=query,
        asked={key for key in asked if key != "limit"}, following=following,
    )  # fmt: skip


def _live(request: Request) -> Response:
    return pages.html(request, "live.html", live=views.live(_site(request), {})["runs"])


def _run(request: Request) -> Response:
    site, name = _site(request), request.path_params["run"]
    progress = site.progress(name)
    if progress is not None and progress.state == "running":
        return pages.html(request, "running.html", run=views.progress_values(progress))
    try:
        run_id = site.records.find(name)
    except UsageError:
        if progress is None:
            raise
        return pages.html(request, "running.html", run=views.progress_values(progress))
    if run_id != name:
        return RedirectResponse(f"/runs/{run_id}", _SEE_OTHER)
    record = site.records.load(run_id)
    manifest = record.values["manifest"]
    before = site.records.runs(1, before=run_id, manifest=manifest)
    return pages.report(request, record, before=before[0].run_id if before else None)


def _live_run(request: Request) -> Response:
    run = views.live_run(_site(request), request.path_params["run"])
    return pages.html(request, "steps.html", run=run)


def _file(request: Request) -> Response:
    """The report as one file that opens offline: to keep, never to show as a page of ours."""
    from wherry.reports.html import render

    record = _site(request).records.load(request.path_params["run"])
    name = f'attachment; filename="wherry-{record.values["run_id"]}.html"'
    return Response(render(record), media_type="text/html", headers={"content-disposition": name})


def _targets(request: Request) -> Response:
    query = request.query_params
    return pages.html(request, "targets.html", **views.targets(_site(request), query), query=query)


def _trend(request: Request) -> Response:
    query = request.query_params
    found = views.trend(_site(request), request.path_params["key"], query)
    return pages.trend(request, found, query)


def _compare(request: Request) -> Response:
    site, query = _site(request), request.query_params
    recent = views.runs(site, {"limit": "200"})["runs"]
    asked = {side: query.get(side, "") for side in ("base", "new")}
    found = views.compare(site, query) if all(asked.values()) else None
    return pages.comparison(request, found, asked=asked, recent=recent)


def _boards(request: Request) -> Response:
    return pages.html(request, "boards.html", **views.boards(_site(request), {}))


def _static(request: Request) -> Response:
    wanted = request.path_params
    found = pages.static().get(wanted["name"])
    if found is None or found.version != wanted["version"]:
        raise Refusal(404, "there is no such file", "Load the page anew.")
    kept = {"cache-control": "public, max-age=31536000, immutable"}
    return Response(found.body, media_type=found.kind, headers=kept)


# what needs the token, by forms


def _sign_in_page(request: Request) -> Response:
    return pages.html(request, "sign-in.html", wrong=False)


async def _sign_in(request: Request) -> Response:
    form = await _form(request)
    value = _site(request).keeper.sign_in(form.get("token", ""))
    if value is None:
        who = request.client.host if request.client else "somebody"
        _log.warning("%s has shown a wrong token", who)
        return pages.html(request, "sign-in.html", status=403, wrong=True)
    answer = RedirectResponse("/", _SEE_OTHER)
    answer.set_cookie(
        COOKIE, value, httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )
    return answer


async def _sign_out(request: Request) -> Response:
    await _signed(request)
    _site(request).keeper.sign_out(request)
    answer = RedirectResponse("/", _SEE_OTHER)
    answer.delete_cookie(COOKIE)
    return answer


async def _tag(request: Request) -> Response:
    form = await _signed(request)
    site, text = _site(request), form.get("tag", "").strip()
    run_id = await run_in_threadpool(actions.tag, site, request.path_params["run"], text)
    _tell(request, f"The run has the tag {text} now." if text else "The run has no tag now.")
    return RedirectResponse(f"/runs/{run_id}", _SEE_OTHER)


async def _delete(request: Request) -> Response:
    form = await _signed(request)
    if form.get("sure") != "yes":
        raise Refusal(400, "there is no way back", "Say that you are sure.")
    run_id = await run_in_threadpool(actions.delete, _site(request), request.path_params["run"])
    _tell(request, f"The run {run_id} is deleted.")
    return RedirectResponse("/", _SEE_OTHER)


async def _probe(request: Request) -> Response:
    form = await _signed(request)
    name = form.get("name", "")
    found = await run_in_threadpool(actions.probe, _site(request), name)
    _tell(request, f"{name} cannot be reached." if "error" in found else f"{name} was probed.")
    return RedirectResponse("/boards", _SEE_OTHER)


async def _form(request: Request) -> dict[str, str]:
    body = (await _body(request)).decode("utf-8", "replace")
    try:
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=20))
    except ValueError:
        raise Refusal(
            400, "this form has more fields than any of ours", "Send the page's own form."
        ) from None


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BODY:
            raise Refusal(
                413,
                "that is more than is taken here",
                f"A body has at most {_MOST_BODY // 1024} KiB.",
            )
    return body


async def _signed(request: Request) -> dict[str, str]:
    """The form, of who has signed in, made by us."""
    form = await _form(request)
    session = _site(request).keeper.session(request)
    if session is None:
        raise Refusal(403, "this changes something", "Sign in first.")
    if not has_proof(session, form.get("proof", "")):
        raise Refusal(403, "this form is not of your session", "Load the page again.")
    return form


def _tell(request: Request, text: str) -> None:
    session = _site(request).keeper.session(request)
    if session is not None:
        session.told = text


# the same for scripts


class _Json(JSONResponse):
    """In ASCII: names of files may hold halves of pairs, which UTF-8 cannot say."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def _answer(view: Callable[..., Any]) -> Callable[[Request], Response]:
    """The values of a view as JSON."""

    def answer(request: Request) -> Response:
        return _Json(view(_site(request), request.query_params, **request.path_params))

    return answer


def _borne(request: Request) -> None:
    keeper = _site(request).keeper
    if not keeper.bears_token(request):
        send = "Send the header `Authorization: Bearer TOKEN`, with the server's token."
        start = "Start the server with a token: `wherry serve --token-file FILE`."
        raise Refusal(
            401,
            "this takes the token" if keeper.has_token else "this server has no token",
            send if keeper.has_token else start,
            {"www-authenticate": "Bearer"},
        )


async def _api_tag(request: Request) -> Response:
    _borne(request)
    try:
        tag = json.loads(await _body(request))["tag"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Refusal(
            400, "the body is no JSON with a tag", 'Send {"tag": "TEXT"}, or null for none.'
        ) from None
    if tag is not None and not isinstance(tag, str):
        raise Refusal(400, "this tag is no text", 'Send {"tag": "TEXT"}, or null for none.')
    run_id = await run_in_threadpool(actions.tag, _site(request), request.path_params["run"], tag)
    return _Json({"run_id": run_id, "tag": tag or None})


def _api_delete(request: Request) -> Response:
    _borne(request)
    return _Json({"run_id": actions.delete(_site(request), request.path_params["run"])})


def _api_probe(request: Request) -> Response:
    _borne(request)
    return _Json(actions.probe(_site(request), request.path_params["name"]))


def _problem(request: Request, error: Exception) -> Response:
    """What is wrong, and what to do, as a page or as JSON."""
    headers = None
    if isinstance(error, HTTPException):
        status, message, headers = error.status_code, error.detail, error.headers
        remedy: str | None = remedy_of(error)
    else:
        assert isinstance(error, WherryError)
        status = 404 if isinstance(error, UsageError) else 503
        message = f"{error.where}: {error.message}" if error.where else error.message
        remedy = error.remedy
    if request.url.path.startswith("/api/"):
        values = {"error": message, "remedy": remedy}
        return _Json(values, status, headers=headers)
    found = pages.html(
        request,
        "problem.html",
        status=status,
        code=status,
        message=one_line(message),
        remedy=remedy,
    )
    found.headers.update(headers or {})
    return found

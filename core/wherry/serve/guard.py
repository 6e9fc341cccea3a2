"""What keeps strangers off the pages: hosts, origins, headers, the token, and who has signed in.

- A request must name a host that is ours: else a stranger's page could have its own name point here
  (DNS rebinding) and read along. An address is no name that somebody could point elsewhere.
- What changes something must come from our own pages, or from no page at all (a script).
- Every answer says that nothing but our own files may run in it, and that no page may frame it.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse

from wherry.errors import UsageError
from wherry.serve.refusals import Refusal

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "wherry-session"
LEAST_TOKEN = 16
"""Characters of a token: 16 of an alphabet of 64 cannot be tried out."""
_SESSION_S = 12 * 3600
_MOST_SESSIONS = 1000
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guarded:
    """An application behind these rules.

    Args:
        app: the application.
        hosts: names by which this server is called, besides ``localhost`` and any address.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; see the ASGI specification."""
        if scope["type"] != "http":  # there are no websockets here, and the lifespan is harmless
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        refused = self._refused(scope["method"], headers)
        answer: ASGIApp = self._app
        if refused is not None and scope["path"].startswith("/api/"):
            values = {"error": refused.detail, "remedy": refused.remedy}
            answer = JSONResponse(values, refused.status_code)
        elif refused is not None:
            text = f"{refused.detail}. {refused.remedy}\n"
            answer = PlainTextResponse(text[0].upper() + text[1:], refused.status_code)
        await answer(scope, receive, sending)

    def _refused(self, method: str, headers: Headers) -> Refusal | None:
        """Why a request is not to be answered; None: it is."""
        host = headers.get("host", "")
        if not self._is_ours(host):
            return Refusal(
                400,
                "this server is not called so",
                "`wherry serve --allow-host NAME` allows a name; an address needs none.",
            )
        if method in _SAFE:
            return None
        origin = headers.get("origin")
        own = origin is None or urlsplit(origin).netloc.lower() == host.lower()
        if not own or headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}:
            return Refusal(
                403,
                "this did not come from a page of this server",
                "Send it from one, or from a script, without the headers of a browser.",
            )
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name.rstrip(".") in self._hosts or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


@dataclass
class Session:
    """Somebody who has shown the token.

    Attributes:
        proof: stands in the forms that are theirs.
        ends: by `time.monotonic`.
        told: what the next page says once.
    """

    proof: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    ends: float = field(default_factory=lambda: time.monotonic() + _SESSION_S)
    told: str = ""


class Keeper:
    """Knows the token, and who has shown it. Sessions end with the server.

    Args:
        token: what changes need; None: nothing can be changed.

    Raises:
        UsageError: the token could be guessed.
    """

    def __init__(self, token: str | None) -> None:
        if token is not None and len(token) < LEAST_TOKEN:
            raise UsageError(
                f"the token has {len(token)} characters, and a safe one at least {LEAST_TOKEN}",
                remedy="Make one: python -c 'import secrets; print(secrets.token_urlsafe())'.",
            )
        self._digest = None if token is None else _digest(token)
        self._sessions: dict[bytes, Session] = {}
        self._lock = threading.Lock()

    @property
    def has_token(self) -> bool:
        """Whether anything can be changed at all."""
        return self._digest is not None

    def is_token(self, shown: str) -> bool:
        """Whether it is the token; takes the same time for all of them."""
        return self._digest is not None and hmac.compare_digest(_digest(shown), self._digest)

    def sign_in(self, shown: str) -> str | None:
        """The cookie's value for who shows the token; None: it is another."""
        if not self.is_token(shown):
            return None
        value = secrets.token_urlsafe(32)
        with self._lock:
            now = time.monotonic()
            alive = {key: each for key, each in self._sessions.items() if each.ends > now}
            newest = list(alive.items())[1 - _MOST_SESSIONS :]
            self._sessions = {**dict(newest), _digest(value): Session()}
        return value

    def sign_out(self, request: Request) -> None:
        """End the session that a request belongs to."""
        with self._lock:
            self._sessions.pop(_digest(request.cookies.get(COOKIE, "")), None)

    def session(self, request: Request) -> Session | None:
        """The session that a request belongs to, by its cookie."""
        with self._lock:
            found = self._sessions.get(_digest(request.cookies.get(COOKIE, "")))
        return found if found is not None and found.ends > time.monotonic() else None

    def bears_token(self, request: Request) -> bool:
        """Whether a script's request has the header ``Authorization: Bearer TOKEN``."""
        kind, _, shown = request.headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and self.is_token(shown.strip())


def has_proof(session: Session | None, proof: str) -> bool:
    """Whether a form is one that we gave to this session."""
    return session is not None and hmac.compare_digest(_digest(proof), _digest(session.proof))


@functools.cache
def _salt() -> bytes:
    return secrets.token_bytes(32)


def _digest(text: str) -> bytes:
    """Of equal length for all texts, so that comparing two takes the same time."""
    return hmac.new(_salt(), text.encode("utf-8", "surrogateescape"), hashlib.sha256).digest()

"""What a request is refused with: a status, what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException


class Refusal(HTTPException):
    """A request that cannot be answered as it is.

    Args:
        status: of the answer.
        message: what was asked, and what is wrong with it.
        remedy: what to do, as a sentence.
        headers: of the answer, besides the usual ones.
    """

    def __init__(
        self, status: int, message: str, remedy: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers)
        self.remedy = remedy


def remedy_of(error: HTTPException) -> str:
    """Of a refusal of ours, or of what starlette refuses by itself: an address, a method."""
    if isinstance(error, Refusal):
        return error.remedy
    if error.status_code == _WRONG_METHOD:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"This address takes {allowed}."
    return "The start page leads to all pages; docs/serve.md lists the addresses for scripts."


_WRONG_METHOD = 405

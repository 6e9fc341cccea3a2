"""What a converter's response says instead of a result; it runs in the converter's environment."""

from __future__ import annotations

from typing import Any


class RefusalError(Exception):
    """What the response says instead of a result."""

    def __init__(
        self, message: str, *, where: str = "", remedy: str = "", unsupported: bool = False
    ) -> None:
        super().__init__(message)
        self.error: dict[str, Any] = {"message": message, "unsupported": unsupported}
        if where:
            self.error["where"] = where
        if remedy:
            self.error["remedy"] = remedy

"""What an inventory may say of a device that is reached by SSH."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

_UNSAFE = "'\\!\n\r\0"  # what no quoting hides from every login shell


def _listed(value: Any) -> Any:
    """One file as well as a list of them."""
    return [value] if isinstance(value, str) else value


class SshParameters(BaseModel):
    """``ssh: NAME`` alone means a Host of ``~/.ssh/config``, or a host's name or address."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(
        pattern=r"^[^\s-][^\s]*$",
        description="a Host of ~/.ssh/config, or a host's name or address",
    )
    user: str | None = Field(None, description="to log in as; else of ~/.ssh/config, else yours")
    port: int | None = Field(None, ge=1, le=65535, description="else of ~/.ssh/config, else 22")
    keys: Annotated[tuple[Path, ...], BeforeValidator(_listed)] = Field(
        (), alias="key", description="private key files, tried instead of those of ~/.ssh/config"
    )
    password_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="the environment variable that holds the password; else it is asked for",
    )
    python: str = Field("python3", min_length=1, description="the board's own Python, 3.8 or later")
    root: str = Field("~/.wherry", min_length=1, description="the folder of ours on the board")
    lease: str = Field(
        "/tmp/wherry.lease",  # noqa: S108 -- the one folder that all users of a board can lock in
        min_length=1,
        description="the lease file on the board; whoever uses the board must name the same",
    )
    connect_timeout_s: float | None = Field(
        None, gt=0, description="for the connection and each part of the login; else 15"
    )
    silence_s: float = Field(
        60, gt=0, description="a board, or a host, that is silent for so long is taken for lost"
    )
    limit_s: float = Field(600, gt=0, description="how long one command of the agent may take")
    wait_s: float = Field(600, ge=0, description="how long to wait for the lease")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"host": value} if isinstance(value, str) else value

    @field_validator("keys")
    @classmethod
    def _absolute(cls, keys: tuple[Path, ...]) -> tuple[Path, ...]:
        expanded = tuple(path.expanduser() for path in keys)
        for path in expanded:
            if not path.is_absolute():
                raise ValueError(f"{path} must be absolute or begin with ~")
        return expanded

    @field_validator("python")
    @classmethod
    def _quotable(cls, python: str) -> str:
        if any(sign in python for sign in _UNSAFE) or python.startswith("-"):
            raise ValueError("a path of an interpreter cannot hold quotes, backslashes or !")
        return python

"""Where the records are: ``$WHERRY_RECORDS``, the user's ``records.yaml``, or a file of the home.

A URL may hold a password. It is given to the database's driver and to nobody else: what is shown is
`Place.shown`, and `Place.hide` takes it out of what the driver says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.errors import UsageError
from wherry.home import home

if TYPE_CHECKING:
    from sqlalchemy import URL

VARIABLE = "WHERRY_RECORDS"
CONFIG_FILE = "records.yaml"
DATABASE_FILE = "records.db"
_MASK = "***"
_FORMS = "postgresql://USER@HOST/DATABASE or sqlite:////PATH/FILE.db"


@dataclass(frozen=True)
class Place:
    """A database.

    Attributes:
        shown: its URL without a password, for people.
        file: of SQLite's; None: it is PostgreSQL's.
        url: for SQLAlchemy; None: SQLite's.
    """

    shown: str
    file: Path | None = None
    url: URL | None = field(default=None, repr=False)

    def hide(self, text: str) -> str:
        """What a driver says, without the passwords that the URL holds."""
        if self.url is not None:
            secrets = [self.url.password, *self.url.normalized_query.get("password", ())]
            for secret in secrets:
                if secret:
                    text = text.replace(str(secret), _MASK)
        return text


def find_place(url: str | None = None) -> Place:
    """The database that is meant.

    Args:
        url: ``postgresql://...`` or ``sqlite:///...``; None: what the environment, then the user's
            config says, else ``home()/records.db``.

    Raises:
        UsageError: it is no such URL; it is not told which, as it may hold a password.
    """
    if url is not None:
        return _parse(url, "the URL of the records")
    if named := os.environ.get(VARIABLE):
        return _parse(named, f"${VARIABLE}")
    from wherry.inventory import config_directory

    config = config_directory() / CONFIG_FILE
    if config.is_file():
        return _parse(_configured(config), str(config))
    return _file(home() / DATABASE_FILE)


def _file(path: Path) -> Place:
    return Place(f"sqlite:///{path}", file=path)


def _configured(config: Path) -> str:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        values = YAML(typ="safe", pure=True).load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        # what the parser quotes may hold a password
        raise UsageError(
            f"it cannot be read as YAML ({type(error).__name__})",
            where=str(config),
            remedy=f"It is one line, `url: {_FORMS}`.",
        ) from None
    if not isinstance(values, dict) or set(values) != {"url"} or not isinstance(values["url"], str):
        raise UsageError(
            "it does not say where the records are",
            where=str(config),
            remedy=f"It is one line, `url: {_FORMS}`.",
        )
    return values["url"]


def _parse(text: str, where: str) -> Place:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
        kind = url.drivername.partition("+")[0]
    except (ArgumentError, ValueError):
        kind = ""
    if kind in {"postgresql", "postgres"}:
        return Place(_shown(url), url=url.set(drivername="postgresql+psycopg"))
    if kind == "sqlite" and url.database not in {None, "", ":memory:"} and not url.query:
        return _file(Path(str(url.database)).expanduser().absolute())
    raise UsageError(
        "it is no URL of a database that wherry knows", where=where, remedy=f"Write {_FORMS}."
    )


def _shown(url: URL) -> str:
    user = f"{url.username}@" if url.username else ""
    port = f":{url.port}" if url.port else ""
    return f"postgresql://{user}{url.host or ''}{port}/{url.database or ''}"

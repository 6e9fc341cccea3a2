"""The user's settings of the package index, for pip: those made for uv serve it as well.

pip finds and fetches the wheels of boards, uv those of the host, and both have to ask the same
index. pip's own variables come first, then uv's, then the user's ``uv.toml``, then ``pip.conf``.
What pip cannot do, and what would change the choice, is refused.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from wherry.errors import EnvironmentError_

_LIMIT = "UV_EXCLUDE_NEWER"  # no pip that runs on Python 3.8 has such a setting
_TRUE = {"1", "true", "t", "yes", "y", "on"}
# Of uv.toml: what stands in lists there, with what separates them in the variable.
_SETTINGS = {
    "index-url": ("UV_INDEX_URL", " "),
    "extra-index-url": ("UV_EXTRA_INDEX_URL", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "offline": ("UV_OFFLINE", " "),
    "keyring-provider": ("UV_KEYRING_PROVIDER", " "),
    "allow-insecure-host": ("UV_INSECURE_HOST", " "),
    "exclude-newer": (_LIMIT, " "),
}


def variables() -> dict[str, str]:
    """The variables that pip runs with.

    Raises:
        EnvironmentError_: the user's uv.toml cannot be read.
    """
    given = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    uv = (given, _configured())
    translated = {
        "PIP_INDEX_URL": _indexes(uv, "UV_DEFAULT_INDEX", "UV_INDEX_URL"),
        "PIP_EXTRA_INDEX_URL": _indexes(uv, "UV_INDEX", "UV_EXTRA_INDEX_URL"),
        "PIP_FIND_LINKS": " ".join(map(_link, _words(_first(uv, "UV_FIND_LINKS"), ","))),
        "PIP_TRUSTED_HOST": re.sub(r"\S+://", "", _first(uv, "UV_INSECURE_HOST")),
        "PIP_KEYRING_PROVIDER": _first(uv, "UV_KEYRING_PROVIDER"),
        "PIP_NO_INDEX": "1" if _is_true(_first(uv, "UV_NO_INDEX")) else "",
        "PIP_CERT": _file(_first(uv, "SSL_CERT_FILE")),
        "PIP_CLIENT_CERT": _file(_first(uv, "SSL_CLIENT_CERT")),
    }
    for name, value in translated.items():
        if value and not given.get(name):
            given[name] = value
    if is_offline():
        given["PIP_NO_INDEX"] = "1"
        links = given.get("PIP_FIND_LINKS", "").split()
        given["PIP_FIND_LINKS"] = " ".join(link for link in links if _is_here(link))
    return given


def is_offline() -> bool:
    """Whether the user has told uv to leave the network alone."""
    return _is_true(_first((os.environ, _configured()), "UV_OFFLINE"))


def refuse_limit() -> None:
    """Raise `EnvironmentError_` where the user's settings of uv would make another choice."""
    limit = _first((os.environ, _configured()), _LIMIT)
    if limit:
        raise EnvironmentError_(
            f"{_LIMIT} is {limit}, and pip, which chooses wheels for boards, knows no such limit",
            remedy=f"Unset {_LIMIT} once: what is chosen for a board is locked, and stays.",
        )


def _configured() -> dict[str, str]:
    """What uv.toml says, as the variables that say the same."""
    path = _file_of_uv()
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EnvironmentError_(
            f"uv's settings cannot be read: {error}", where=str(path), remedy="Mend that file."
        ) from error
    found: dict[str, str] = {}
    for table in (settings, settings.get("pip", {})):
        for index in table.get("index", []):
            variable = "UV_DEFAULT_INDEX" if index.get("default") else "UV_INDEX"
            entry = f"{index['name']}={index['url']}" if "name" in index else index["url"]
            if not index.get("explicit"):  # else only packages that a project assigns to it
                found[variable] = f"{found.get(variable, '')} {entry}".strip()
        for key, (variable, separator) in _SETTINGS.items():
            if key in table:
                found[variable] = separator.join(_texts(table[key]))
    return found


def _file_of_uv() -> Path:
    named = os.environ.get("UV_CONFIG_FILE")
    if named:
        return Path(named)
    folders = [os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "/etc"]
    files = [Path(folder, "uv", "uv.toml") for folder in folders]
    return next((file for file in files if file.exists()), files[0])


def _texts(value: Any) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list) else [value])]


def _first(sources: tuple[Mapping[str, str], ...], *names: str) -> str:
    """The first of the variables that is set, in the first source that has one."""
    return next((source[name] for source in sources for name in names if source.get(name)), "")


def _indexes(sources: tuple[Mapping[str, str], ...], *names: str) -> str:
    return " ".join(map(_index, _first(sources, *names).split()))


def _index(entry: str) -> str:
    """The URL of ``NAME=URL``, with the user and password that variables give for that name."""
    named = re.fullmatch(r"([A-Za-z0-9._-]+)=(.*)", entry)
    if named is None:
        return entry
    about = f"UV_INDEX_{re.sub('[^A-Z0-9]', '_', named[1].upper())}"
    user, password = (os.environ.get(f"{about}_{what}") for what in ("USERNAME", "PASSWORD"))
    url = urlsplit(named[2])
    if not user or url.username:
        return named[2]
    who = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    return urlunsplit(url._replace(netloc=f"{who}@{url.netloc}"))


def _words(text: str, separator: str) -> list[str]:
    return [word.strip() for word in text.split(separator) if word.strip()]


def _link(place: str) -> str:
    """A folder with spaces in its name as a URL: in pip's variable they separate places."""
    return Path(place).absolute().as_uri() if " " in place and "://" not in place else place


def _is_here(link: str) -> bool:
    return "://" not in link or link.startswith("file:")


def _is_true(text: str) -> bool:
    return text.strip().lower() in _TRUE


def _file(path: str) -> str:
    """What is not there would stop pip, and uv passes it over."""
    return path if Path(path).is_file() else ""

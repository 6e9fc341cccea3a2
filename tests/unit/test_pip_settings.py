"""Which package index pip asks for boards: settings made for pip, for uv, and in uv.toml."""

from __future__ import annotations

import os

import pytest

from wherry.engine import pip_settings
from wherry.errors import EnvironmentError_


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    """No settings but a test's own: ``settings(text)`` writes uv.toml."""
    for name in os.environ:
        if name.startswith(("UV_", "PIP_", "SSL_")):
            monkeypatch.delenv(name)
    file = tmp_path / "config" / "uv" / "uv.toml"
    file.parent.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    file.write_text("", encoding="utf-8")
    return lambda text: file.write_text(text, encoding="utf-8")


def found(monkeypatch, **variables):
    """What pip is given of pip's own variables."""
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        given = pip_settings.variables()
    return {name[4:]: value for name, value in given.items() if name.startswith("PIP_")}


def test_without_settings_pip_is_told_nothing(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/absent")
    assert found(monkeypatch) == {}
    assert "PYTHONPATH" not in pip_settings.variables()
    assert not pip_settings.is_offline()
    pip_settings.refuse_limit()


def test_newer_names_come_before_older_and_pips_own_before_both(monkeypatch):
    old = {"UV_INDEX_URL": "https://old/s", "UV_EXTRA_INDEX_URL": "https://more/s https://most/s"}
    assert found(monkeypatch, **old) == {
        "INDEX_URL": "https://old/s",
        "EXTRA_INDEX_URL": "https://more/s https://most/s",
    }
    new = {**old, "UV_DEFAULT_INDEX": "https://new/s"}
    assert found(monkeypatch, **new)["INDEX_URL"] == "https://new/s"
    own = {**new, "PIP_INDEX_URL": "https://own/s"}
    assert found(monkeypatch, **own)["INDEX_URL"] == "https://own/s"


def test_names_of_indexes_become_their_credentials(monkeypatch):
    variables = {
        "UV_DEFAULT_INDEX": "main=https://main.example/s?a=b",
        "UV_INDEX": "our-own=https://own.example:8080/s  https://plain.example/s",
        "UV_INDEX_OUR_OWN_USERNAME": "me@work",
        "UV_INDEX_OUR_OWN_PASSWORD": "p/w",
    }
    assert found(monkeypatch, **variables) == {
        "INDEX_URL": "https://main.example/s?a=b",
        "EXTRA_INDEX_URL": "https://me%40work:p%2Fw@own.example:8080/s https://plain.example/s",
    }


def test_folders_hosts_keyrings_and_certificates(monkeypatch, tmp_path):
    certificates = tmp_path / "ca.pem"
    certificates.touch()
    variables = {
        "UV_FIND_LINKS": f"{tmp_path}/a b, /plain,https://links.example/x",
        "UV_INSECURE_HOST": "https://one.example two.example:8080",
        "UV_KEYRING_PROVIDER": "subprocess",
        "UV_NO_INDEX": "true",
        "SSL_CERT_FILE": str(certificates),
        "SSL_CLIENT_CERT": str(tmp_path / "absent"),
    }
    assert found(monkeypatch, **variables) == {
        "FIND_LINKS": f"file://{tmp_path}/a%20b /plain https://links.example/x",
        "TRUSTED_HOST": "one.example two.example:8080",
        "KEYRING_PROVIDER": "subprocess",
        "NO_INDEX": "1",
        "CERT": str(certificates),
    }


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("True", True), ("0", False)])
def test_offline_no_index_and_no_page_is_asked(monkeypatch, value, offline):
    variables = {
        "UV_OFFLINE": value,
        "PIP_FIND_LINKS": "/plain https://links.example/x file:///y",
        "UV_DEFAULT_INDEX": "https://main.example/s",
    }
    links = "/plain file:///y" if offline else "/plain https://links.example/x file:///y"
    given = found(monkeypatch, **variables)
    assert given.pop("NO_INDEX", None) == ("1" if offline else None)
    assert given == {"FIND_LINKS": links, "INDEX_URL": "https://main.example/s"}


def test_uv_toml_serves_as_its_variables_do(monkeypatch, settings):
    settings(
        """
        find-links = ["/one", "/two"]
        allow-insecure-host = ["own.example"]
        offline = false
        [[index]]
        name = "own"
        url = "https://own.example/s"
        [[index]]
        url = "https://main.example/s"
        default = true
        [[index]]
        name = "torch"
        url = "https://torch.example/s"
        explicit = true
        """
    )
    assert found(monkeypatch) == {
        "INDEX_URL": "https://main.example/s",
        "EXTRA_INDEX_URL": "https://own.example/s",
        "FIND_LINKS": "/one /two",
        "TRUSTED_HOST": "own.example",
    }
    given = found(monkeypatch, UV_INDEX_URL="https://variable.example/s")
    assert given["INDEX_URL"] == "https://variable.example/s"
    assert found(monkeypatch, UV_CONFIG_FILE="/absent/uv.toml") == {}


def test_the_part_of_uv_toml_for_pip_counts_as_well(monkeypatch, settings):
    settings('[pip]\nindex-url = "https://a/s"\nextra-index-url = ["https://b/s", "https://c/s"]\n')
    assert found(monkeypatch) == {
        "INDEX_URL": "https://a/s",
        "EXTRA_INDEX_URL": "https://b/s https://c/s",
    }


@pytest.mark.parametrize("where", ["variable", "file"])
def test_a_limit_in_time_is_refused(monkeypatch, settings, where):
    if where == "variable":
        monkeypatch.setenv("UV_EXCLUDE_NEWER", "2026-01-01")
    else:
        settings('exclude-newer = "2026-01-01"\n')
    with pytest.raises(EnvironmentError_, match="UV_EXCLUDE_NEWER is 2026-01-01") as caught:
        pip_settings.refuse_limit()
    assert "Unset" in str(caught.value)


def test_a_uv_toml_that_cannot_be_read_is_told(settings):
    settings("index = [")
    with pytest.raises(EnvironmentError_, match=r"uv/uv\.toml: uv's settings cannot be read"):
        pip_settings.variables()

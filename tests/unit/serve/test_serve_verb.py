"""``wherry serve``: what it says before it serves."""

from __future__ import annotations

import importlib.util
import logging

import pytest

from wherry import api
from wherry.errors import UsageError


def test_without_the_extra_it_says_what_brings_it(monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name)
    )
    with pytest.raises(UsageError, match="needs uvicorn") as caught:
        api.serve()
    assert "wherry[serve]" in str(caught.value)


@pytest.mark.parametrize("host", ["x" * 70, "a..b", "no.such.host.invalid"])
def test_an_address_that_cannot_be_listened_on_is_said(host, wherry_home) -> None:
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    with pytest.raises(UsageError, match="cannot be listened on"):
        api.serve(host=host, port=0)


@pytest.mark.parametrize(
    ("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False), ("::1", False)]
)
def test_listening_beyond_this_machine_is_warned_of(monkeypatch, caplog, host, warned) -> None:
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    from wherry.serve import server

    monkeypatch.setattr(server, "run_server", lambda **_: None)
    with caplog.at_level(logging.WARNING):
        api.serve(host=host)
    assert ("can read all records here" in caplog.text) is warned

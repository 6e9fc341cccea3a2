"""The application in process: a site over a small database, and a client for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from record_makers import Makers
from served import TOKEN

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")

from starlette.testclient import TestClient

from wherry.records.database import Records
from wherry.serve.app import make_app
from wherry.serve.guard import Keeper
from wherry.serve.pages import static
from wherry.serve.site import Site


@pytest.fixture(scope="session")
def make():
    """``make.result``, ``make.record``, ``make.gate``, ``make.rich``."""
    return Makers


@pytest.fixture(autouse=True)
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the charts' library, which takes seconds to make."""
    monkeypatch.setattr("wherry.reports.page.charts.library", lambda: None)
    static.cache_clear()
    yield
    static.cache_clear()


@pytest.fixture
def records(wherry_home) -> Iterator[Records]:
    """An empty database."""
    with Records.open() as opened:
        yield opened


@pytest.fixture
def site(records: Records, wherry_home, tmp_path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site with the token `TOKEN`, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return Site(records, Keeper(TOKEN), wherry_home)


@pytest.fixture
def client_of(site: Site) -> Callable[..., TestClient]:
    """A client of the site that follows no redirects."""

    def make_client(base: str = "http://localhost:8420", hosts=()) -> TestClient:
        return TestClient(make_app(site, hosts), base_url=base, follow_redirects=False)

    return make_client


@pytest.fixture
def client(client_of) -> TestClient:
    return client_of()


@pytest.fixture
def signed(client: TestClient, site: Site) -> tuple[TestClient, str]:
    """A client that has signed in, and the proof of its forms."""
    client.post("/sign-in", data={"token": TOKEN})
    (session,) = site.keeper._sessions.values()
    return client, session.proof

"""Fixtures that all tests share, and the rule that CI does not skip."""

from __future__ import annotations

import os
from pathlib import Path
from types import FunctionType

import pytest
from chromium import browser, opened  # noqa: F401 -- fixtures, once for all: one Playwright a process
from hypothesis import HealthCheck, settings

# how long an example takes says how busy the machine is
settings.register_profile("wherry", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wherry")

_FIRST_STATES: dict[int, object] = {}


@pytest.fixture(autouse=True)
def _same_numbers(request: pytest.FixtureRequest) -> None:
    """Generators of a file, and of what it imports functions of, begin anew for each test.

    So that it draws the same, whichever tests ran before it.
    """
    import numpy as np

    own = vars(request.module)
    functions = (value for value in own.values() if isinstance(value, FunctionType))
    places = {id(own): own} | {id(each.__globals__): each.__globals__ for each in functions}
    for value in [value for place in places.values() for value in place.values()]:
        if isinstance(value, np.random.Generator):
            state = value.bit_generator
            state.state = _FIRST_STATES.setdefault(id(value), state.state)


@pytest.fixture(scope="session")
def shared_environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tools' environments, made once a session, or kept where WHERRY_TEST_ENVIRONMENTS says."""
    named = os.environ.get("WHERRY_TEST_ENVIRONMENTS")
    if named:
        folder = Path(named)
    elif "PYTEST_XDIST_WORKER" in os.environ:  # the session's own folder, which its workers share
        folder = tmp_path_factory.getbasetemp().parent / "environments"
    else:
        folder = tmp_path_factory.mktemp("environments")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def wherry_home(tmp_path: Path, shared_environments: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home with the session's environments; no inventory of the user's is seen."""
    home = tmp_path / "wherry-home"
    home.mkdir()
    (home / "environments").symlink_to(shared_environments)
    monkeypatch.setenv("WHERRY_HOME", str(home))
    monkeypatch.setenv("WHERRY_CONFIG", str(tmp_path / "wherry-config"))
    monkeypatch.delenv("WHERRY_RECORDS", raising=False)
    return home


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
):
    """With WHERRY_TEST_REQUIRE=all a test that would be skipped fails: CI has what it needs."""
    report = yield
    required = os.environ.get("WHERRY_TEST_REQUIRE") == "all"
    if required and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"
    return report

"""What the backends' tests share: generated models, and the machinery that tries them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from loading import load

from wherry.host import Host
from wherry.target import Target
from wherry.testing.workshop import Workshop


def _load(stem: str) -> ModuleType:
    """A file of this folder."""
    return load(Path(__file__).with_name(f"{stem}.py"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``network_name`` runs once for each network."""
    if "network_name" in metafunc.fixturenames:
        metafunc.parametrize("network_name", sorted(_load("networks").NETWORKS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hundreds of models are tried for a file's first test: that may take minutes."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def networks() -> ModuleType:
    """The module `networks`: ``networks.NETWORKS[name]()`` builds, ``networks.sample`` feeds."""
    return _load("networks")


@pytest.fixture(scope="session")
def operators(networks: ModuleType) -> ModuleType:
    """The module `operators`: ``operators.FORMS[kind]`` are builders of models."""
    return _load("operators")


@pytest.fixture(scope="session")
def home_of_trials(shared_environments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the session's environments, for fixtures that live longer than a test."""
    home = tmp_path_factory.mktemp("home")
    (home / "environments").symlink_to(shared_environments)
    return home


@pytest.fixture(scope="session")
def try_all(
    networks: ModuleType, home_of_trials: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Any]]:
    """``try_all(backend, {name: builder}, precision, **options)`` gives a Trial for each name.

    Tools go on running until all of them are converted; see `made_anew`.
    """
    module = _load("trials")

    def run(backend: str, builders: dict[str, Any], precision: str = "fp32", **options: Any):
        with pytest.MonkeyPatch.context() as patch, module.warm():
            patch.setenv("WHERRY_HOME", str(home_of_trials))
            trials = module.Trials(backend, tmp_path_factory.mktemp(f"{backend}-trials"))
            models = {name: build() for name, build in builders.items()}
            samples = {
                name: [networks.sample(model, seed) for seed in range(2)]
                for name, model in models.items()
            }
            return trials.run(models, samples, precision, **options)

    return run


@pytest.fixture(scope="session")
def made_anew(
    networks: ModuleType, home_of_trials: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Any], Any]:
    """``made_anew(trial)``: its artifact, by tools that wherry starts for it alone."""

    def convert(trial: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WHERRY_HOME", str(home_of_trials))
            host, about = Host.load(), trial.artifact
            options = host.backends[about.backend].options()
            target = Target(about.backend, about.precision, "local", options)
            samples = [networks.sample(trial.model.proto(), seed) for seed in range(2)]
            workshop = Workshop(host, tmp_path_factory.mktemp("anew"))
            return workshop.convert(trial.model, target, samples)

    return convert

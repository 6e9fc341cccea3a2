"""Installs the two distributions beside wherry, as a user would, and runs wherry with them."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Strangers:
    """An installation of both plugins; ``site`` is the folder that holds them."""

    site: Path
    home: Path

    def wherry(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run wherry's command line with the plugins installed."""
        return self.python("-m", "wherry", *arguments, **environment)

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python with the plugins installed."""
        clean = {name: value for name, value in os.environ.items() if "WHERRY" not in name}
        return subprocess.run(
            [sys.executable, *arguments],
            env={
                **clean,
                "PYTHONPATH": str(self.site),
                "WHERRY_HOME": str(self.home),
                "COLUMNS": "200",
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=250,
        )


@pytest.fixture(scope="session")
def strangers_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both distributions, built and installed once a session."""
    site = tmp_path_factory.mktemp("strangers")
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps"]
    command += ["--python", sys.executable, "--target", str(site)]
    projects = sorted(path.parent for path in HERE.glob("*/pyproject.toml"))
    for project in projects:  # uv would take its last build while the pyproject.toml is the same
        command += ["--refresh-package", project.name]
    done = subprocess.run(
        [*command, *map(str, projects)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture
def strangers(strangers_site: Path, wherry_home: Path) -> Strangers:
    """wherry with both plugins and an empty home."""
    return Strangers(strangers_site, wherry_home)

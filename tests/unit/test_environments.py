"""Environments from wheels made here: nothing of these tests asks a package index."""

import base64
import hashlib
import html
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from datetime import timedelta
from pathlib import Path

import pytest

from wherry.engine import uv
from wherry.engine.environments import Environments, disk_usage
from wherry.errors import EnvironmentError_, Interrupted, PluginError
from wherry.requirements import Requirements

DEMO = Requirements(("wdemo",))


class Shelf:
    """A folder of wheels, in place of a package index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "wheels"
        self.index = folder / "index"
        self.folder.mkdir(parents=True)

    def add(self, name, version="1.0", *, needs=(), python=None, tag="py3-none-any", code=""):
        metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
        metadata += [f"Requires-Dist: {need}" for need in needs]
        metadata += [f"Requires-Python: {python}"] if python else []
        info = f"{name}-{version}.dist-info"
        script = f"[console_scripts]\n{name}-tool = {name}:main\n"
        files = {
            f"{name}.py": f'VERSION = "{version}"\ndef main(): print(VERSION)\n{code}',
            f"{info}/METADATA": "\n".join(metadata) + "\n",
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
            f"{info}/entry_points.txt": script,
        }
        record = "".join(
            f"{path},sha256={_digest(text)},{len(text.encode())}\n" for path, text in files.items()
        )
        files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
        wheel = self.folder / f"{name}-{version}-{tag}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
        # An index says for which Python a file is; a folder of wheels does not.
        page = self.index / "simple" / name
        page.mkdir(parents=True, exist_ok=True)
        requires = f' data-requires-python="{html.escape(python)}"' if python else ""
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        link = f'<a href="{wheel.as_uri()}#sha256={digest}"{requires}>{wheel.name}</a>'
        link += f'<a href="file:///absent/{name}-{version}.tar.gz"{requires}>sources</a>'
        (page / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
        return wheel


def _digest(text: str) -> str:
    raw = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    shelf = Shelf(tmp_path / "shelf")
    monkeypatch.setenv("UV_FIND_LINKS", str(shelf.folder))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    shelf.add("wdep")
    shelf.add("wdemo", needs=["wdep"])
    return shelf


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def environments(home, shelf):
    return Environments(home)


def output(python: Path, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout


def pins(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if re.match(r"\w", line)]


def runs_of_uv(home: Path, verb: str) -> int:
    logs = (path.read_text(encoding="utf-8") for path in (home / "logs").iterdir())
    return sum(text.count(f"$ uv {verb}") for text in logs)


def test_a_lock_pins_dependencies_too_with_hashes_and_makes_nothing(environments, shelf):
    lock = environments.lock(DEMO)
    assert pins(lock.text) == ["wdemo==1.0", "wdep==1.0"]
    wheel = shelf.folder / "wdemo-1.0-py3-none-any.whl"
    assert f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}" in lock.text
    assert lock.sha256 == hashlib.sha256(lock.text.encode()).hexdigest()
    assert list(environments) == []
    assert environments.find(DEMO) is None


def test_a_lock_names_the_interpreter(environments):
    assert f"CPython {sys.version.split()[0]}, linux-" in environments.lock(DEMO).text


def test_a_lock_stays_when_a_newer_version_comes_and_when_all_are_gone(environments, shelf, home):
    lock = environments.lock(DEMO)
    shelf.add("wdemo", "2.0")
    assert environments.lock(DEMO) == lock
    for wheel in shelf.folder.iterdir():
        wheel.unlink()
    assert Environments(home).lock(DEMO) == lock


def test_other_requirements_have_another_lock(environments):
    assert environments.lock(DEMO) != environments.lock(Requirements(("wdep",)))
    assert environments.lock(DEMO) != environments.lock(Requirements(("wdep",), ("wdemo",)))


def test_what_is_locked_is_installed_even_if_a_newer_version_has_come(environments, shelf):
    environments.lock(DEMO)
    shelf.add("wdemo", "2.0")
    assert output(environments.ensure(DEMO), "import wdemo; print(wdemo.VERSION)") == "1.0\n"


def test_an_environment_holds_its_packages_and_nothing_of_ours(environments):
    python = environments.ensure(DEMO)
    assert (
        environments.site_packages(DEMO)
        == Path(output(python, "import wdemo; print(wdemo.__file__)").strip()).parent
    )
    found = output(python, "import importlib.util as u; print(u.find_spec('wherry'))")
    assert found == "None\n"
    assert environments.find(DEMO) == python.parent.parent
    (only,) = environments
    assert only.packages == ("wdemo==1.0", "wdep==1.0")
    assert only.lock == environments.lock(DEMO).sha256


def test_scripts_of_an_environment_run_however_the_home_is_reached(tmp_path, shelf):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "environments").symlink_to(tmp_path / "real")
    python = Environments(tmp_path / "link").ensure(DEMO)
    (tmp_path / "link" / "environments").unlink()
    script = python.parent / "wdemo-tool"
    assert subprocess.run([script], capture_output=True, check=True).stdout == b"1.0\n"


def test_the_second_call_makes_nothing_and_says_nothing(environments, home):
    said = []
    first = environments.ensure(DEMO, progress=said.append)
    assert any("wdemo" in line and "making" in line for line in said)
    said.clear()
    assert Environments(home).ensure(DEMO, progress=said.append) == first
    assert said == []
    assert runs_of_uv(home, "venv") == 1


def test_an_empty_set_is_an_environment_too(environments):
    assert output(environments.ensure(Requirements()), "print(1)") == "1\n"


def test_threads_and_processes_that_ask_at_once_make_it_once(environments, home):
    asked = (
        "import sys; from pathlib import Path; from wherry.requirements import Requirements; "
        "from wherry.engine.environments import Environments; "
        "print(Environments(Path(sys.argv[1])).ensure(Requirements(('wdemo',))))"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", asked, home], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(environments.ensure(DEMO))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found += [Path(other.communicate()[0].strip()) for other in others]
    assert len(found) == 8
    assert len(set(found)) == 1
    assert runs_of_uv(home, "venv") == 1
    assert runs_of_uv(home, "pip compile") == 1


def test_a_half_made_environment_is_made_again(environments):
    python = environments.ensure(DEMO)
    (python.parent.parent / ".wherry-complete").unlink()
    (environments.site_packages(Requirements()) / "x").touch()
    (python.parent.parent / "left-over").touch()
    assert environments.find(DEMO) is None
    assert environments.ensure(DEMO) == python
    assert not (python.parent.parent / "left-over").exists()
    assert output(python, "import wdemo; print(wdemo.VERSION)") == "1.0\n"


def test_an_environment_whose_python_has_gone_is_made_again(environments):
    python = environments.ensure(DEMO)
    python.unlink()
    python.symlink_to("/absent/python3")
    assert environments.find(DEMO) is None
    assert output(environments.ensure(DEMO), "import wdemo; print(1)") == "1\n"


def test_a_killed_host_leaves_nothing_that_disturbs(home, shelf):
    """Kill a host at random moments of the making; the next one makes it whole."""
    shelf.add("wdemo", "1.1", code="x = 1\n" * 100_000, needs=["wdep"])
    asked = (
        "import sys; from pathlib import Path; from wherry.requirements import Requirements; "
        "from wherry.engine.environments import Environments; "
        "Environments(Path(sys.argv[1])).ensure(Requirements(('wdemo',)))"
    )
    moments = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", asked, home])
        time.sleep(moments.uniform(0.2, 0.9))
        process.kill()
        process.wait()
    environments = Environments(home)
    assert output(environments.ensure(DEMO), "import wdemo; print(wdemo.VERSION)") == "1.1\n"
    (only,) = environments
    assert only.lock == environments.lock(DEMO).sha256


def test_a_wheel_that_is_not_the_locked_one_is_refused(environments, shelf, tmp_path, monkeypatch):
    environments.lock(DEMO)
    shelf.add("wdep", code="evil = True\n")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "another-cache"))
    with pytest.raises(EnvironmentError_, match="Hash mismatch") as caught:
        environments.ensure(DEMO)
    assert "another file than was locked" in str(caught.value)
    assert list(environments) == []


def test_a_package_that_is_nowhere(environments, home):
    with pytest.raises(EnvironmentError_) as caught:
        environments.lock(Requirements(("wabsent==3",)))
    text = str(caught.value)
    assert "wabsent==3" in text
    assert "cannot be resolved for CPython 3." in text
    assert "UV_OFFLINE" in text  # the remedy: it may be in the index
    log = Path(re.search(r"whole log: (\S+)", text)[1])
    assert "wabsent" in log.read_text(encoding="utf-8")


def test_a_version_that_is_nowhere_is_named(environments):
    with pytest.raises(EnvironmentError_, match=r"no version of wdep==9"):
        environments.lock(Requirements(("wdep==9",)))


def test_requirements_that_contradict_one_another(environments, shelf):
    shelf.add("wother", needs=["wdep==2"])
    with pytest.raises(EnvironmentError_, match="wother"):
        environments.lock(Requirements(("wother", "wdep==1.0")))


def test_an_index_that_does_not_answer(environments, monkeypatch):
    monkeypatch.delenv("UV_OFFLINE")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(EnvironmentError_, match="Check the network"):
        environments.lock(Requirements(("wabsent",)))


def test_a_run_that_is_stopped_does_not_wait_for_an_index_that_says_nothing(home, monkeypatch):
    monkeypatch.delenv("UV_OFFLINE", raising=False)
    cancelled = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as index:
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{index.getsockname()[1]}/simple")

        def stop() -> None:
            with index.accept()[0]:
                cancelled.set()
                stopped.wait(60)

        stopped = threading.Event()
        threading.Thread(target=stop, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(Interrupted, match="wabsent"):
            Environments(home, cancelled).lock(Requirements(("wabsent",)))
        assert time.monotonic() - began < 20
        stopped.set()


def test_an_interpreter_outside_the_range_is_refused_with_the_one_that_would_do(environments):
    with pytest.raises(EnvironmentError_) as caught:
        environments.lock(Requirements(("wdemo",), python=">=3.99"))
    text = str(caught.value)
    assert "needs Python >=3.99" in text
    assert sys.version.split()[0] in text
    assert "Install wherry into a Python >=3.99." in text


def test_an_interpreter_of_this_machine_that_would_do_is_named(environments, monkeypatch):
    monkeypatch.setattr(
        uv.Interpreter, "ask", lambda _python: uv.Interpreter("CPython", "3.2.1", "linux", "glibc")
    )
    with pytest.raises(EnvironmentError_, match=r">=3\.11, such as /.*python"):
        environments.lock(Requirements(("wdemo",), python=">=3.11"))


def test_a_malformed_range_is_the_plugins_fault(environments):
    with pytest.raises(PluginError, match="newest"):
        environments.lock(Requirements(python="newest"))


@pytest.mark.parametrize("python", ["/absent/python", "/bin/true", "/bin/false"])
def test_a_python_that_is_none(environments, python):
    with pytest.raises(EnvironmentError_, match="does not run"):
        environments.ensure(DEMO, Path(python))


def test_packages_without_their_dependencies(environments):
    python = environments.ensure(Requirements((), ("wdemo",)))
    assert output(python, "import wdemo; print(1)") == "1\n"
    with pytest.raises(subprocess.CalledProcessError):
        output(python, "import wdep")


def test_a_package_without_dependencies_comes_over_one_with(environments, shelf):
    shelf.add("wdemo", "2.0", needs=["wdep"])
    python = environments.ensure(Requirements(("wdemo==1.0",), ("wdemo==2.0",)))
    assert output(python, "import wdemo, wdep; print(wdemo.VERSION)") == "2.0\n"


@pytest.fixture
def index(shelf, monkeypatch):
    monkeypatch.delenv("UV_FIND_LINKS")
    monkeypatch.setenv("UV_DEFAULT_INDEX", (shelf.index / "simple").as_uri())


@pytest.mark.usefixtures("index")
def test_a_package_that_claims_a_newer_python(environments, shelf, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # a shell that exports it; uv breaks its lines there
    newer = f">=3.{sys.version_info.minor + 2}"
    shelf.add("wnew", python=newer, needs=["wabsent"])
    with pytest.raises(EnvironmentError_, match="does not satisfy Python"):
        environments.lock(Requirements((), ("wnew",)))
    wanted = Requirements(("wdep",), ("wnew", "wdemo"), ignore_requires_python=True)
    lock = environments.lock(wanted)
    assert pins(lock.text) == ["wdep==1.0", "wdemo==1.0", "wnew==1.0"]
    assert lock.text.count("--hash=sha256:") == 3
    python = environments.ensure(wanted)
    assert output(python, "import wnew, wdemo, wdep; print(wnew.VERSION)") == "1.0\n"
    assert output(python, "import sys; print(sys.version_info[:2])") == f"{sys.version_info[:2]}\n"


@pytest.mark.usefixtures("index")
def test_a_binary_for_another_python_is_refused(environments, shelf):
    minor = sys.version_info.minor + 1
    shelf.add("wbin", python=f">=3.{minor}", tag=f"cp3{minor}-cp3{minor}-linux_x86_64")
    wanted = Requirements((), ("wbin",), ignore_requires_python=True)
    with pytest.raises(EnvironmentError_, match="compiled for another Python"):
        environments.ensure(wanted)
    assert list(environments) == []


def test_a_project_around_the_working_folder_has_no_say(environments, tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "uv.toml").write_text('[pip]\nconstraint-dependencies = ["wdep==7"]\n')
    monkeypatch.chdir(tmp_path / "project")
    assert pins(environments.lock(DEMO).text) == ["wdemo==1.0", "wdep==1.0"]


def test_the_users_variables_have_no_say_in_what_is_chosen(environments, tmp_path, monkeypatch):
    (tmp_path / "constraints.txt").write_text("wdep==7\n")
    monkeypatch.setenv("UV_CONSTRAINT", str(tmp_path / "constraints.txt"))
    monkeypatch.setenv("UV_LINK_MODE", "symlink")
    monkeypatch.setenv("VIRTUAL_ENV", "/absent")
    assert pins(environments.lock(DEMO).text) == ["wdemo==1.0", "wdep==1.0"]
    site = environments.site_packages(DEMO)
    assert (site / "wdemo.py").stat().st_nlink > 1
    assert not (site / "wdemo.py").is_symlink()


def test_pips_index_is_handed_on_where_uv_has_none(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip.example/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "/a /b")
    given = uv.variables()
    assert given["UV_DEFAULT_INDEX"] == "https://pip.example/simple"
    assert given["UV_FIND_LINKS"] == "/a,/b"
    monkeypatch.setenv("UV_INDEX_URL", "https://uv.example/simple")
    given = uv.variables()
    assert given["UV_INDEX_URL"] == "https://uv.example/simple"
    assert "UV_DEFAULT_INDEX" not in given


def test_a_home_that_cannot_be_written(tmp_path, shelf):
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentError_, match="WHERRY_HOME"):
        Environments(tmp_path / "file").ensure(DEMO)


def test_removal_takes_the_long_unused_and_the_half_made(environments):
    old = environments.ensure(DEMO).parent.parent
    used = environments.ensure(Requirements(("wdep",))).parent.parent
    half = environments.ensure(Requirements()).parent.parent
    (half / ".wherry-complete").unlink()
    long_ago = time.time() - 40 * 86400
    os.utime(old / ".wherry-complete", (long_ago, long_ago))
    month = timedelta(days=30)
    would_go = environments.remove(unused_for=month, dry_run=True)
    assert {gone.directory for gone in would_go} == {old, half}
    assert old.exists()
    assert {gone.directory for gone in environments.remove()} == {half}
    (gone,) = environments.remove(unused_for=month)
    assert gone.directory == old
    assert gone.size_bytes > 1000
    assert [found.directory for found in environments] == [used]
    assert environments.remove(unused_for=month) == []


def test_asking_for_an_environment_is_using_it(environments):
    directory = environments.ensure(DEMO).parent.parent
    long_ago = time.time() - 40 * 86400
    os.utime(directory / ".wherry-complete", (long_ago, long_ago))
    environments.ensure(DEMO)
    assert environments.remove(unused_for=timedelta(days=30)) == []


def test_an_environment_that_is_being_made_is_not_removed(environments):
    from wherry.filelock import hold

    directory = environments.ensure(DEMO).parent.parent
    with hold(directory.with_suffix(".lock")):
        assert environments.remove(unused_for=timedelta(0)) == []
    assert len(environments.remove(unused_for=timedelta(0))) == 1


def test_disk_usage_counts_a_hard_link_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * (1 << 20))
    alone = disk_usage([tmp_path / "a"])
    assert 1 << 20 <= alone < 1.1 * (1 << 20)
    os.link(tmp_path / "a" / "file", tmp_path / "b" / "file")
    assert disk_usage([tmp_path / "a", tmp_path / "b"]) == alone
    (tmp_path / "b" / "link").symlink_to(tmp_path)
    assert disk_usage([tmp_path / "a", tmp_path / "b"]) < 1.1 * alone


# --- packages of which the author names the file ------------------------------------------------


@pytest.mark.parametrize("from_index", [True, False])
def test_a_file_that_the_author_names_is_taken_and_no_other(
    environments, shelf, monkeypatch, from_index
):
    digest = hashlib.sha256(shelf.add("wpin").read_bytes()).hexdigest()
    if from_index:
        monkeypatch.delenv("UV_FIND_LINKS")
        monkeypatch.setenv("UV_DEFAULT_INDEX", (shelf.index / "simple").as_uri())
        monkeypatch.delenv("UV_OFFLINE")
    named = Requirements(no_deps=("wpin",), hashes=(digest, "0" * 64))
    assert digest in environments.lock(named).text
    assert output(environments.ensure(named), "import wpin; print(wpin.VERSION)") == "1.0\n"
    with pytest.raises(EnvironmentError_):
        environments.ensure(Requirements(no_deps=("wpin",), hashes=("1" * 64,)))

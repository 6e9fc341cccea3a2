"""Real distributions of strangers: installed, found, listed, switched off, and conforming."""

import json
from pathlib import Path

import pytest

from wherry.testing import networks

pytestmark = pytest.mark.index


def listed(done) -> dict[str, dict]:
    assert done.returncode == 0, done.stderr
    return {plugin["name"]: plugin for plugin in json.loads(done.stdout)["plugins"]}


def test_they_are_found_with_their_versions(strangers):
    done = strangers.wherry("plugins", "list", "--json")
    plugins = listed(done)
    assert plugins["plainnumpy"] == {
        "name": "plainnumpy",
        "distribution": "wherry-plainnumpy",
        "version": "0.3.1",
        "module": "wherry_plainnumpy.plugin",
        "provides": {"backends": ["plainnumpy"]},
        "wraps": [],
    }
    assert plugins["stopwatch"]["version"] == "1.0.2"
    assert plugins["stopwatch"]["provides"] == {}
    assert len(plugins["stopwatch"]["wraps"]) == 4


def test_the_table_names_them(strangers):
    out = strangers.wherry("plugins", "list").stdout
    (line,) = [line for line in out.splitlines() if "plainnumpy " in line]
    assert "wherry-plainnumpy" in line
    assert "0.3.1" in line
    assert "backends: plainnumpy" in line


@pytest.mark.parametrize(
    ("switch", "loaded"),
    [("", set()), ("stopwatch", {"stopwatch"}), ("wherry_plainnumpy", {"plainnumpy"})],
)
def test_they_can_be_left_out(switch, loaded, strangers):
    plugins = listed(strangers.wherry("plugins", "list", "--json", WHERRY_PLUGINS=switch))
    assert plugins.keys() & {"plainnumpy", "stopwatch"} == loaded


def test_a_broken_one_is_skipped_with_its_version_and_the_rest_works(strangers, tmp_path):
    (tmp_path / "wherry_plainnumpy.py").write_text("raise RuntimeError('shadowed')")
    shadowed = f"{tmp_path}:{strangers.site}"
    done = strangers.wherry("plugins", "list", "--json", PYTHONPATH=shadowed)
    plugins = listed(done)
    assert "stopwatch" in plugins
    assert "plainnumpy" not in plugins
    (skipped,) = [s for s in json.loads(done.stdout)["skipped"] if s["name"] == "plainnumpy"]
    assert skipped["version"] == "0.3.1"
    assert skipped["cause"].startswith("RuntimeError: shadowed (")
    assert "the plugin 'plainnumpy' (wherry-plainnumpy 0.3.1) is broken, it is skipped" in (
        done.stderr
    )


def test_the_backend_conforms(strangers, tmp_path):
    """The author's test file is three lines, and pytest runs the kit."""
    test = tmp_path / "test_plainnumpy.py"
    test.write_text(
        "from wherry.testing import BackendSuite\n\n"
        "class TestPlainNumpy(BackendSuite):\n"
        "    name = 'plainnumpy'\n"
        "    refuses = frozenset({'convnet', 'flattened', 'residual', 'two_by_two'})\n"
    )
    done = strangers.python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(test))
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_nothing_of_ours_knows_them():
    root = Path(__file__).parents[2]
    sources = [
        path
        for folder in ("core", "plugins", "devices")
        for path in (root / folder).rglob("*.py")
        if any(name in path.read_text() for name in ("plainnumpy", "stopwatch"))
    ]
    assert sources == []


def test_its_options_stand_in_the_schema(strangers):
    done = strangers.wherry("schema")
    assert done.returncode == 0, done.stderr
    assert '"check_finite"' in done.stdout
    assert "stop at the first step that gives NaN or infinity" in done.stdout
    assert "check_finite" not in strangers.wherry("schema", WHERRY_PLUGINS="").stdout


@pytest.fixture
def manifest(tmp_path):
    """A manifest for plainnumpy, with the given block of its options."""

    def write(options: str) -> Path:
        networks.build("mlp", tmp_path / "mlp.onnx")
        path = tmp_path / "manifest.yaml"
        path.write_text(
            "wherry: 1\n"
            "model: {path: mlp.onnx}\n"
            "targets:\n"
            f"  - {{backend: plainnumpy, device: local, plainnumpy: {options}}}\n"
        )
        return path

    return write


def test_its_options_multiply_in_a_manifest(strangers, manifest):
    done = strangers.wherry("plan", str(manifest("{fuse: [true, false]}")), "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["target"]["options"]["fuse"] for row in rows] == [True, False]
    assert all(row["target"]["options"]["check_finite"] is False for row in rows)
    assert all(row["unsupported"] == [] for row in rows)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("{check_finit: true}", "unknown key 'check_finit'. Did you mean 'check_finite'?"),
        ("{fuse: perhaps}", "fuse"),
        ("{threads: 0}", "threads"),
    ],
)
def test_its_options_show_in_a_manifests_errors(options, said, strangers, manifest):
    done = strangers.wherry("plan", str(manifest(options)))
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "manifest.yaml:4:" in error
    assert said in error


def test_without_it_the_manifest_says_what_is_missing(strangers, manifest):
    done = strangers.wherry("plan", str(manifest("{}")), WHERRY_PLUGINS="")
    assert done.returncode == 1
    assert "unknown backend 'plainnumpy'" in done.stderr


def test_a_manifest_runs_it_and_the_stopwatch_times_every_stage(strangers, manifest, tmp_path):
    path = manifest("{fuse: [true, false]}")
    out, watch = tmp_path / "out.json", tmp_path / "watch.jsonl"
    done = strangers.wherry(
        "run", str(path), "--json", str(out), "--quiet", WHERRY_STOPWATCH=str(watch)
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())["results"]
    assert [result["status"] for result in results] == ["ok", "ok"]
    assert all(result["parity"]["sqnr_db"] > 60 for result in results)
    assert results[0]["artifact"] != results[1]["artifact"]
    lines = [json.loads(line) for line in watch.read_text().splitlines()]
    assert [line["stage"] for line in lines].count("convert") == 2
    assert [line["stage"] for line in lines].count("profile") == 2 * 5  # a line a round
    assert all(line["seconds"] > 0 and not line["failed"] for line in lines)

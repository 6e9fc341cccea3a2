"""Manifests that nobody wrote: what must hold for all of them."""

from __future__ import annotations

import copy
import json
from math import prod

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wherry.errors import WherryError
from wherry.manifest import load_manifest

VARIANTS = ("original", "a", "b")
BACKENDS = ("onnxruntime", "ncnn")
PRECISIONS = ("fp32", "fp16")

# One folder serves all examples: each writes its manifest anew.
fixed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("manifests")
    (path / "net.onnx").touch()
    return path


@pytest.fixture
def load(folder, manifest_host, monkeypatch):
    monkeypatch.setenv("WHERRY_CONFIG", str(folder / "none"))

    def write_and_load(values, overrides=()):
        path = folder / "m.yaml"
        text = values if isinstance(values, str) else json.dumps(values)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return load_manifest(path, manifest_host, overrides=overrides, env={})

    return write_and_load


def some(values):
    return st.lists(st.sampled_from(values), min_size=1, unique=True)


def one_or_many(values):
    return some(values) | st.sampled_from(values)


@st.composite
def entries(draw):
    """An entry of targets, and how many rows it stands for with three variants."""
    backends = draw(some(BACKENDS))
    precisions = draw(st.none() | one_or_many(PRECISIONS))
    threads = draw(st.none() | one_or_many(range(1, 9)))
    variants = draw(st.none() | one_or_many(VARIANTS))
    choices = {"precision": precisions, "threads": threads, "variants": variants}
    entry = {"backend": backends} | {k: value for k, value in choices.items() if value is not None}
    options = {}
    if "ncnn" in backends:
        options = draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "winograd": one_or_many([True, False]),
                    "mode": one_or_many(["fast", "small"]),
                    "cores": some([(), (0,), (0, 1), (2, 3)]),
                },
            )
        )
        if options:
            entry["ncnn"] = options
    common = prod(
        (
            count(precisions),
            count(threads),
            count(variants) if variants is not None else len(VARIANTS),
        )
    )
    rows = len(backends) * common
    if "ncnn" in backends:
        rows += common * (prod(map(count, options.values())) - 1)
    return entry, rows


def count(value):
    return len(value) if isinstance(value, list) else 1


def manifest_of(targets, **more):
    return {
        "wherry": 1,
        "model": {"path": "net.onnx"},
        "variants": {name: [] if name == "original" else ["simplify"] for name in VARIANTS},
        "targets": targets,
        **more,
    }


@fixed
@given(entry=entries())
def test_rows_are_the_product(load, entry):
    written, expected = entry
    manifest = load(manifest_of([written]))
    assert len(manifest.rows) == expected
    assert len({(variant, target.id) for variant, target in manifest.rows}) == expected
    order = [VARIANTS.index(variant) for variant, _ in manifest.rows]
    assert order == sorted(order)


@fixed
@given(
    entry=entries(),
    where=st.fixed_dictionaries(
        {},
        optional={
            "variant": one_or_many(VARIANTS),
            "backend": one_or_many(BACKENDS),
            "precision": one_or_many(PRECISIONS),
            "threads": one_or_many(range(1, 9)),
        },
    ).filter(bool),
)
def test_excludes_and_gates_choose_the_same_rows(load, entry, where):
    written, _ = entry
    whole = load(manifest_of([written]))

    def chosen(variant, target):
        facts = {
            "variant": variant,
            "backend": target.backend,
            "precision": target.precision,
            "threads": target.options.threads,
        }
        return all(
            facts[kind] in (words if isinstance(words, list) else [words])
            for kind, words in where.items()
        )

    rest = [row for row in whole.rows if not chosen(*row)]
    gate = {"metric": "size_bytes", "max": 1, "where": where}
    if len(rest) == len(whole.rows):
        with pytest.raises(WherryError, match="this entry excludes nothing"):
            load(manifest_of([written], exclude=[where]))
        with pytest.raises(WherryError, match="no target of this manifest is like that"):
            load(manifest_of([written], gates=[gate]))
        return
    (read,) = load(manifest_of([written], gates=[gate])).gates
    assert [row for row in whole.rows if not read.where.matches(*row)] == rest
    if rest:
        assert list(load(manifest_of([written], exclude=[where])).rows) == rest
    else:
        with pytest.raises(WherryError, match="no target is left"):
            load(manifest_of([written], exclude=[where]))


FULL = manifest_of(
    [{"backend": ["onnxruntime", "ncnn"], "threads": [1, 2], "ncnn": {"winograd": [True, False]}}],
    data={
        "evaluation": {"source": "npz", "path": "a.npz", "slice": "1:2"},
        "calibration": {"source": "digits"},
    },
    metrics=["top1", {"sqnr": {"output": "y"}}],
    exclude=[{"backend": "ncnn", "threads": [2]}],
    gates=[{"metric": "top1", "max_drop": "1%", "where": {"backend": ["ncnn"]}}],
    calibrate={"method": "percentile", "percentile": 99},
    measure={"rounds": 2},
    parity={"samples": 1, "thresholds": {"fp16": {"sqnr_db": 1, "cosine": 0.5}}},
    limits={"time_s": 5},
    seed=1,
)
FULL["model"]["inputs"] = {"x": {"shape": [1, 2], "preprocess": {"mean": [0.5]}}}
FULL["variants"]["a"] = [{"prune.filters": {"macs": 0.5}}, "simplify"]


def places(tree, path=()):
    yield path
    for key, below in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(below, dict | list):
            yield from places(below, (*path, key))
        else:
            yield (*path, key)


likely = ["ncnn", "fp16", "npz", "${X}", "$", "1:", ":1", "2%", "simplify", "x" * 99]
atoms = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
junk = st.recursive(
    atoms | st.sampled_from(likely),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3)
    ),
    max_leaves=5,
)


@settings(fixed, max_examples=300)
@given(
    path=st.sampled_from([path for path in places(FULL) if path]),
    value=junk,
    rename=st.text(max_size=3),
)
def test_whatever_is_changed_is_read_or_refused(load, path, value, rename):
    broken = copy.deepcopy(FULL)
    *way, last = path
    parent = broken
    for word in way:
        parent = parent[word]
    if rename and isinstance(parent, dict):
        parent[last + rename] = parent.pop(last)
    else:
        parent[last] = value
    try:
        load(broken)
    except WherryError as error:
        assert "m.yaml:" in str(error)


def test_what_is_changed_was_right_before(load):
    assert len(load(FULL).rows) == 3 * (2 + 2)


@fixed
@given(text=st.text(max_size=200))
def test_any_file_is_refused(load, text):
    with pytest.raises(WherryError):
        load(text)


@fixed
@given(
    key=st.lists(
        st.sampled_from(["targets", "0", "1", "backend", "model", "path", "x", "data", "seed"]),
        min_size=1,
        max_size=4,
    ).map(".".join)
    | st.text(max_size=5),
    value=st.text(max_size=8),
)
def test_any_override_is_applied_or_refused(load, key, value):
    try:
        load(FULL, overrides=[f"{key}={value}"])
    except WherryError as error:
        assert str(error)

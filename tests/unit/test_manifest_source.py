"""YAML with places: what is taken, what is refused and where, and never anything but that."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import ManifestError
from wherry.manifest import source
from wherry.manifest.merge import merge
from wherry.manifest.source import Node, Place, parse, parse_value, read_file


def plain(text, **env):
    return parse(text, "f", env).plain()


def refusal(text, **env):
    with pytest.raises(ManifestError) as caught:
        parse(text, "f", env)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("Null", None),
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("12", 12),
        ("-12", -12),
        ("+12", 12),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("0:200", "0:200"),
        ("2024-01-31", "2024-01-31"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("nan", "nan"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 1", "1"),
        ("9" * 400, math.inf),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = plain(f"a: {text}")["a"]
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_one():
    assert math.isnan(plain("a: .NaN")["a"])


def test_every_value_has_a_place():
    root = parse("a:\n  b: [x,\n    {c: 1}]\n", "dir/f.yaml", {})
    assert str(root.at(("a", "b"))) == "dir/f.yaml:2:3"
    assert str(root.at(("a", "b", 0))) == "dir/f.yaml:2:7"
    assert str(root.at(("a", "b", 1, "c"))) == "dir/f.yaml:3:6"
    assert str(root.at(("a", "b", 7))) == "dir/f.yaml:2:3"
    assert root.find(("a", "z", "b"))[1] == 1


def test_an_alias_is_the_value_at_its_own_place():
    root = parse("a: &x [1, 2]\nb: *x\n", "f", {})
    assert root.plain() == {"a": [1, 2], "b": [1, 2]}
    assert str(root.at(("b",))) == "f:2:1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "f: the file is empty"),
        ("# only a comment\n", "f: the file is empty"),
        ("- a\n", "f:1:1: the file must hold keys"),
        ("word", "f:1:1: the file must hold keys"),
        ("a: 1\nb: 2\na: 3\n", "f:3:1: the key 'a' is given twice; first at f:1:1"),
        ("a: 1\n---\nb: 2\n", "f:2:1: a second document"),
        ("a: [1, 2\nb: 3\n", "f:2:2: not valid YAML"),
        ("a:\n\t- b\n", "f:2:1: not valid YAML: found character"),
        ("a: b: c\n", "f:1:5: not valid YAML: mapping values are not allowed here"),
        ("a: !!python/object/apply:os.system [ls]\n", "f:1:4: the tag '!!python/object/apply:os"),
        ("a: !include x.yaml\n", "f:1:4: the tag '!include' is not taken"),
        ("a: !!int 3\n", "f:1:4: the tag '!!int' is not taken"),
        ("a: *b\n", "f:1:4: there is no anchor &b"),
        ("a: &b [*b]\n", "f:1:8: the alias *b stands inside what it names"),
        ("<<: {a: 1}\n", "f:1:1: merge keys (<<)"),
        ("? [a]\n: 1\n", "f:1:3: a key must be a word"),
        ("[a]: 1\n", "f:1:1: a key must be a word"),
        ('a: "\\0"\n', "f:1:4: a character that is no text"),
        ('a: "\\ud800"\n', "f:1:4: a character that is no text"),
        ('"\\0": 1\n', "f:1:1: a character that is no text"),
        ("a: \x07\n", "not valid YAML"),
        ("a: '\x00'\n", "not valid YAML"),
        ('a: "\\UFFFFFFFF"\n', "not valid YAML"),
        ("a: " + "[" * 60 + "]" * 60, "nested deeper than 50 levels"),
        ("a: " + "[" * 5000, "nested deeper than 50 levels"),
    ],
)
def test_refusals_have_a_place(text, says):
    assert says in refusal(text)


def test_aliases_cannot_blow_a_small_file_up():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 10)
    ]
    text = refusal("\n".join(lines))
    assert text.startswith("f:6:5: more than 200000 values once the aliases are written out")


def test_aliases_cannot_nest_without_end():
    lines = ["a0: &a0 [x]", *(f"a{level}: &a{level} [*a{level - 1}]" for level in range(1, 100))]
    assert "nested deeper than 50 levels" in refusal("\n".join(lines))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfea: 1", "byte 0 is not UTF-8"),
        (b"a: 1\n" * (source.MAX_BYTES // 5 + 1), "the file is larger than 1 MiB"),
    ],
)
def test_files_that_are_no_manifests(tmp_path, content, says):
    path = tmp_path / "f.yaml"
    path.write_bytes(content)
    with pytest.raises(ManifestError) as caught:
        read_file(path, {})
    assert says in str(caught.value)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    root = read_file(path, {})
    assert root.plain() == {"a": 1, "b": 2}
    assert str(root.at(("b",))) == f"{path}:2:1"


def test_a_folder_is_no_manifest(tmp_path):
    with pytest.raises(ManifestError, match="cannot be read: Is a directory"):
        read_file(tmp_path, {})


def test_variables_are_put_into_values_alone():
    assert plain("${A}: $${A}\nb: x${A}y$$\n", A="1") == {"${A}": "${A}", "b": "x1y$"}
    assert plain("a: ${A:-1.5}\nb: ${A:-}\nc: ${A:-x y}") == {"a": 1.5, "b": None, "c": "x y"}


def test_a_variable_cannot_bring_yaml_in():
    assert plain("a: ${A}", A="[1, 2]") == {"a": "[1, 2]"}


def test_a_variable_that_is_no_text_is_refused():
    assert "a character that is no text" in refusal("a: x${A}", A="\udcff")


# JSON writes what lies beyond 16 bits as two escapes, which YAML does not take for one letter.
words = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=("Cs", "Cc")), max_size=8)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False),
    words,
)
trees = st.recursive(
    scalars, lambda below: st.lists(below, max_size=4) | st.dictionaries(words, below, max_size=4)
)


def written(value):
    """The flow style, which is almost JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, float) and math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    return json.dumps(value.replace("$", "$$") if isinstance(value, str) else value)


@given(st.dictionaries(words, trees, max_size=5))
def test_what_is_written_is_read(tree):
    assert plain(written(tree)) == tree


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    try:
        node = parse_value(text, "f", {})
    except ManifestError as error:
        assert str(error).startswith("f")
    else:
        assert node is None or isinstance(node, Node)


letters = "a?!'\"|>#%\\@`[]{}1~\n\t "
pieces = (": ", "- ", ", ", "&x ", "*x", "!!str ", "${A}", "$$", "<<", "---", "...", "%YAML 1.1\n")
fragments = st.sampled_from([*letters, *pieces])


@given(st.lists(fragments, max_size=40).map("".join))
def test_any_pieces_of_yaml_are_read_or_refused(text):
    try:
        parse(text, "f", {"A": "x"})
    except ManifestError as error:
        assert error.remedy


@given(st.dictionaries(words, trees, max_size=4), st.dictionaries(words, trees, max_size=4))
def test_merging_lets_the_upper_win(under, over):
    def node(value):
        if isinstance(value, dict):
            return Node({key: node(below) for key, below in value.items()}, Place("f"))
        if isinstance(value, list):
            return Node([node(below) for below in value], Place("f"))
        return Node(value, Place("f"))

    def expected(low, high):
        if not (isinstance(low, dict) and isinstance(high, dict)):
            return high
        return low | {k: expected(low[k], v) if k in low else v for k, v in high.items()}

    assert merge(node(under), node(over)).plain() == expected(under, over)

"""YAML documents → JSON values: types by YAML 1.2, aliases, tags, and faults with their line."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.config.yaml_document import YamlError, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("12:30", "12:30"), ("017", 17), ("08540", 8540), ("0o17", 15),
        ("0x1f", 31), ("1e3", 1000.0), ("1_000", "1_000"), ("2026-11-30", "2026-11-30"), ("3.0", 3.0),
        ("3.0.3", "3.0.3"), ("true", True), ("False", False), ("~", None), ("''", ""), ("'true'", "true"),
        ('"1"', "1"), ("-7", -7),
        ("+.5", 0.5), ("=", "="), ("a: ", {"a": None}), ("200: x", {"200": "x"}), ("no: x", {"no": "x"}), ("", None),
        ("|\n  a\n  b\n", "a\nb\n"), ("!Ref Api", {"Ref": "Api"}), ("!Sub 'a-${B}'", {"Fn::Sub": "a-${B}"}),
        ("!GetAtt F.Arn", {"Fn::GetAtt": ["F", "Arn"]}), ("!Join ['', [a]]", {"Fn::Join": ["", ["a"]]}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("{<<: [{a: 1}, {a: 2, b: 2}]}", {"a": 1, "b": 2}), ("!!int '12'", 12), ("!!str 12", "12"),
    ],
)  # fmt: skip
def test_values(text: str, value: Any) -> None:
    found = parse(text.encode())
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [", "line 3: did not find expected node content"),
        ("a: 1\na: 2", "line 2: 'a' stands twice"),
        ("a:\n  - .inf", "line 2: .inf is no JSON value; put it in quotes if it is text"),
        ("a: 1e999", "line 1: 1e999 is larger than any number; put it in quotes if it is text"),
        ("? [a]\n: 1", "line 1: a key is text"),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        ("a: *b", "line 1: found undefined alias"),
        ("<<: 3", "line 1: << takes a mapping, or a list of them"),
    ],
)
def test_faults_have_their_line(text: str, message: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse(text.encode())
    assert str(caught.value) == message


def test_aliases_of_aliases_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 10)}]" for at in range(1, 8)]
    with pytest.raises(YamlError, match="more than 1000000 values"):
        parse("\n".join(lines).encode())


def test_deep_nesting_is_refused() -> None:
    assert parse(b"[" * 100 + b"]" * 100)
    with pytest.raises(YamlError, match="line 1: more than 100 values inside of each other"):
        parse(b"[" * 101 + b"]" * 101)


def test_an_alias_that_contains_itself_is_refused() -> None:
    with pytest.raises(RecursionError):
        parse(b"&a [*a]")

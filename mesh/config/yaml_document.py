"""JSON values of a YAML 1.2 document.

Plain scalars have the types of the core schema: ``no``, ``12:30``, ``017`` and ``2026-11-30`` are strings, as in the
JSON form of the same document. PyYAML's own loaders follow YAML 1.1, where they are a boolean, numbers and a date.
CloudFormation's short tags are read as their long form: ``!Sub text`` is ``{"Fn::Sub": "text"}``.

Sources: https://yaml.org/spec/1.2.2/ (sections 3.2.1.3, 10.3.2), CloudFormation user guide ("Intrinsic functions").
"""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["YamlError", "parse"]

_MAX_VALUES = 1_000_000
"""Values of a document with its aliases written out. A few lines of aliases of aliases have billions of them."""
_MAX_DEPTH = 100
"""Mappings and lists inside of each other."""
_TAGS = "tag:yaml.org,2002:"
_NULL = re.compile(r"(?:null|Null|NULL|~|)\Z")
_TRUE, _FALSE = re.compile(r"(?:true|True|TRUE)\Z"), re.compile(r"(?:false|False|FALSE)\Z")
_INTEGER = re.compile(r"[-+]?[0-9]+\Z")
_BASED = re.compile(r"0(?:o[0-7]+|x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")
_MERGE = "<<"
_PLAIN = "plain"
"""Tag of scalars without quotes and without a tag. PyYAML would resolve them by YAML 1.1."""
_RESOLVED = frozenset((_PLAIN, *(f"{_TAGS}{name}" for name in ("null", "bool", "int", "float"))))
"""Tags of scalars whose text decides the type."""


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    yaml_implicit_resolvers = {None: [(_PLAIN, re.compile(""))]}  # noqa: RUF012 - PyYAML's own form


class YamlError(ValueError):
    """The text is no YAML document with JSON values. The text begins with the line."""


def parse(data: bytes) -> Any:
    """Return the value of a document.

    Raises:
        YamlError: The text is not YAML, has several documents, a key that stands twice, or a value without a JSON form,
            is nested too deeply, or has aliases that make it too large.
        RecursionError: An alias contains itself.
    """
    try:
        _check_depth(data)
        node = yaml.compose(data, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise YamlError(f"{line}{error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise YamlError(" ".join(str(error).split())) from None
    return None if node is None else _Values().of(node)


def _check_depth(data: bytes) -> None:
    """Refuse a document that is nested deeply, before ``compose``, which calls itself in C, ends the process by it."""
    depth = 0
    for event in yaml.parse(data, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                line = event.start_mark.line + 1
                raise YamlError(f"line {line}: more than {_MAX_DEPTH} values inside of each other")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Values:
    def __init__(self) -> None:
        self._count = 0

    def of(self, node: yaml.Node) -> Any:
        self._count += 1
        if self._count > _MAX_VALUES:
            raise _error(node, f"with its aliases written out, the document has more than {_MAX_VALUES} values")
        if isinstance(node, yaml.MappingNode):
            value: Any = self._mapping(node)
        elif isinstance(node, yaml.SequenceNode):
            value = [self.of(one) for one in node.value]
        else:
            value = _scalar(node)
        return _function(node, value)

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        made: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error(key, "a key is text")
            name = str(key.value)  # as written: 200 is "200"
            if name == _MERGE and key.tag == _PLAIN:
                merged |= self._merge(value)
            elif name in made:
                raise _error(key, f"{name!r} stands twice")
            else:
                made[name] = self.of(value)
        return {**merged, **made} if merged else made

    def _merge(self, node: yaml.Node) -> dict[str, Any]:
        """Return the members that a ``<<`` adds: of a mapping, or of a list of mappings, the first of which win."""
        merged: dict[str, Any] = {}
        for one in reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]:
            value = self.of(one)
            if not isinstance(value, dict):
                raise _error(one, "<< takes a mapping, or a list of them")
            merged |= value
        return merged


def _scalar(node: yaml.Node) -> Any:
    text: str = node.value
    return _plain(node, text) if node.tag in _RESOLVED else text


def _plain(node: yaml.Node, text: str) -> Any:
    """Return the value of a scalar without quotes."""
    if _NULL.match(text):
        return None
    if _TRUE.match(text) or _FALSE.match(text):
        return text.lower() == "true"
    if _NOT_FINITE.match(text):
        raise _error(node, f"{text} is no JSON value; put it in quotes if it is text")
    try:
        if _INTEGER.match(text):
            return int(text)
    except ValueError:  # more digits than Python converts
        raise _error(node, "the number has too many digits") from None
    if _BASED.match(text):
        return int(text, 0)
    return _finite(node, text) if _FLOAT.match(text) else text


def _finite(node: yaml.Node, text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _error(node, f"{text} is larger than any number; put it in quotes if it is text")
    return value


def _function(node: yaml.Node, value: Any) -> Any:
    """Return the long form of a value with a short tag of CloudFormation, and any other value unchanged."""
    tag = str(node.tag)
    if not tag.startswith("!") or tag == "!":
        return value
    name = tag[1:]
    if name == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {name if name in ("Ref", "Condition") else f"Fn::{name}": value}


def _error(node: yaml.Node, text: str) -> YamlError:
    return YamlError(f"line {node.start_mark.line + 1}: {text}")

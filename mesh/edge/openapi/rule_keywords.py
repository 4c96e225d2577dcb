"""JSON Schema keywords for the rules of fields (``buf.validate``): bounds, lengths, patterns, formats. Pure.

A schema shows the rules that JSON Schema can say. Other rules (CEL, bounds of 64-bit integers, which are strings in
JSON, times relative to now) become a note. A schema never refuses a value that the rules accept, with two exceptions:

- ``ignore: IGNORE_IF_ZERO_VALUE`` accepts the empty value too. A client leaves an empty field out.
- ``ignore: IGNORE_ALWAYS`` on a message accepts every value of its fields. The schema is that of the message type.

Sources: buf/validate/validate.proto, JSON Schema 2020-12 (validation), OpenAPI 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from mesh.contract.breaks.constraints import Constraints, ConstraintsReader
from mesh.edge.openapi.ecma_pattern import ecma_pattern, escaped
from mesh.rules.message_types import is_map

__all__ = ["RuleKeywords"]

Schema = dict[str, Any]

_IGNORE_ALWAYS = 3
_FORMATS = {
    "email": "email", "hostname": "hostname", "ipv4": "ipv4", "ipv6": "ipv6", "uri": "uri", "uri_ref": "uri-reference",
    "uuid": "uuid",
}  # fmt: skip
_PATTERNS = {"tuuid": "^[0-9A-Fa-f]{32}$"}
_NOT_EMPTY = frozenset((*_FORMATS, *_PATTERNS)) - {"uri_ref"} | {
    "address", "host_and_port", "ip", "ip_prefix", "ip_with_prefixlen", "ipv4_prefix", "ipv4_with_prefixlen",
    "ipv6_prefix", "ipv6_with_prefixlen",
}  # fmt: skip
"""Formats that refuse the empty text."""
_LENGTHS = {"min_len": "minLength", "max_len": "maxLength"}
_COUNTS = {
    "repeated.min_items": "minItems", "repeated.max_items": "maxItems",
    "map.min_pairs": "minProperties", "map.max_pairs": "maxProperties",
}  # fmt: skip
_BOUNDS = {"gt": "exclusiveMinimum", "gte": "minimum", "lt": "exclusiveMaximum", "lte": "maximum"}
_LOW, _HIGH = ("gt", "gte"), ("lt", "lte")
_PLAIN_NUMBERS = ("int32", "sint32", "sfixed32", "uint32", "fixed32", "float", "double")
"""Types that are JSON numbers."""
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
"""Types with a value, NaN, that equals no other, and with two zeros."""
_SILENT = ("ignore", "required", "example", "disabled", "strict", "defined_only")
"""Rules that are shown otherwise, or that say nothing about values."""


class RuleKeywords:
    """Keywords of the fields of one contract.

    Args:
        pool: Descriptor pool of the contract.
    """

    def __init__(self, pool: DescriptorPool) -> None:
        self._reader = ConstraintsReader(pool)

    def required(self, field: FieldDescriptor) -> bool:
        """Whether the rules of ``buf.validate`` refuse a message in which the field is not set."""
        rules = self._of(field)
        return not rules.get("ignore") and (bool(rules.get("required")) or _refuses_zero(rules, field))

    def apply(self, field: FieldDescriptor, schema: Schema) -> tuple[Schema, list[str]]:
        """Return the schema of a field with the keywords of its rules, and notes about the other rules.

        Args:
            field: The field.
            schema: Schema of its values: an array for a list, an object for a map.
        """
        rules = self._of(field)
        if not rules:
            return schema, []
        said: set[str] = set()
        schema = dict(schema)
        for name, keyword in _COUNTS.items():
            if rules.get(name):
                schema[keyword] = rules[name]
                said.add(name)
        if rules.get("repeated.unique") and field.cpp_type not in _FLOATS:
            schema["uniqueItems"] = True
            said.add("repeated.unique")
        if is_map(field):
            message: Any = field.message_type
            entry = message.fields_by_name
            self._inner(schema, "propertyNames", entry["key"], rules, "map.keys.", said)
            self._inner(schema, "additionalProperties", entry["value"], rules, "map.values.", said)
        elif field.is_repeated:
            self._inner(schema, "items", field, rules, "repeated.items.", said)
        else:
            schema = _scalar(schema, field, rules, "", said)
        return schema, [*_notes(rules, said)]

    def message_notes(self, message: Any) -> list[str]:
        """Return notes about the rules of a message as a whole."""
        notes = []
        for name, value in self._reader.of_message(message).items():
            if name.startswith("oneof["):
                names = ", ".join(f"`{one}`" for one in name[6:-1].split(", "))
                notes.append(f"{'Exactly' if value else 'At most'} one of {names} is set.")
            elif name.startswith("cel"):
                notes += [f"Rule: `{one}`." for one in (value if isinstance(value, tuple) else (value,))]
        return notes

    def oneof_required(self, oneof: Any) -> bool:
        """Whether a member of a oneof has to be set."""
        return bool(self._reader.of_oneof(oneof).get("required"))

    def _of(self, field: FieldDescriptor) -> Constraints:
        """Return the rules of ``buf.validate`` that apply to a field."""
        rules = self._reader.rules_of_field(field)
        return {} if rules.get("ignore") == _IGNORE_ALWAYS else rules

    def _inner(
        self, schema: Schema, keyword: str, field: FieldDescriptor, rules: Constraints, prefix: str, said: set[str]
    ) -> None:
        inner = schema.get(keyword, {})
        if rules.get(f"{prefix}ignore") != _IGNORE_ALWAYS:
            changed = _scalar(inner, field, rules, prefix, said, name=keyword == "propertyNames")
            if changed != inner:
                schema[keyword] = changed


def _scalar(
    schema: Schema, field: FieldDescriptor, rules: Constraints, prefix: str, said: set[str], *, name: bool = False
) -> Schema:
    """Return the schema of one value with the rules of a group: ``string.``, ``repeated.items.string.``.

    Args:
        schema: Schema of the value.
        field: The field of the value.
        rules: All rules of the field.
        prefix: Beginning of the rules of the group: ``""``, ``repeated.items.``.
        said: Names of rules that are in the schema; it is extended.
        name: Whether the value is the key of a map, which is text in JSON.
    """
    names = [key.removeprefix(prefix) for key in rules if key.startswith(prefix)]
    for group in sorted({key.partition(".")[0] for key in names if "." in key} - {"repeated", "map"}):
        begin = f"{prefix}{group}."
        own = {key.removeprefix(begin): value for key, value in rules.items() if key.startswith(begin)}
        if group == "string":
            keywords = dict(_text(own, begin, said))
        elif group == "bytes":
            keywords = dict(_bytes(own, begin, said))
        elif group == "enum":
            keywords = _enum(field.enum_type, own, begin, said)
        elif group == "bool" and not name:
            keywords = {"enum": list(own["in"])} if "in" in own else {}
            said.add(f"{begin}in")
        elif group in _PLAIN_NUMBERS and not name:
            schema = _number(schema, own, begin, said)
            continue
        else:
            continue
        if "null" in schema.get("type", ()) and "enum" in keywords:
            keywords["enum"] = [*keywords["enum"], None]
        schema = {**schema, **keywords}
    return schema


def _text(own: Mapping[str, Any], begin: str, said: set[str]) -> Iterator[tuple[str, Any]]:
    for rule, keyword in _LENGTHS.items():
        if rule in own:
            said.add(begin + rule)
            yield keyword, own[rule]
    for rule, found in _FORMATS.items():
        if own.get(rule):
            said.add(begin + rule)
            yield "format", found
    if "in" in own:
        said.add(f"{begin}in")
        yield "enum", list(own["in"])
    if "not_in" in own:
        said.add(f"{begin}not_in")
        yield "not", {"enum": list(own["not_in"])}
    patterns = dict(_patterns(own))
    said.update(begin + rule for rule in patterns)
    yield from _all_match(list(patterns.values()))


def _patterns(own: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield rules with the pattern that says the same."""
    for rule, pattern in _PATTERNS.items():
        if own.get(rule):
            yield rule, pattern
    if "pattern" in own:
        found = ecma_pattern(own["pattern"])
        if found is not None:
            yield "pattern", found
    if "prefix" in own:
        yield "prefix", f"^{escaped(own['prefix'])}"
    if "suffix" in own:
        yield "suffix", f"{escaped(own['suffix'])}$"
    if "contains" in own:
        yield "contains", escaped(own["contains"])


def _all_match(patterns: list[str]) -> Iterator[tuple[str, Any]]:
    if patterns:
        yield "pattern", patterns[0]
    if patterns[1:]:
        yield "allOf", [{"pattern": pattern} for pattern in patterns[1:]]


def _bytes(own: Mapping[str, Any], begin: str, said: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield lengths of the base64 text: four characters for three bytes."""
    for rule, keyword in _LENGTHS.items():
        if rule in own:
            said.add(begin + rule)
            yield keyword, -(-own[rule] // 3) * 4


def _enum(enum: Any, own: Mapping[str, Any], begin: str, said: set[str]) -> Schema:
    if "in" not in own and "not_in" not in own:
        return {}
    said |= {f"{begin}in", f"{begin}not_in"}
    allowed = own.get("in", [value.number for value in enum.values])
    refused = own.get("not_in", ())
    return {"enum": [one.name for one in enum.values if one.number in allowed and one.number not in refused]}


def _number(schema: Schema, own: Mapping[str, Any], begin: str, said: set[str]) -> Schema:
    said |= {f"{begin}{rule}" for rule in (*_BOUNDS, "in", "not_in", "finite")}
    bounds = {_BOUNDS[rule]: own[rule] for rule in (*_LOW, *_HIGH) if rule in own}
    low = next((own[rule] for rule in _LOW if rule in own), None)
    high = next((own[rule] for rule in _HIGH if rule in own), None)
    if low is not None and high is not None and low > high:
        bounds = {"anyOf": [{key: value} for key, value in bounds.items()]}
    if "in" in own:
        bounds["enum"] = list(own["in"])
    if "not_in" in own:
        bounds["not"] = {"enum": list(own["not_in"])}
    if "oneOf" not in schema:  # an integer
        tighter = {key: value for key, value in bounds.items() if not _within_type(schema, key, value)}
        for exclusive, inclusive in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if exclusive in tighter:
                schema = {key: value for key, value in schema.items() if key != inclusive}
        return {**schema, **tighter}
    number, special, *others = schema["oneOf"]
    ranged = low is not None or high is not None
    infinite = "in" not in own and not own.get("finite") and special["enum"]
    kept = [
        one
        for one in infinite or ()
        if not (ranged and one == "NaN") and not (one == "Infinity" and high is not None)
        and not (one == "-Infinity" and low is not None)
    ]  # fmt: skip
    branches = [{**number, **bounds}, *([{**special, "enum": kept}] if kept else []), *others]
    rest = {key: value for key, value in schema.items() if key != "oneOf"}
    return {**rest, "oneOf": branches} if len(branches) > 1 else {**rest, **branches[0]}


def _within_type(schema: Schema, keyword: str, value: Any) -> bool:
    """Whether a bound is no tighter than that of the type."""
    if keyword == "minimum":
        return bool(value <= schema.get("minimum", value - 1))
    return keyword == "maximum" and bool(value >= schema.get("maximum", value + 1))


def _notes(rules: Constraints, said: set[str]) -> Iterator[str]:
    for name, value in rules.items():
        if name in said or name.rpartition(".")[2] in _SILENT or value is False:
            continue
        if "cel[" in name or "cel_expression" in name:
            for one in value if isinstance(value, tuple) else (value,):
                yield f"Rule: `{one}`."
        else:
            yield f"Rule: {name}" + ("." if value is True else f" = {_shown(name, value)}.")


def _shown(name: str, value: Any) -> str:
    group = name.rpartition(".")[0]
    if group.endswith(("duration", "timestamp")) and isinstance(value, tuple):
        times = value if isinstance(value[0], tuple) else (value,)
        return ", ".join(f"{seconds}.{nanos:09}".rstrip("0").rstrip(".") + " s" for seconds, nanos in times)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _refuses_zero(rules: Constraints, field: FieldDescriptor) -> bool:
    """Whether a rule certainly refuses the zero value of a field without presence."""
    if field.has_presence:
        return False
    if field.is_repeated:
        return bool(rules.get("repeated.min_items") or rules.get("map.min_pairs"))
    zero: Any = {FieldDescriptor.TYPE_STRING: "", FieldDescriptor.TYPE_BYTES: b""}.get(field.type, 0)
    refused = any(_is_refused(name.rpartition(".")[2], value, zero) for name, value in rules.items())
    return refused or _out_of_range(rules)


def _is_refused(rule: str, value: Any, zero: Any) -> bool:
    if rule in ("min_len", "min_bytes"):
        return bool(value)
    if rule in _NOT_EMPTY:
        return value is True
    listed = rule in ("in", "not_in") and (zero in value) == (rule == "not_in")
    return listed or rule in ("prefix", "suffix", "contains")


def _out_of_range(rules: Constraints) -> bool:
    """Whether 0 is out of the range of the rules."""
    found = {name.rpartition(".")[2]: value for name, value in rules.items()}
    low = next((found[rule] for rule in _LOW if rule in found), None)
    high = next((found[rule] for rule in _HIGH if rule in found), None)
    below = low is not None and (low > 0 or (low == 0 and "gt" in found))
    above = high is not None and (high < 0 or (high == 0 and "lt" in found))
    if low is not None and high is not None and low > high:  # outside of the two
        return below and above
    return below or above

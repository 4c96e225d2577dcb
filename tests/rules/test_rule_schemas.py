"""Rules in JSON Schemas: no schema refuses a value that the rules accept, and the common rules are keywords."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from jsonschema import Draft202012Validator
from rule_table import ROWS

from mesh.contract.model import Contract
from mesh.edge.openapi.ecma_pattern import ecma_pattern
from mesh.edge.openapi.schemas import Schemas

VALID = [(number, value) for number, row in enumerate(ROWS) for value in row.valid]


def errors(schemas: Schemas, descriptor: Any, value: Any) -> list[str]:
    schema = schemas.requests.message(descriptor)
    document = {**schema, "components": {"schemas": schemas.components}}
    return [error.message for error in Draft202012Validator(document).iter_errors(value)]


@pytest.mark.parametrize(
    ("number", "value"), VALID, ids=[f"{ROWS[number].declaration[:90]} {value!r}" for number, value in VALID]
)
def test_a_valid_value_is_valid_for_the_schema(
    table_pool: DescriptorPool, message_of: Callable[[int, Any], Message], number: int, value: Any
) -> None:
    if "IGNORE_ALWAYS" in ROWS[number].declaration and isinstance(value, dict):
        pytest.skip("the schema is that of the message type")
    message = message_of(number, value)
    fields = json_format.MessageToDict(message, descriptor_pool=table_pool)
    assert errors(Schemas(table_pool, {}), message.DESCRIPTOR, fields) == []


SILENT = {
    "string": "address host_and_port ip ip_prefix ip_with_prefixlen ipv4_prefix ipv4_with_prefixlen ipv6_prefix "
    "ipv6_with_prefixlen min_bytes max_bytes len_bytes not_contains well_known_regex.header_name "
    "well_known_regex.header_value email hostname ipv4 ipv6 uri uri_ref uuid",
    "bytes": "const contains in not_in pattern prefix suffix ip ipv4 ipv6 uuid max_len len",
    "int32": "multiple_of",
    "repeated": "unique",
    "message": "oneof",
}
"""Rules that a schema does not refuse: it has a note, or a format, which validators ignore."""
SILENT_TYPES = ("uint64.", "int64.", "sint64.", "fixed64.", "sfixed64.", "duration.", "timestamp.", "any.",
                "field_mask.")  # fmt: skip
SILENT_DECLARATIONS = ("oneof", "well_known_regex", "(?i)", "(shouting)", "bytes.min_len", "update_mask")
PYTHON_ONLY = ("abc\n", "\u0667")
"""Values that Python's regular expressions match, unlike those of ECMA-262."""
SILENT_EXPRESSIONS = {"f.x", "in", "item", "k", "lib", "now", "num", "order", "sum", "this.f != this.g"}


def test_an_invalid_value_is_invalid_for_the_schema_if_json_schema_can_say_so(
    table_pool: DescriptorPool, message_of: Callable[[int, Any], Message]
) -> None:
    schemas = Schemas(table_pool, {})
    silent = SILENT_EXPRESSIONS | {f"{kind}.{rule}" for kind, rules in SILENT.items() for rule in rules.split()}
    found = []
    for number, row in enumerate(ROWS):
        for value, rules in row.invalid:
            message = message_of(number, value)
            fields = json_format.MessageToDict(message, descriptor_pool=table_pool)
            loud = [rule for rule in rules if rule not in silent and not rule.startswith(SILENT_TYPES)]
            shown = not any(part in row.declaration for part in SILENT_DECLARATIONS) and value not in PYTHON_ONLY
            if loud and shown and not errors(schemas, message.DESCRIPTOR, fields):
                found.append((row.declaration, value))
    assert found == []


def properties(contract: Contract, message: str, *, use: str = "") -> dict[str, Any]:
    schemas = Schemas(contract.pool, {})
    (schemas.requests if use else schemas).message(contract.pool.FindMessageTypeByName(message))
    found: dict[str, Any] = schemas.components[f"{message}{use}"]
    return found


def test_rules_are_keywords(contract: Contract) -> None:
    book = properties(contract, "rules.v1.Book")
    assert book["required"] == ["title"]
    assert book["properties"]["title"] == {"type": "string", "minLength": 2, "maxLength": 40, "pattern": "^[A-Z]"}
    assert book["properties"]["authors"]["maxItems"] == 2
    assert properties(contract, "rules.v1.Author")["properties"]["email"] == {"type": "string", "format": "email"}
    assert properties(contract, "rules.v1.Ratio")["properties"]["divisor"]["description"] == "Rule: `10 % this == 0`."


def test_a_request_has_no_output_only_field(contract: Contract) -> None:
    assert properties(contract, "rules.v1.Book")["properties"]["id"] == {"type": "string", "readOnly": True}
    book = properties(contract, "rules.v1.Book", use="-request")
    assert list(book["properties"]) == ["title", "authors"]
    assert book["properties"]["authors"]["items"] == {"$ref": "#/components/schemas/rules.v1.Author-request"}


def test_beside_a_mask_nothing_is_required_but_by_its_rules(contract: Contract) -> None:
    schemas = Schemas(contract.pool, {})
    schemas.requests.message(contract.pool.FindMessageTypeByName("rules.v1.UpdateRequest"))
    update = schemas.components["rules.v1.UpdateRequest-request"]
    assert update["properties"]["book"] == {"$ref": "#/components/schemas/rules.v1.Book-update"}
    assert "required" not in schemas.components["rules.v1.Author-update"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("^[a-z]+$", "^[a-z]+$"), (r"\Aa\z", "^a$"), (r"a\-b", "a-b"), (r"[a\-b]", r"[a\-b]"), (r"a\_b", "a_b"),
        (r"(?P<year>\d{4})", r"(?<year>\d{4})"), (r"(?<year>\d)", r"(?<year>\d)"), ("(?:a|b)", "(?:a|b)"),
        (r"\s", r"[\t\n\f\r ]"), (r"\S", r"[^\t\n\f\r ]"), (r"[\s]", r"[\t\n\f\r ]"), ("a{,3}", r"a\{,3\}"),
        ("a{2,3}", "a{2,3}"), ("{", r"\{"), ("[]a]", r"[\]a]"), (r"\x41", r"\x41"), (r"\.", r"\."), (r"\/", r"\/"),
        ("(?i)a", None), ("(?s).", None), (r"\pL", None), (r"\p{Greek}", None), ("[[:alpha:]]", None),
        (r"\Qa\E", None), (r"\x{1F600}", None), (r"\C", None), (r"\012", None), (r"[\pL]", None), (r"[\S]", None),
    ],
)  # fmt: skip
def test_a_pattern_is_translated_or_left_out(pattern: str, expected: str | None) -> None:
    assert ecma_pattern(pattern) == expected
    if expected is not None and "(?<" not in expected:
        re.compile(expected)

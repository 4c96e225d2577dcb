"""The table of rules, through ``mesh.validate``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest
from rule_table import ROWS

import mesh


def violated(message: Message) -> list[str]:
    try:
        mesh.validate(message)
    except mesh.InvalidArgument as error:
        (detail,) = error.details
        assert isinstance(detail, BadRequest)
        assert all(violation.description for violation in detail.field_violations)
        return [violation.reason for violation in detail.field_violations]
    return []


CASES = [(number, value, []) for number, row in enumerate(ROWS) for value in row.valid]
CASES += [(number, value, rules) for number, row in enumerate(ROWS) for value, rules in row.invalid]


@pytest.mark.parametrize(
    ("number", "value", "rules"), CASES, ids=[f"{ROWS[case[0]].declaration[:90]} {case[1]!r}" for case in CASES]
)
def test_a_rule(message_of: Callable[[int, Any], Message], number: int, value: Any, rules: list[str]) -> None:
    assert sorted(violated(message_of(number, value))) == sorted(rules)


def test_the_table_is_large() -> None:
    assert len(CASES) >= 150
    assert len({rule for _, _, rules in CASES for rule in rules}) >= 100

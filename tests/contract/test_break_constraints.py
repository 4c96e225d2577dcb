# ruff: noqa: E501 - a case is one line
"""Rules that become tighter: a table of changes of ``buf.validate`` with their verdicts, held to protovalidate."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from compiled_contract import contract_of

from mesh.contract.breaks.comparison import breaks
from mesh.contract.breaks.constraints import ConstraintsReader, tightened
from mesh.contract.model import Contract
from mesh.errors import InvalidArgument
from mesh.rules.message_checks import validate

TEXT = """syntax = "proto3";
package t.v1;
import "buf/validate/validate.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/timestamp.proto";
service S { rpc Do(REQUEST) returns (RESPONSE); }
message Req { string id = 1; In in = 2; }
message Res { string id = 1; }
message In { MEMBERS }
enum E { A = 0; B = 1; }
"""


def contract(members: str, request: str = "Req", response: str = "Res") -> Contract:
    return contract_of(t=TEXT.replace("MEMBERS", members).replace("REQUEST", request).replace("RESPONSE", response))


def field(rules: str, kind: str = "string") -> str:
    return f"{kind} f = 1 [{rules}];" if rules else f"{kind} f = 1;"


def v(rule: str, kind: str = "string") -> str:
    """Return a field with a rule of its kind, as in ``v("min_len = 3")``."""
    return field(f"(buf.validate.field).{kind}.{rule}", kind)


R = "(buf.validate.field)."
WHOLE = "google.protobuf.Duration"
TIGHTER, SAME = True, False
CASES = [
    # -- length and format --
    (field(""), v("min_len = 3"), TIGHTER),
    (v("min_len = 3"), field(""), SAME),
    (v("min_len = 3"), v("min_len = 4"), TIGHTER),
    (v("min_len = 3"), v("min_len = 2"), SAME),
    (v("max_len = 3"), v("max_len = 2"), TIGHTER),
    (v("max_len = 3"), v("max_len = 4"), SAME),
    (v("len = 3"), v("len = 4"), TIGHTER),
    (v("len = 3"), v("min_len = 3"), SAME),
    (v("min_len = 3"), v("len = 3"), TIGHTER),
    (v("max_bytes = 9"), v("max_bytes = 8"), TIGHTER),
    (v('pattern = "a+"'), v('pattern = "a*"'), TIGHTER),
    (v('pattern = "a+"'), field(""), SAME),
    (v('prefix = "ab"'), v('prefix = "a"'), SAME),
    (v('prefix = "a"'), v('prefix = "ab"'), TIGHTER),
    (v('suffix = "ba"'), v('suffix = "a"'), SAME),
    (v('contains = "abc"'), v('contains = "b"'), SAME),
    (v('contains = "b"'), v('contains = "abc"'), TIGHTER),
    (field(""), v("email = true"), TIGHTER),
    (v("email = true"), v("email = false"), SAME),
    (v("email = true"), v("uuid = true"), TIGHTER),
    (v("ipv4 = true"), v("ip = true"), SAME),
    (v("ip = true"), v("ipv4 = true"), TIGHTER),
    (v("uri = true"), v("uri_ref = true"), SAME),
    (v('const = "a"'), v('const = "b"'), TIGHTER),
    (v('const = "a"'), v('in = "a"'), SAME),
    (field(f'{R}string = {{ in: ["a", "b"] }}'), v('const = "a"'), TIGHTER),
    (field(f'{R}string = {{ in: ["a"] }}'), field(f'{R}string = {{ in: ["a", "b"] }}'), SAME),
    (field(f'{R}string = {{ in: ["a", "b"] }}'), field(f'{R}string = {{ in: ["a"] }}'), TIGHTER),
    (v('not_in = "a"'), field(f'{R}string = {{ not_in: ["a", "b"] }}'), TIGHTER),
    (field(f'{R}string = {{ not_in: ["a", "b"] }}'), v('not_in = "a"'), SAME),
    (v('example = "a"'), v('example = "b"'), SAME),
    # -- numbers --
    (field("", "int32"), v("gt = 0", "int32"), TIGHTER),
    (v("gt = 0", "int32"), v("gte = 0", "int32"), SAME),
    (v("gte = 0", "int32"), v("gt = 0", "int32"), TIGHTER),
    (v("gt = 0", "int32"), v("gt = -1", "int32"), SAME),
    (v("lt = 9", "int32"), v("lte = 9", "int32"), SAME),
    (v("lte = 9", "int32"), v("lte = 8", "int32"), TIGHTER),
    (v("gt = 0", "int32"), field(f"{R}int32 = {{ gt: 0 lt: 9 }}", "int32"), TIGHTER),
    (field(f"{R}int32 = {{ gt: 0 lt: 9 }}", "int32"), v("gt = 0", "int32"), SAME),
    (field(f"{R}double = {{ gt: 5 lt: 3 }}", "double"), field(f"{R}double = {{ gt: 6 lt: 3 }}", "double"), TIGHTER),
    (field("", "double"), v("finite = true", "double"), TIGHTER),
    # -- other kinds --
    (field("", "E"), field(f"{R}enum.defined_only = true", "E"), TIGHTER),
    (field(f"{R}enum.defined_only = true", "E"), field("", "E"), SAME),
    (field("", "repeated string"), field(f"{R}repeated.min_items = 1", "repeated string"), TIGHTER),
    (field("", "repeated string"), field(f"{R}repeated.unique = true", "repeated string"), TIGHTER),
    (field("", "repeated string"), field(f"{R}repeated.items.string.min_len = 2", "repeated string"), TIGHTER),
    (field(f"{R}repeated.items.string.min_len = 2", "repeated string"), field(f"{R}repeated.items.string.min_len = 1", "repeated string"), SAME),
    (field("", "map<string, int32>"), field(f"{R}map.values.int32.gt = 2", "map<string, int32>"), TIGHTER),
    (field(f"{R}map.max_pairs = 3", "map<string, int32>"), field(f"{R}map.max_pairs = 2", "map<string, int32>"), TIGHTER),
    (field("", WHOLE), field(f"{R}duration.lte = {{ seconds: 9 }}", WHOLE), TIGHTER),
    (field(f"{R}duration.lte = {{ seconds: 9 }}", WHOLE), field(f"{R}duration.lte = {{ seconds: 9 nanos: 1 }}", WHOLE), SAME),
    (field("", "google.protobuf.Timestamp"), field(f"{R}timestamp.lt_now = true", "google.protobuf.Timestamp"), TIGHTER),
    # -- required, ignore, CEL --
    (field(""), field(f"{R}required = true"), TIGHTER),
    (field(f"{R}required = true"), field(""), SAME),
    (field(f"{R}string.min_len = 3, {R}ignore = IGNORE_IF_ZERO_VALUE"), v("min_len = 3"), TIGHTER),
    (v("min_len = 3"), field(f"{R}string.min_len = 3, {R}ignore = IGNORE_IF_ZERO_VALUE"), SAME),
    (field(""), field(f'{R}cel = {{ id: "a" expression: "this != \\"x\\"" }}'), TIGHTER),
    (field(f'{R}cel = {{ id: "a" expression: "this != \\"x\\"" }}'), field(f'{R}cel = {{ id: "a" message: "no x" expression: "this != \\"x\\"" }}'), SAME),
    (field(f'{R}cel = {{ id: "a" expression: "this != \\"x\\"" }}'), field(""), SAME),
    ("string f = 1;", 'option (buf.validate.message).cel = { id: "a" expression: "this.f != \\"x\\"" }; string f = 1;'.replace("\\\\", "\\"), TIGHTER),
    ("oneof o { string f = 1; int32 g = 2; }", "oneof o { option (buf.validate.oneof).required = true; string f = 1; int32 g = 2; }", TIGHTER),
    ("oneof o { option (buf.validate.oneof).required = true; string f = 1; int32 g = 2; }", "oneof p { option (buf.validate.oneof).required = true; string f = 1; int32 g = 2; }", SAME),
    ("string f = 1; string g = 2;", 'option (buf.validate.message).oneof = { fields: ["f", "g"] }; string f = 1; string g = 2;', TIGHTER),
]  # fmt: skip
NEW_FIELDS = [
    (f"string g = 2 [{R}string.min_len = 1];", TIGHTER),
    (f"string g = 2 [{R}string.max_len = 1];", SAME),
    (f"string g = 2 [{R}string.email = true];", TIGHTER),
    (f"string g = 2 [{R}string.min_len = 1, {R}ignore = IGNORE_IF_ZERO_VALUE];", SAME),
    (f"optional string g = 2 [{R}string.min_len = 1];", SAME),
    (f"optional string g = 2 [{R}required = true];", TIGHTER),
    (f"int32 g = 2 [{R}int32.gt = 0];", TIGHTER),
    (f"int32 g = 2 [{R}int32.gte = 0];", SAME),
    (f"int32 g = 2 [{R}int32.lt = 9];", SAME),
    (f"int32 g = 2 [{R}int32 = {{ in: [1, 2] }}];", TIGHTER),
    (f"int32 g = 2 [{R}int32 = {{ in: [0, 2] }}];", SAME),
    (f"int32 g = 2 [{R}int32.not_in = 0];", TIGHTER),
    (f"E g = 2 [{R}enum.defined_only = true];", SAME),
    (f"repeated string g = 2 [{R}repeated.min_items = 1];", TIGHTER),
    (f"repeated string g = 2 [{R}repeated.items.string.min_len = 1];", SAME),
    (f"map<string, int32> g = 2 [{R}map.keys.string.min_len = 1];", SAME),
    (f"google.protobuf.Duration g = 2 [{R}duration.gt = {{ seconds: 1 }}];", SAME),
]


@pytest.mark.parametrize(("old", "new", "tighter"), CASES)
def test_a_rule_that_refuses_more_is_a_break(old: str, new: str, *, tighter: bool) -> None:
    found = breaks(contract(old), contract(new))
    assert {one.rule for one in found} <= {"RULE_TIGHTENED"}, "\n".join(map(str, found))
    assert bool(found) is tighter, "\n".join(map(str, found))


@pytest.mark.parametrize(("old", "new"), [(old, new) for old, new, tighter in CASES if tighter][:3])
def test_rules_of_responses_break_nobody(old: str, new: str) -> None:
    """The mesh does not check responses."""
    assert breaks(contract(old, "Res", "Req"), contract(new, "Res", "Req")) == []


@pytest.mark.parametrize(("added", "must_be_set"), NEW_FIELDS)
def test_a_new_field_that_must_be_set_is_a_break(added: str, *, must_be_set: bool) -> None:
    """The engine agrees: it refuses the message without the field, or does not."""
    new = contract(f"string f = 1; {added}")
    found = breaks(contract("string f = 1;"), new)
    assert [one.rule for one in found] == ["REQUIRED_FIELD_ADDED"] * must_be_set, "\n".join(map(str, found))
    message: Any = new.message("t.v1.In")(f="x")
    if must_be_set:
        with pytest.raises(InvalidArgument):
            validate(message)
    else:
        validate(message)


RANGES = [
    " ".join(part for part in (low, high) if part)
    for low in ("", "gt: 0", "gte: 0", "gt: 2", "gte: 2")
    for high in ("", "lt: 0", "lte: 0", "lt: 2", "lte: 2")
]


def test_ranges_are_compared_as_the_engine_has_them() -> None:
    """All pairs of ranges, also those that accept what is outside of their bounds."""
    messages = "".join(
        f"message M{index} {{ int32 f = 1 [{R}int32 = {{ {one} }}]; }}" for index, one in enumerate(RANGES)
    )
    made = contract(messages)
    reader = ConstraintsReader(made.pool)
    kinds = [made.message(f"t.v1.In.M{index}") for index in range(len(RANGES))]
    rules = [reader.of_field(kind.DESCRIPTOR.fields_by_name["f"]) for kind in kinds]
    accepted = [{value for value in range(-2, 5) if accepts(kind, value)} for kind in kinds]
    for old, new in product(range(len(RANGES)), repeat=2):
        found = list(tightened(rules[old], rules[new]))
        outside = any(
            "gt" in one and "lt" in one and accepted[index] - {0, 1, 2}
            for index, one in ((old, RANGES[old]), (new, RANGES[new]))
        )
        if not found:
            assert accepted[old] <= accepted[new], (RANGES[old], RANGES[new])
        elif accepted[old] and not outside:  # a change of a range that accepts what is outside always counts
            assert not accepted[old] <= accepted[new], (RANGES[old], RANGES[new], found)


def accepts(kind: Any, value: int) -> bool:
    try:
        validate(kind(f=value))
    except InvalidArgument:
        return False
    return True

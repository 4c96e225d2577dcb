# ruff: noqa: E501 - a case is one line
"""Bytes of one contract read with another one."""

from __future__ import annotations

import pytest
from compiled_contract import compiled
from google.protobuf import json_format

from mesh.contract import loader
from mesh.contract.breaks.decoded_bytes import decoding_fault
from mesh.contract.model import Contract

HEAD = """syntax = "proto3"; package t;
enum E { A = 0; B = 1; } message In { string s = 1; int32 n = 2; }
message M { FIELDS }
"""


def contract(fields: str, head: str = HEAD) -> Contract:
    return loader.read(compiled(t=head.replace("FIELDS", fields)))


@pytest.mark.parametrize(
    ("old", "new", "value", "text"),
    [
        ("string f = 1;", "string f = 1; int32 g = 2;", {"f": "x"}, ""),
        ("string f = 1;", "", {"f": "x"}, ""),
        ("string f = 1;", "bytes f = 1;", {"f": "ä"}, ""),
        ("bytes f = 1;", "string f = 1;", {"f": "/w=="}, "it cannot be decoded"),
        ("string f = 1;", "int32 f = 1;", {"f": "x"}, "f was a text of length 1 and reads as 0 now"),
        ("int32 f = 1;", "string f = 1;", {"f": 7}, "f was 7 and reads as nothing now"),
        ("int32 f = 1;", "uint32 f = 1;", {"f": 7}, ""),
        ("int32 f = 1;", "uint32 f = 1;", {"f": -7}, "f was -7 and reads as 4294967289 now"),
        ("int64 f = 1;", "int32 f = 1;", {"f": 2**40}, "f was 1099511627776 and reads as 0 now"),
        ("int32 f = 1;", "sint32 f = 1;", {"f": 4}, "f was 4 and reads as 2 now"),
        ("double f = 1;", "double f = 1;", {"f": "NaN"}, ""),
        ("double f = 1;", "fixed64 f = 1;", {"f": 1.5}, "f was 1.5 and reads as 4609434218613702656 now"),
        ("E f = 1;", "enum G { C = 0; } G f = 1;", {"f": "B"}, "f is B (1), which t.M.G lacks"),
        ("E f = 1;", "int32 f = 1;", {"f": "B"}, ""),
        ("string f = 1;", "repeated string f = 1;", {"f": "x"}, "f has another form now"),
        ("repeated int32 f = 1;", "repeated uint32 f = 1;", {"f": [1, -1]}, "f[1] was -1 and reads as 4294967295 now"),
        ("repeated int32 f = 1;", "repeated string f = 1;", {"f": [1]}, "f[0] was 1 and reads as a text of length 1 now"),
        ("map<string, int32> f = 1;", "map<string, string> f = 1;", {"f": {"a": 1}}, "f[a] was 1 and reads as nothing now"),
        ("map<string, int32> f = 1;", "map<int32, int32> f = 1;", {"f": {"a": 1}}, "f[a] was 1 and reads as nothing now"),
        ("map<string, In> f = 1;", "map<string, In> f = 1;", {"f": {"a": {"n": 1}}}, ""),
        ("In f = 1;", "In f = 1;", {"f": {"s": "x"}}, ""),
        ("In f = 1;", "message Other { int32 s = 1; } Other f = 1;", {"f": {"s": "x"}}, "f.s was a text of length 1 and reads as 0 now"),
        ("optional int32 f = 1;", "oneof o { int32 f = 1; string g = 2; }", {"f": 0}, ""),
        ("int32 f = 1; string g = 2;", "oneof o { int32 f = 1; string g = 2; }", {"f": 1, "g": "x"}, "f was 1 and reads as nothing now"),
    ],
)  # fmt: skip
def test_what_one_contract_wrote_is_read_with_the_other(
    old: str, new: str, value: dict[str, object], text: str
) -> None:
    before, after = contract(old).message("t.M"), contract(new).message("t.M")
    data = json_format.ParseDict(value, before()).SerializeToString()
    fault = decoding_fault(data, before, after)
    assert fault == text or (text and fault.startswith(text)), fault


def test_bytes_of_an_unknown_contract() -> None:
    """The wire types tell when values are passed over."""
    before, after = contract("In f = 1; int32 g = 2;"), contract("message Other { int32 s = 1; } repeated Other f = 1;")
    data = json_format.ParseDict({"f": {"s": "x"}, "g": 1}, before.message("t.M")()).SerializeToString()
    assert decoding_fault(data, None, after.message("t.M")) == "f.s has bytes of another type"
    assert decoding_fault(data, None, before.message("t.M")) == ""
    assert decoding_fault(b"\xff", None, before.message("t.M")) != ""


def test_a_required_field_that_is_not_there() -> None:
    head = 'syntax = "proto2"; package t; message M { FIELDS }'
    before, after = contract("optional string f = 1;", head), contract("required string f = 1;", head)
    assert decoding_fault(b"", before.message("t.M"), after.message("t.M")) == "f is required and not there"

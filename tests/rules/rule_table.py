# ruff: noqa: E501 - a declaration is one line
"""Table of rules: each row declares a field, values that it takes, and values that it refuses with the rule's id.

The expectations come from buf/validate/validate.proto and https://protovalidate.com, not from an implementation. Values
are in JSON. ``{…}`` after a field is ``[(buf.validate.field).…]``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["ROWS", "Row"]


class Row(NamedTuple):
    """One declaration.

    Attributes:
        declaration: Field ``f`` with its rules, or the whole body of a message.
        valid: Values of ``f``; a dict is the whole message.
        invalid: Value → ids of the violated rules; pairs, because not every value is hashable.
    """

    declaration: str
    valid: list[Any]
    invalid: list[tuple[Any, list[str]]]


def _rows(field: str, *rows: tuple[str, list[Any], list[tuple[Any, list[str]]]]) -> list[Row]:
    return [
        Row(f"{field} f = 1 [(buf.validate.field){rules}];", valid, invalid)
        for rules, valid, invalid in rows
    ]  # fmt: skip


UNSET: dict[str, Any] = {}
BASE64_ABC = "YWJj"

STRINGS = _rows(
    "string",
    ('.string.const = "abc"', ["abc"], [("abd", ["string.const"]), ("", ["string.const"])]),
    (".string.len = 3", ["abc", "äöü", "🙂🙂🙂"], [("ab", ["string.len"]), ("abcd", ["string.len"])]),
    (".string.min_len = 2", ["ab", "éé"], [("a", ["string.min_len"]), ("", ["string.min_len"])]),
    (".string.max_len = 2", ["", "ab", "🙂🙂"], [("abc", ["string.max_len"])]),
    (".string = {min_len: 2 max_len: 3}", ["ab", "abc"], [("a", ["string.min_len"]), ("abcd", ["string.max_len"])]),
    (".string.len_bytes = 4", ["abcd", "🙂"], [("abc", ["string.len_bytes"])]),
    (".string.min_bytes = 3", ["abc", "éa"], [("é", ["string.min_bytes"])]),
    (".string.max_bytes = 3", ["abc", "éa"], [("éé", ["string.max_bytes"])]),
    ('.string.pattern = "^[a-z]+$"', ["abc"], [("Abc", ["string.pattern"]), ("abc\n", ["string.pattern"])]),
    ('.string.pattern = "b"', ["abc"], [("acd", ["string.pattern"])]),  # a search, not a match
    ('.string.pattern = "(?i)^x$"', ["X", "x"], [("y", ["string.pattern"])]),
    ('.string.pattern = "^\\\\d$"', ["7"], [("\u0667", ["string.pattern"])]),  # digits are those of ASCII
    ('.string.prefix = "ab"', ["ab", "abc"], [("bab", ["string.prefix"])]),
    ('.string.suffix = "ab"', ["ab", "cab"], [("aba", ["string.suffix"])]),
    ('.string.contains = "ab"', ["cabc"], [("acb", ["string.contains"])]),
    ('.string.not_contains = "ab"', ["acb"], [("cab", ["string.not_contains"])]),
    ('.string = {in: ["a", "b"]}', ["a", "b"], [("c", ["string.in"])]),
    ('.string = {not_in: ["a", "b"]}', ["c", ""], [("b", ["string.not_in"])]),
    (".string.email = true", ["a@b.example", "a..b@x.example", "foo@bar"],
     [("a", ["string.email"]), ("ä@b.example", ["string.email"]), ("a@b c", ["string.email"]),
      ("", ["string.email_empty"])]),
    (".string.hostname = true", ["example.com", "foo.", "1a", "a-b.c"],
     [("foo_bar", ["string.hostname"]), ("-a", ["string.hostname"]), ("1.2.3.4", ["string.hostname"]),
      ("", ["string.hostname_empty"])]),
    (".string.ip = true", ["127.0.0.1", "::1", "fe80::1%eth0"], [("256.0.0.1", ["string.ip"]), ("", ["string.ip_empty"])]),
    (".string.ipv4 = true", ["127.0.0.1"], [("::1", ["string.ipv4"]), ("1.2.3", ["string.ipv4"]), ("", ["string.ipv4_empty"])]),
    (".string.ipv6 = true", ["::1", "2001:db8::"], [("127.0.0.1", ["string.ipv6"]), ("", ["string.ipv6_empty"])]),
    (".string.uri = true", ["https://example.com/a?b#c", "foo:", "urn:x:y"],
     [("/a", ["string.uri"]), ("https://ä", ["string.uri"]), ("", ["string.uri_empty"])]),
    (".string.uri_ref = true", ["/a?b", "a", "https://example.com", ""], [("a b", ["string.uri_ref"])]),
    (".string.address = true", ["example.com", "127.0.0.1", "::1"],
     [("a_b", ["string.address"]), ("", ["string.address_empty"])]),
    (".string.uuid = true", ["b741452c-25f8-4b55-8264-26a1467bd27c"],
     [("b741452c25f84b55826426a1467bd27c", ["string.uuid"]), ("", ["string.uuid_empty"])]),
    (".string.tuuid = true", ["b741452c25f84b55826426a1467bd27c"],
     [("b741452c-25f8-4b55-8264-26a1467bd27c", ["string.tuuid"]), ("", ["string.tuuid_empty"])]),
    (".string.ip_with_prefixlen = true", ["10.1.2.3/8", "::1/64"],
     [("10.0.0.0", ["string.ip_with_prefixlen"]), ("10.0.0.0/33", ["string.ip_with_prefixlen"]),
      ("", ["string.ip_with_prefixlen_empty"])]),
    (".string.ipv4_with_prefixlen = true", ["10.1.2.3/8"],
     [("::1/64", ["string.ipv4_with_prefixlen"]), ("", ["string.ipv4_with_prefixlen_empty"])]),
    (".string.ipv6_with_prefixlen = true", ["::1/64"],
     [("10.1.2.3/8", ["string.ipv6_with_prefixlen"]), ("", ["string.ipv6_with_prefixlen_empty"])]),
    (".string.ip_prefix = true", ["10.0.0.0/8", "2001:db8::/32"],
     [("10.1.0.0/8", ["string.ip_prefix"]), ("", ["string.ip_prefix_empty"])]),
    (".string.ipv4_prefix = true", ["10.0.0.0/8"],
     [("10.0.0.1/8", ["string.ipv4_prefix"]), ("", ["string.ipv4_prefix_empty"])]),
    (".string.ipv6_prefix = true", ["2001:db8::/32"],
     [("2001:db8::1/32", ["string.ipv6_prefix"]), ("", ["string.ipv6_prefix_empty"])]),
    (".string.host_and_port = true", ["example.com:80", "[::1]:8080", "127.0.0.1:0"],
     [("example.com", ["string.host_and_port"]), ("a:080", ["string.host_and_port"]), ("a:65536", ["string.host_and_port"]),
      ("", ["string.host_and_port_empty"])]),
    (".string.well_known_regex = KNOWN_REGEX_HTTP_HEADER_NAME", ["x-trace-id", ":path"],
     [("a b", ["string.well_known_regex.header_name"]), ("", ["string.well_known_regex.header_name_empty"])]),
    (".string.well_known_regex = KNOWN_REGEX_HTTP_HEADER_VALUE", ["a b", ""],
     [("a\u0000b", ["string.well_known_regex.header_value"])]),
    (".string = {well_known_regex: KNOWN_REGEX_HTTP_HEADER_NAME strict: false}", ["a b"],
     [("a\nb", ["string.well_known_regex.header_name"])]),
    (".string = {min_len: 3 email: true}", ["a@b"], [("a", ["string.min_len", "string.email"])]),
)  # fmt: skip

BYTES = _rows(
    "bytes",
    ('.bytes.const = "abc"', [BASE64_ABC], [("YWI=", ["bytes.const"])]),
    (".bytes.len = 3", [BASE64_ABC], [("YWI=", ["bytes.len"])]),
    (".bytes.min_len = 3", [BASE64_ABC], [("YWI=", ["bytes.min_len"])]),
    (".bytes.max_len = 2", ["YWI="], [(BASE64_ABC, ["bytes.max_len"])]),
    ('.bytes.pattern = "^a"', [BASE64_ABC], [("YmE=", ["bytes.pattern"])]),
    ('.bytes.prefix = "ab"', [BASE64_ABC], [("YmE=", ["bytes.prefix"])]),
    ('.bytes.suffix = "bc"', [BASE64_ABC], [("YmE=", ["bytes.suffix"])]),
    ('.bytes.contains = "b"', [BASE64_ABC], [("YWE=", ["bytes.contains"])]),
    ('.bytes = {in: ["abc"]}', [BASE64_ABC], [("YWE=", ["bytes.in"])]),
    ('.bytes = {not_in: ["abc"]}', ["YWE="], [(BASE64_ABC, ["bytes.not_in"])]),
    (".bytes.ip = true", ["fwAAAQ=="], [(BASE64_ABC, ["bytes.ip"]), ("", ["bytes.ip_empty"])]),
    (".bytes.ipv4 = true", ["fwAAAQ=="], [(BASE64_ABC, ["bytes.ipv4"]), ("", ["bytes.ipv4_empty"])]),
    (".bytes.ipv6 = true", ["AAAAAAAAAAAAAAAAAAAAAQ=="], [("fwAAAQ==", ["bytes.ipv6"]), ("", ["bytes.ipv6_empty"])]),
    (".bytes.uuid = true", ["AAAAAAAAAAAAAAAAAAAAAQ=="], [("fwAAAQ==", ["bytes.uuid"]), ("", ["bytes.uuid_empty"])]),
)  # fmt: skip


def _number(kind: str, *, unsigned: bool = False) -> list[Row]:
    """Rules that every number has."""
    low = 0 if unsigned else -3
    return _rows(
        kind,
        (f".{kind}.const = 4", [4], [(5, [f"{kind}.const"])]),
        (f".{kind}.lt = 4", [3, low], [(4, [f"{kind}.lt"])]),
        (f".{kind}.lte = 4", [4], [(5, [f"{kind}.lte"])]),
        (f".{kind}.gt = 4", [5], [(4, [f"{kind}.gt"])]),
        (f".{kind}.gte = 4", [4], [(3, [f"{kind}.gte"])]),
        (f".{kind} = {{gt: 1 lt: 4}}", [2, 3], [(1, [f"{kind}.gt_lt"]), (4, [f"{kind}.gt_lt"])]),
        (f".{kind} = {{gte: 1 lte: 4}}", [1, 4], [(0, [f"{kind}.gte_lte"])]),
        (f".{kind} = {{gt: 4 lt: 1}}", [5, 0], [(2, [f"{kind}.gt_lt_exclusive"])]),
        (f".{kind} = {{gte: 4 lte: 1}}", [4, 1], [(2, [f"{kind}.gte_lte_exclusive"])]),
        (f".{kind} = {{in: [1, 2]}}", [1, 2], [(3, [f"{kind}.in"])]),
        (f".{kind} = {{not_in: [1, 2]}}", [3], [(2, [f"{kind}.not_in"])]),
    )


NUMBERS = [
    *_number("int32"), *_number("uint64", unsigned=True), *_number("double"),
    *_rows("int64", (".int64.gte = -9223372036854775808", ["-9223372036854775808"], []),
           (".int64.lt = 9223372036854775807", ["9223372036854775806"], [("9223372036854775807", ["int64.lt"])])),
    *_rows("uint32", (".uint32.lt = 4294967295", [4294967294], [(4294967295, ["uint32.lt"])])),
    *_rows("sint32", (".sint32.gt = -1", [0], [(-1, ["sint32.gt"])])),
    *_rows("sint64", (".sint64.lte = -1", ["-1"], [("0", ["sint64.lte"])])),
    *_rows("fixed32", (".fixed32.const = 7", [7], [(8, ["fixed32.const"])])),
    *_rows("fixed64", (".fixed64.gte = 7", ["7"], [("6", ["fixed64.gte"])])),
    *_rows("sfixed32", (".sfixed32.lt = -7", [-8], [(-7, ["sfixed32.lt"])])),
    *_rows("sfixed64", (".sfixed64 = {in: [-7]}", ["-7"], [("7", ["sfixed64.in"])])),
    *_rows("float", (".float.finite = true", [1.5], [("NaN", ["float.finite"]), ("Infinity", ["float.finite"])]),
           (".float.gt = 0.5", [0.75, "Infinity"], [(0.5, ["float.gt"]), ("NaN", ["float.gt"])])),
    *_rows("double", (".double.finite = true", [0], [("-Infinity", ["double.finite"])])),
    *_rows("bool", (".bool.const = true", [True], [(False, ["bool.const"])])),
]  # fmt: skip

ENUMS = _rows(
    "Colour",
    (".enum.const = 1", ["RED"], [("GREEN", ["enum.const"])]),
    (".enum.defined_only = true", ["RED", "GREEN"], [(7, ["enum.defined_only"])]),
    (".enum = {in: [1]}", ["RED"], [("GREEN", ["enum.in"])]),
    (".enum = {not_in: [0]}", ["RED"], [("COLOUR_UNSPECIFIED", ["enum.not_in"])]),
)

REPEATED = _rows(
    "repeated string",
    (".repeated.min_items = 2", [["a", "b"]], [(["a"], ["repeated.min_items"]), ([], ["repeated.min_items"])]),
    (".repeated.max_items = 1", [[], ["a"]], [(["a", "b"], ["repeated.max_items"])]),
    (".repeated.unique = true", [["a", "b"]], [(["a", "a"], ["repeated.unique"])]),
    (".repeated.items.string.min_len = 2", [["ab"], []], [(["ab", "a", "b"], ["string.min_len", "string.min_len"])]),
    (".required = true", [["a"]], [([], ["required"])]),
) + _rows(
    "repeated double", (".repeated.unique = true", [["NaN", "NaN"], [1, 2]], [([0.0, -0.0], ["repeated.unique"])])
)  # fmt: skip

MAPS = _rows(
    "map<string, int32>",
    (".map.min_pairs = 1", [{"f": {"a": 1}}], [(UNSET, ["map.min_pairs"])]),
    (".map.max_pairs = 1", [{"f": {"a": 1}}, UNSET], [({"f": {"a": 1, "b": 2}}, ["map.max_pairs"])]),
    (".map.keys.string.min_len = 2", [{"f": {"ab": 1}}], [({"f": {"a": 1}}, ["string.min_len"])]),
    (".map.values.int32.gt = 5", [{"f": {"a": 6}}], [({"f": {"a": 5}}, ["int32.gt"])]),
    (".required = true", [{"f": {"a": 0}}], [(UNSET, ["required"])]),
)

WELL_KNOWN = [
    *_rows(
        "google.protobuf.Duration",
        (".duration.lte = {seconds: 3600}", ["3600s", UNSET], [("3600.000000001s", ["duration.lte"])]),
        (".duration.gt = {}", ["0.1s"], [("0s", ["duration.gt"])]),
        (".duration.const = {seconds: 3}", ["3s"], [("4s", ["duration.const"])]),
        (".duration = {in: [{seconds: 3}]}", ["3s"], [("4s", ["duration.in"])]),
        (".duration = {gte: {seconds: 1} lt: {seconds: 5}}", ["1s"], [("5s", ["duration.gte_lt"])]),
        (".required = true", ["0s"], [(UNSET, ["required"])]),
    ),
    *_rows(
        "google.protobuf.Timestamp",
        (".timestamp.lt_now = true", ["2020-01-01T00:00:00Z", UNSET], [("9999-01-01T00:00:00Z", ["timestamp.lt_now"])]),
        (".timestamp.gt_now = true", ["9999-01-01T00:00:00Z"], [("2020-01-01T00:00:00Z", ["timestamp.gt_now"])]),
        (".timestamp.within = {seconds: 3600}", [UNSET], [("2020-01-01T00:00:00Z", ["timestamp.within"])]),
        (".timestamp.gte = {seconds: 86400}", ["1970-01-02T00:00:00Z"], [("1970-01-01T00:00:00Z", ["timestamp.gte"])]),
        (".timestamp.const = {seconds: 1}", ["1970-01-01T00:00:01Z"], [("1970-01-01T00:00:02Z", ["timestamp.const"])]),
    ),
    *_rows(
        "google.protobuf.Any",
        ('.any = {in: ["type.googleapis.com/google.protobuf.Duration"]}',
         [{"f": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}}, UNSET],
         [({"f": {"@type": "type.googleapis.com/google.protobuf.Timestamp", "value": "1970-01-01T00:00:00Z"}}, ["any.in"])]),
        ('.any = {not_in: ["type.googleapis.com/google.protobuf.Duration"]}', [UNSET],
         [({"f": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}}, ["any.not_in"])]),
    ),
    *_rows("google.protobuf.FieldMask",
           ('.field_mask = {in: ["a", "b"]}', ["a", "a,b", "a.c"], [("c", ["field_mask.in"])])),
    *_rows("google.protobuf.StringValue",
           (".string.min_len = 2", ["ab", UNSET], [("a", ["string.min_len"]), ("", ["string.min_len"])]),
           (".required = true", [""], [(UNSET, ["required"])])),
    *_rows("google.protobuf.Int64Value", (".int64.gt = 2", ["3", UNSET], [("2", ["int64.gt"])])),
    *_rows("google.protobuf.BoolValue", (".bool.const = true", [True, UNSET], [(False, ["bool.const"])])),
]  # fmt: skip

PRESENCE = [
    *_rows("string", (".required = true", ["a"], [("", ["required"]), (UNSET, ["required"])])),
    *_rows("optional string", (".required = true", ["a", ""], [(UNSET, ["required"])]),
           (".string.min_len = 2", ["ab", UNSET], [("", ["string.min_len"])])),
    *_rows("int32", (".required = true", [1], [(0, ["required"])])),
    *_rows("bool", (".required = true", [True], [(False, ["required"])])),
    *_rows("Needy", (".required = true", [{"f": {"value": "a"}}], [(UNSET, ["required"])])),
    Row("string f = 1 [(buf.validate.field) = {ignore: IGNORE_IF_ZERO_VALUE string: {min_len: 2}}];",
        ["", "ab"], [("a", ["string.min_len"])]),
    Row("string f = 1 [(buf.validate.field) = {ignore: IGNORE_ALWAYS string: {min_len: 2}}];", ["", "a"], []),
    Row("optional string f = 1 [(buf.validate.field) = {ignore: IGNORE_IF_ZERO_VALUE string: {min_len: 2}}];",
        [UNSET], [("", ["string.min_len"]), ("a", ["string.min_len"])]),  # no effect: the field has presence
    Row("Inner f = 1 [(buf.validate.field).ignore = IGNORE_ALWAYS];", [{"f": {"value": ""}}], []),
    Row("Inner f = 1;", [UNSET, {"f": {"value": "ab"}}], [({"f": {"value": "a"}}, ["string.min_len"])]),
    Row("repeated Inner f = 1;", [[]], [([{"value": "a"}, {"value": "b"}], ["string.min_len", "string.min_len"])]),
    Row("map<int32, Inner> f = 1;", [UNSET], [({"f": {"7": {"value": "a"}}}, ["string.min_len"])]),
]  # fmt: skip

ONEOFS = [
    Row("oneof o { option (buf.validate.oneof).required = true; string f = 1; int32 g = 2; }",
        [{"f": ""}, {"g": 0}], [(UNSET, ["required"])]),
    Row("oneof o { string f = 1 [(buf.validate.field).string.min_len = 2]; int32 g = 2 [(buf.validate.field).int32.gt = 1]; }",
        [{"f": "ab"}, {"g": 2}, UNSET], [({"f": "a"}, ["string.min_len"]), ({"g": 1}, ["int32.gt"])]),
    Row('option (buf.validate.message).oneof = {fields: ["f", "g"]}; string f = 1; int32 g = 2;',
        [{"f": "a"}, {"g": 1}, UNSET], [({"f": "a", "g": 1}, ["message.oneof"])]),
    Row('option (buf.validate.message).oneof = {fields: ["f", "g"] required: true}; string f = 1; int32 g = 2;',
        [{"f": "a"}], [(UNSET, ["message.oneof"])]),
]  # fmt: skip

CEL = [
    Row('option (buf.validate.message).cel = {id: "order" message: "f must be less than g" expression: "this.f < this.g"}; '
        "int32 f = 1; int32 g = 2;", [{"f": 1, "g": 2}], [({"f": 2, "g": 1}, ["order"]), (UNSET, ["order"])]),
    Row("option (buf.validate.message).cel_expression = 'this.f != this.g'; int32 f = 1; int32 g = 2;",
        [{"f": 1}], [(UNSET, ["this.f != this.g"])]),
    Row("string f = 1 [(buf.validate.field).cel = {id: 'f.x' expression: \"this == 'x' ? '' : 'must be x, not ' + this\"}];",
        ["x"], [("y", ["f.x"])]),
    Row("repeated int32 f = 1 [(buf.validate.field).cel = {id: 'sum' message: 'm' expression: 'this.all(x, x > 0)'}];",
        [[1], []], [([0], ["sum"])]),
    Row("repeated string f = 1 [(buf.validate.field).repeated.items.cel = {id: 'item' message: 'm' expression: \"this.startsWith('a')\"}];",
        [["ab"]], [(["b", "a"], ["item"])]),
    Row("map<string, string> f = 1 [(buf.validate.field).cel = {id: 'k' message: 'm' expression: \"'a' in this\"}];",
        [{"f": {"a": ""}}], [({"f": {"b": ""}}, ["k"])]),
    Row("google.protobuf.Timestamp f = 1 [(buf.validate.field).cel = {id: 'now' message: 'm' expression: 'this < now'}];",
        ["2020-01-01T00:00:00Z", UNSET], [("9999-01-01T00:00:00Z", ["now"])]),
    Row("Inner f = 1 [(buf.validate.field).cel = {id: 'in' message: 'm' expression: \"this.value != 'abc'\"}];",
        [UNSET, {"f": {"value": "ab"}}], [({"f": {"value": "abc"}}, ["in"])]),
    Row("string f = 1 [(buf.validate.field).cel = {id: 'lib' message: 'm' expression: \"this.isEmail() || this.isIp(4) || this.isUri()\"}];",
        ["a@b", "1.2.3.4", "a:b"], [("::1", ["lib"])]),
    Row("double f = 1 [(buf.validate.field).cel = {id: 'num' message: 'm' expression: '!this.isNan() && !this.isInf()'}];",
        [1], [("NaN", ["num"])]),
    Row("string f = 1 [(buf.validate.field).string.(shouting) = true];", ["ABC"], [("abc", ["string.shouting"])]),
    Row("int32 f = 1 [(buf.validate.field).int32.(multiple_of) = 3];", [6, 0], [(7, ["int32.multiple_of"])]),
]  # fmt: skip

BEHAVIORS = [
    Row("string f = 1 [(google.api.field_behavior) = REQUIRED];", ["a"], [("", ["required"])]),
    Row("optional string f = 1 [(google.api.field_behavior) = REQUIRED];", ["", "a"], [(UNSET, ["required"])]),
    Row("repeated string f = 1 [(google.api.field_behavior) = REQUIRED];", [["a"]], [([], ["required"])]),
    Row("map<string, string> f = 1 [(google.api.field_behavior) = REQUIRED];", [{"f": {"a": ""}}], [(UNSET, ["required"])]),
    Row("Needy f = 1 [(google.api.field_behavior) = REQUIRED];", [{"f": {"value": "a"}}],
        [(UNSET, ["required"]), ({"f": {}}, ["required"])]),
    Row("repeated Needy f = 1;", [[]], [([{"value": "a"}, {}], ["required"])]),
    Row("map<string, Needy> f = 1;", [UNSET], [({"f": {"k": {}}}, ["required"])]),
    Row("string f = 1 [(google.api.field_behavior) = REQUIRED, (buf.validate.field).required = true];",
        ["a"], [("", ["required"])]),  # one violation, not two
    Row("string f = 1 [(google.api.field_behavior) = REQUIRED, (google.api.field_behavior) = OUTPUT_ONLY];", [""], []),
    Row("string f = 1 [(google.api.field_behavior) = OPTIONAL];", ["", "a"], []),
    Row("Needy f = 1; google.protobuf.FieldMask update_mask = 2;",
        [{"f": {}}, {"f": {}, "updateMask": "other"}, {"f": {"value": "a"}, "updateMask": "*"}],
        [({"f": {}, "updateMask": "value"}, ["required"]), ({"f": {}, "updateMask": "*"}, ["required"])]),
]  # fmt: skip

ROWS = [*STRINGS, *BYTES, *NUMBERS, *ENUMS, *REPEATED, *MAPS, *WELL_KNOWN, *PRESENCE, *ONEOFS, *CEL, *BEHAVIORS]

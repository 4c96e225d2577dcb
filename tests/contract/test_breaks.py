# ruff: noqa: E501 - a change is one line, however long
"""Breaking changes of a contract: a table of changes with their verdicts."""

from __future__ import annotations

from functools import cache

import pytest
from compiled_contract import contract_of

from mesh.contract.breaks.break_rules import RULES
from mesh.contract.breaks.comparison import breaks
from mesh.contract.model import Contract
from mesh.faults import Faults

SHOP = """syntax = "proto3";
package shop.v1;
import "google/api/annotations.proto";
import "google/api/field_behavior.proto";
import "google/protobuf/empty.proto";
import "meshapi/v1/annotations.proto";

service Shop {
  option (meshapi.v1.service) = { calls: "shop.v1.Stock" publishes: "shop.v1.Placed" publishes: "shop.v1.Seen" };
  rpc GetOrder(GetOrderRequest) returns (Order) {
    option idempotency_level = NO_SIDE_EFFECTS;
    option (google.api.http) = { get: "/v1/orders/{id}" };
    option (meshapi.v1.method) = { access: PUBLIC timeout: { seconds: 5 } };
  }
  rpc PlaceOrder(PlaceOrderRequest) returns (Order) {
    option (google.api.http) = { post: "/v1/orders" body: "*" additional_bindings { put: "/v1/orders/{id}" body: "*" } };
    option (meshapi.v1.method) = { roles: "admin" roles: "clerk" success_status: 201 };
  }
  rpc DropOrder(GetOrderRequest) returns (google.protobuf.Empty) {
    option idempotency_level = IDEMPOTENT;
    option (meshapi.v1.method) = { access: KEY scopes: "drop" hedge: { delay: { nanos: 50000000 } } };
  }
  rpc Watch(GetOrderRequest) returns (stream Order) {
    option (meshapi.v1.method) = { no_time_limit: true };
  }
}
service Stock {
  rpc Count(CountRequest) returns (Counted) {
    option (meshapi.v1.method) = { access: INTERNAL };
  }
  rpc OnPlaced(Placed) returns (google.protobuf.Empty) {
    option (meshapi.v1.method) = { on: { event {} } };
  }
  rpc OnRow(meshapi.v1.Change) returns (google.protobuf.Empty) {
    option (meshapi.v1.method) = { on: { change { service: "shop" table: "orders" } } };
  }
  rpc Sweep(meshapi.v1.Tick) returns (google.protobuf.Empty) {
    option (meshapi.v1.method) = { on: { schedule: "0 3 * * *" } };
  }
}
message GetOrderRequest { string id = 1; }
message PlaceOrderRequest {
  string id = 1;
  string sku = 2 [(google.api.field_behavior) = REQUIRED];
  int32 amount = 3;
  string note = 4;
  Kind kind = 5;
}
enum Kind { KIND_UNSPECIFIED = 0; SMALL = 1; LARGE = 2; reserved 7; reserved "HUGE"; }
message Order {
  reserved 20 to 30;
  reserved "old";
  string id = 1;
  int32 amount = 2;
  oneof payment { string card = 3; string bill = 4; }
  optional string comment = 5;
  repeated string tags = 6;
  map<string, int32> parts = 7;
  State state = 8;
  Address address = 9;
  string extra = 10;
  bytes blob = 11;
  sint32 delta = 12;
}
enum State { STATE_UNSPECIFIED = 0; OPEN = 1; PAID = 2; }
message Address { string city = 1; }
message Address2 { string city = 1; }
message CountRequest { string sku = 1; string place = 2; }
message Counted { int32 number = 1; State state = 2; }
message Placed {
  option (meshapi.v1.event) = { key: "order_id" };
  string order_id = 1;
  string user_id = 2;
  int32 total = 3;
}
message Seen {
  option (meshapi.v1.event) = {};
  string id = 1;
}
message Unused { string name = 1; }
"""

NOTHING = ""
CASES: dict[str, tuple[str, ...]] = {
    # -- gRPC --
    "a service is removed": ("service Stock {", "service Depot {", "SERVICE_REMOVED", "shop.v1.Stock", "shop.v1.Depot"),
    "a service is added": ("message Unused", "service New { rpc Do(Unused) returns (Unused); }\nmessage Unused", NOTHING),
    "a method is removed": ("  rpc Watch(GetOrderRequest) returns (stream Order) {\n    option (meshapi.v1.method) = { no_time_limit: true };\n  }\n", "", "METHOD_REMOVED"),
    "a method is added": ("  rpc Watch(", "  rpc Look(GetOrderRequest) returns (Order);\n  rpc Watch(", NOTHING),
    "a method is renamed": ("rpc Count(", "rpc CountAll(", "METHOD_REMOVED"),
    "a response becomes a stream": ("rpc Count(CountRequest) returns (Counted)", "rpc Count(CountRequest) returns (stream Counted)", "STREAMING_CHANGED"),
    "a response stream becomes a message": ("returns (stream Order)", "returns (Order)", "STREAMING_CHANGED"),
    "a request becomes a stream": ("rpc Count(CountRequest)", "rpc Count(stream CountRequest)", "STREAMING_CHANGED"),
    "another request type": ("rpc Count(CountRequest)", "rpc Count(GetOrderRequest)", "REQUEST_TYPE_CHANGED"),
    "another response type": ("rpc Count(CountRequest) returns (Counted)", "rpc Count(CountRequest) returns (Order)", "RESPONSE_TYPE_CHANGED"),
    # -- HTTP --
    "a route is removed": ('    option (google.api.http) = { get: "/v1/orders/{id}" };\n', "", "ROUTE_REMOVED"),
    "a route moves": ('get: "/v1/orders/{id}"', 'get: "/v2/orders/{id}"', "ROUTE_REMOVED"),
    "a route moves and the old one stays": ('get: "/v1/orders/{id}"', 'get: "/v2/orders/{id}" additional_bindings { get: "/v1/orders/{id}" }', NOTHING),
    "a route is added": ('get: "/v1/orders/{id}"', 'get: "/v1/orders/{id}" additional_bindings { get: "/v1/order/{id}" }', NOTHING),
    "an additional binding is removed": (' additional_bindings { put: "/v1/orders/{id}" body: "*" }', "", "ROUTE_REMOVED"),
    "another HTTP method": ('post: "/v1/orders"', 'patch: "/v1/orders"', "ROUTE_REMOVED"),
    "any HTTP method": ('post: "/v1/orders"', 'custom: { kind: "*" path: "/v1/orders" }', NOTHING),
    "a wider path variable": ('get: "/v1/orders/{id}"', 'get: "/v1/orders/{id=**}"', NOTHING),
    "a narrower path variable": ('get: "/v1/orders/{id}"', 'get: "/v1/orders/{id=o1}"', "ROUTE_REMOVED"),
    "a custom verb of a path": ('get: "/v1/orders/{id}"', 'get: "/v1/orders/{id}:get"', "ROUTE_REMOVED"),
    "another path variable": ('put: "/v1/orders/{id}"', 'put: "/v1/orders/{note}"', "ROUTE_CHANGED"),
    "a body of one field": ('post: "/v1/orders" body: "*"', 'post: "/v1/orders" body: "note"', "ROUTE_CHANGED"),
    "a response body of one field": ('get: "/v1/orders/{id}"', 'get: "/v1/orders/{id}" response_body: "address"', "ROUTE_CHANGED"),
    "another success status": ("success_status: 201", "success_status: 202", "SUCCESS_STATUS_CHANGED"),
    "the success status is removed": (" success_status: 201", "", "SUCCESS_STATUS_CHANGED"),
    "the success status is written out": ("access: PUBLIC", "access: PUBLIC success_status: 200", NOTHING),
    # -- callers --
    "public becomes authenticated": ("access: PUBLIC timeout", "access: AUTHENTICATED timeout", "ACCESS_NARROWED"),
    "public becomes for keys": ("access: PUBLIC timeout", "access: KEY timeout", "ACCESS_NARROWED"),
    "internal becomes public": ("access: INTERNAL", "access: PUBLIC", NOTHING),
    "keys become users": ('access: KEY scopes: "drop"', "access: AUTHENTICATED", "ACCESS_NARROWED"),
    "keys become internal": ('access: KEY scopes: "drop"', "access: INTERNAL", "ACCESS_NARROWED"),
    "users become internal": ("{ no_time_limit: true }", "{ no_time_limit: true access: INTERNAL }", "ACCESS_NARROWED"),
    "a trigger closes a method to its callers": ("  rpc Watch(", "  rpc Look(Seen) returns (Order);\n  rpc Watch(", NOTHING),
    "authenticated is written out": ("{ no_time_limit: true }", "{ no_time_limit: true access: AUTHENTICATED }", NOTHING),
    "a role is removed": (' roles: "clerk"', "", "ROLES_NARROWED"),
    "a role is added": (' roles: "clerk"', ' roles: "clerk" roles: "boss"', NOTHING),
    "all roles are removed": ('roles: "admin" roles: "clerk" ', "", NOTHING),
    "roles are new": ("{ no_time_limit: true }", '{ no_time_limit: true roles: "admin" }', "ROLES_NARROWED"),
    "a scope is added": ('scopes: "drop"', 'scopes: "drop" scopes: "all"', "SCOPES_ADDED"),
    "a scope is replaced": ('scopes: "drop"', 'scopes: "all"', "SCOPES_ADDED"),
    "a scope is removed": (' scopes: "drop"', "", NOTHING),
    "a called service is removed": ('calls: "shop.v1.Stock" ', "", "CALL_REMOVED"),
    # -- calls --
    "a timeout is cut": ("timeout: { seconds: 5 }", "timeout: { seconds: 2 }", "TIMEOUT_CUT"),
    "a timeout is raised": ("timeout: { seconds: 5 }", "timeout: { seconds: 8 }", NOTHING),
    "a timeout is removed": (" timeout: { seconds: 5 }", "", NOTHING),
    "a timeout is new": ("access: INTERNAL", "access: INTERNAL timeout: { seconds: 2 }", "TIMEOUT_CUT"),
    "a timeout instead of no limit": ("no_time_limit: true", "timeout: { seconds: 600 }", "TIMEOUT_CUT"),
    "the defaults instead of no limit": ("{ no_time_limit: true }", "{}", "TIMEOUT_CUT"),
    "no limit instead of a timeout": ("timeout: { seconds: 5 }", "no_time_limit: true", NOTHING),
    "retry safety is removed": ("    option idempotency_level = NO_SIDE_EFFECTS;\n", "", "RETRY_SAFETY_REMOVED"),
    "side effects": ("NO_SIDE_EFFECTS", "IDEMPOTENT", "RETRY_SAFETY_REMOVED"),
    "no side effects": ("idempotency_level = IDEMPOTENT", "idempotency_level = NO_SIDE_EFFECTS", NOTHING),
    "retry safety is added": ("  rpc Count(CountRequest) returns (Counted) {\n", "  rpc Count(CountRequest) returns (Counted) {\n    option idempotency_level = IDEMPOTENT;\n", NOTHING),
    "hedging is removed": (" hedge: { delay: { nanos: 50000000 } }", "", NOTHING),
    "hedging is later": ("nanos: 50000000", "nanos: 90000000", NOTHING),
    # -- events --
    "an event is no longer one": ("  option (meshapi.v1.event) = {};\n  string id = 1;\n", "  string id = 1;\n", "EVENT_REMOVED", ' publishes: "shop.v1.Seen"', ""),
    "an event is renamed": ("message Seen {", "message Watched {", "EVENT_REMOVED", "shop.v1.Seen", "shop.v1.Watched"),
    "another key": ('key: "order_id"', 'key: "user_id"', "EVENT_KEY_CHANGED"),
    "no key": ('{ key: "order_id" }', "{}", "EVENT_KEY_CHANGED"),
    "a first key": ("option (meshapi.v1.event) = {};", 'option (meshapi.v1.event) = { key: "id" };', NOTHING),
    "an event is no longer published": (' publishes: "shop.v1.Seen"', "", "PUBLISHER_REMOVED"),
    "an event gets another publisher": ("service Stock {", 'service Stock {\n  option (meshapi.v1.service) = { publishes: "shop.v1.Placed" };', NOTHING),
    "a subscription is removed": ("{ on: { event {} } }", "{ access: INTERNAL }", "SUBSCRIPTION_REMOVED"),
    "a subscription is added": ("  rpc Sweep", "  rpc OnSeen(Seen) returns (google.protobuf.Empty) { option (meshapi.v1.method) = { on: { event {} } }; }\n  rpc Sweep", NOTHING),
    "calls of a subscription are allowed": ("{ on: { event {} } }", "{ on: { event {} } access: INTERNAL }", NOTHING),
    "another table": ('table: "orders"', 'table: "order"', "SUBSCRIPTION_REMOVED"),
    "a table of another service": ('service: "shop" table', 'service: "stock" table', "SUBSCRIPTION_REMOVED"),
    "a schedule is removed": ('on: { schedule: "0 3 * * *" }', "access: INTERNAL", "SCHEDULE_REMOVED"),
    "another time": ("0 3 * * *", "0 4 * * *", NOTHING),
    "missed ticks are skipped": ('schedule: "0 3 * * *"', 'schedule: "0 3 * * *" skip_missed: true', "TICKS_SKIPPED"),
    # -- fields --
    "a field is removed": ("  string extra = 10;\n", "", "FIELD_REMOVED"),
    "a field is removed with its number": ("  string extra = 10;\n", "  reserved 10;\n", "FIELD_REMOVED"),
    "a field is removed with its name": ("  string extra = 10;\n", '  reserved "extra";\n', "FIELD_REMOVED"),
    "a field is removed and reserved": ("  string extra = 10;\n", '  reserved 10;\n  reserved "extra";\n', NOTHING),
    "a field of a request is removed and reserved": ("  string note = 4;\n", '  reserved 4;\n  reserved "note";\n', "REQUEST_FIELD_REMOVED"),
    "a field of an internal request is removed and reserved": (" string place = 2;", ' reserved 2; reserved "place";', NOTHING),
    "a field is added": ("  string extra = 10;\n", "  string extra = 10;\n  string more = 13;\n", NOTHING),
    "a field is renamed": ("string extra = 10", "string other = 10", "FIELD_RENAMED"),
    "a field is renamed with its JSON name": ("string extra = 10", 'string other = 10 [json_name = "extra"]', "FIELD_RENAMED"),
    "another JSON name": ("string extra = 10", 'string extra = 10 [json_name = "more"]', "FIELD_RENAMED"),
    "the JSON name is written out": ("string extra = 10", 'string extra = 10 [json_name = "extra"]', NOTHING),
    "a field is renumbered": ("string extra = 10", "string extra = 14", "FIELD_REMOVED"),
    "a field is deprecated": ("string extra = 10", "string extra = 10 [deprecated = true]", NOTHING),
    "a wider integer": ("int32 amount = 2", "int64 amount = 2", "FIELD_TYPE_CHANGED"),
    "an unsigned integer": ("int32 amount = 2", "uint32 amount = 2", "FIELD_TYPE_CHANGED"),
    "another encoding": ("sint32 delta", "int32 delta", "FIELD_TYPE_CHANGED"),
    "text to bytes": ("string extra = 10", "bytes extra = 10", "FIELD_TYPE_CHANGED"),
    "bytes to text": ("bytes blob", "string blob", "FIELD_TYPE_CHANGED"),
    "a number to text": ("int32 amount = 2", "string amount = 2", "FIELD_TYPE_CHANGED"),
    "an enum to a number": ("State state = 8", "int32 state = 8", "FIELD_TYPE_CHANGED"),
    "a number to an enum": ("int32 amount = 2", "State amount = 2", "FIELD_TYPE_CHANGED"),
    "another enum": ("State state = 8", "Kind state = 8", "FIELD_TYPE_CHANGED"),
    "an enum with another name": ("State state", "Status state", NOTHING, "enum State", "enum Status"),
    "another message": ("Address address", "Address2 address", "FIELD_TYPE_CHANGED"),
    "a map of other values": ("map<string, int32> parts", "map<string, string> parts", "FIELD_TYPE_CHANGED"),
    "a map of other keys": ("map<string, int32> parts", "map<int32, int32> parts", "FIELD_TYPE_CHANGED"),
    "a value becomes repeated": ("string extra = 10", "repeated string extra = 10", "FIELD_CARDINALITY_CHANGED"),
    "a list becomes a value": ("repeated string tags", "string tags", "FIELD_CARDINALITY_CHANGED"),
    "a map becomes a list": ("map<string, int32> parts = 7", "repeated Address parts = 7", "FIELD_CARDINALITY_CHANGED"),
    "a field gets presence": ("  string extra = 10", "  optional string extra = 10", NOTHING),
    "a field loses presence": ("optional string comment", "string comment", NOTHING),
    "a oneof is renamed": ("oneof payment", "oneof paid", NOTHING),
    "a oneof gets a field": ("string bill = 4; }", "string bill = 4; string cash = 13; }", NOTHING),
    "a field into a new oneof": ("  string extra = 10;\n", "  oneof more { string extra = 10; string most = 13; }\n", NOTHING),
    "a field into a oneof that is there": ("string bill = 4; }", "string bill = 4; string extra = 10; }", "FIELD_ONEOF_CHANGED", "  string extra = 10;\n", ""),
    "two fields into one oneof": ("  string extra = 10;\n  bytes blob = 11;\n", "  oneof more { string extra = 10; bytes blob = 11; }\n", "FIELD_ONEOF_CHANGED"),
    "a oneof is dissolved": ("oneof payment { string card = 3; string bill = 4; }", "string card = 3; string bill = 4;", "FIELD_ONEOF_CHANGED"),
    "a reserved range is free": ("reserved 20 to 30", "reserved 20 to 25", "RESERVED_REMOVED"),
    "a reserved range is split": ("reserved 20 to 30", "reserved 20 to 22, 23 to 40", NOTHING),
    "a reserved name is free": ('  reserved "old";\n', "", "RESERVED_REMOVED"),
    "an unused message is removed": ("message Unused { string name = 1; }\n", "", NOTHING),
    "a field of an event is removed": ("  string user_id = 2;\n", "", "FIELD_REMOVED"),
    "a field of an event has another type": ("int32 total = 3", "string total = 3", "FIELD_TYPE_CHANGED"),
    "the key of an event is renamed": ("order_id", "id", "FIELD_RENAMED"),
    # -- enums --
    "a value is removed": (" PAID = 2;", "", "ENUM_VALUE_REMOVED"),
    "a value is removed and reserved": (" PAID = 2;", ' reserved 2; reserved "PAID";', NOTHING),
    "a value of a request is removed and reserved": (" LARGE = 2; reserved 7; ", ' reserved 7, 2; reserved "LARGE"; ', "REQUEST_ENUM_VALUE_REMOVED"),
    "a value is added": (" PAID = 2;", " PAID = 2; SENT = 3;", NOTHING),
    "a value is renamed": (" PAID = 2;", " SETTLED = 2;", "ENUM_VALUE_RENAMED"),
    "a value gets another first name": (" PAID = 2;", " option allow_alias = true; SETTLED = 2; PAID = 2;", "ENUM_VALUE_RENAMED"),
    "a value gets an alias": (" PAID = 2;", " option allow_alias = true; PAID = 2; SETTLED = 2;", NOTHING),
    "a value is renumbered": (" PAID = 2;", " PAID = 3;", "ENUM_VALUE_REMOVED"),
    "a reserved value is free": ("reserved 7; ", "", "RESERVED_REMOVED"),
    # -- behaviors --
    "a field becomes required": ("string note = 4", "string note = 4 [(google.api.field_behavior) = REQUIRED]", "RULE_TIGHTENED"),
    "a field is no longer required": (" [(google.api.field_behavior) = REQUIRED]", "", NOTHING),
    "a new field is required": ("  Kind kind = 5;\n", "  Kind kind = 5;\n  string zip = 6 [(google.api.field_behavior) = REQUIRED];\n", "REQUIRED_FIELD_ADDED"),
    "a field of a response becomes required": ("string extra = 10", "string extra = 10 [(google.api.field_behavior) = REQUIRED]", NOTHING),
    "a field of a request becomes an output": ("string note = 4", "string note = 4 [(google.api.field_behavior) = OUTPUT_ONLY]", "FIELD_OUTPUT_ONLY"),
    "a field of an event becomes required": ("int32 total = 3", "int32 total = 3 [(google.api.field_behavior) = REQUIRED]", "RULE_TIGHTENED"),
    "outputs in requests are refused": ("service Stock {", "service Stock {\n  option (meshapi.v1.service) = { refuse_output_only: true };", "OUTPUT_ONLY_REFUSED"),
    # -- without consequence --
    "comments": ("message Unused", "// A comment.\nmessage Unused", NOTHING),
    "another order": ("message GetOrderRequest { string id = 1; }\n", "", NOTHING, "message Unused", "message GetOrderRequest { string id = 1; }\nmessage Unused"),
    "an option of a language": ("package shop.v1;\n", 'package shop.v1;\noption go_package = "example.com/shop";\n', NOTHING),
}  # fmt: skip
"""Change → text before, text after, rules of the breaks, and further pairs of texts."""


@cache
def base() -> Contract:
    return contract_of(shop=SHOP)


def changed_text(title: str) -> str:
    """Return the text of the contract after a change of the table."""
    before, after, _, *more = CASES[title]
    text = SHOP
    for was, is_ in zip((before, *more[::2]), (after, *more[1::2]), strict=True):
        assert was in text, was
        text = text.replace(was, is_)
    return text


@pytest.mark.parametrize("title", CASES)
def test_each_change_has_its_verdict(title: str) -> None:
    found = breaks(base(), contract_of(shop=changed_text(title)))
    assert sorted({one.rule for one in found}) == CASES[title][2].split(), "\n".join(map(str, found))


VERDICTS = {
    "method": {
        "access": "ACCESS_NARROWED",
        "roles": "ROLES_NARROWED",
        "timeout": "TIMEOUT_CUT",
        "on": "SUBSCRIPTION_REMOVED SCHEDULE_REMOVED TICKS_SKIPPED",
        "success_status": "SUCCESS_STATUS_CHANGED",
        "no_time_limit": "TIMEOUT_CUT",
        "hedge": "",  # changes the load and no result
        "scopes": "SCOPES_ADDED",
        "gateway": "LAMBDA_EVENT_CHANGED REQUEST_LIMIT_CUT",
    },
    "service": {
        "calls": "CALL_REMOVED",
        "publishes": "PUBLISHER_REMOVED",
        "refuse_output_only": "OUTPUT_ONLY_REFUSED",
    },
    "event": {"key": "EVENT_KEY_CHANGED"},
}
"""Option → the rules that hold it."""


@pytest.mark.parametrize("kind", VERDICTS)
def test_every_option_has_a_verdict(kind: str) -> None:
    """A new option needs one: see "add an option to the contract" in docs/architecture.md."""
    extension = base().pool.FindExtensionByName(f"meshapi.v1.{kind}")
    assert {field.name for field in extension.message_type.fields} == set(VERDICTS[kind])
    assert set(" ".join(VERDICTS[kind].values()).split()) <= set(RULES)


ELSEWHERE = {
    "LAMBDA_EVENT_CHANGED", "REQUEST_LIMIT_CUT", "FIELD_DEFAULT_CHANGED", "REQUIRED_LABEL_CHANGED",  # below
    "STORED_UNREADABLE", "STORED_INVALID", "STORED_UNDELIVERABLE",  # tests/control/test_stored_events.py
    "CAPTURED_TABLE_DROPPED", "CAPTURED_COLUMN_DROPPED",  # tests/control/test_captured_drops.py
}  # fmt: skip


def test_every_rule_is_held() -> None:
    """Each rule has a change in a table that it finds, and each kind of change one that it does not."""
    assert len(CASES) >= 60
    tables = " ".join(rules for _, _, rules, *_ in CASES.values())
    assert set(RULES) - set(tables.split()) == ELSEWHERE


LAMBDA = """syntax = "proto3";
package hello;
import "google/api/annotations.proto";
import "google/protobuf/struct.proto";
import "meshapi/v1/annotations.proto";
service Hello {
  rpc Invoke(google.protobuf.Value) returns (google.protobuf.Value) {
    option (google.api.http) = { get: "/hello/{name}" body: "*" additional_bindings { post: "/hello" body: "*" } };
    option (meshapi.v1.method) = {
      access: PUBLIC
      gateway: { events: "rest" events: "rest" resources: "/hello/{name}" resources: "/hello" base: "" largest: 4000 }
    };
  }
}
"""


@pytest.mark.parametrize(
    ("before", "after", "rules"),
    [
        ('events: "rest" events: "rest"', 'events: "rest" events: "http-2.0"', "LAMBDA_EVENT_CHANGED"),
        ('resources: "/hello" base', 'resources: "/hello/" base', "LAMBDA_EVENT_CHANGED"),
        ('base: ""', 'base: "/prod"', "LAMBDA_EVENT_CHANGED"),
        ("largest: 4000", "largest: 3000", "REQUEST_LIMIT_CUT"),
        ("largest: 4000", "largest: 5000", ""),
        (' additional_bindings { post: "/hello" body: "*" }', "", "ROUTE_REMOVED"),
    ],
)
def test_each_change_of_a_lambda_function_has_its_verdict(before: str, after: str, rules: str) -> None:
    text = LAMBDA.replace(before, after)
    if "additional_bindings" not in text:
        text = text.replace('events: "rest" events', "events").replace(' resources: "/hello" ', " ")
    found = breaks(contract_of(hello=LAMBDA), contract_of(hello=text))
    assert sorted({one.rule for one in found}) == rules.split(), "\n".join(map(str, found))


OLD = """syntax = "proto2";
package old.v1;
message Kept {
  required string id = 1;
  optional string note = 2 [default = "a"];
  optional Size size = 3;
  extensions 100 to 199;
}
extend Kept { optional string colour = 100; }
enum Size { SMALL = 1; LARGE = 2; }
"""


@pytest.mark.parametrize(
    ("before", "after", "rules"),
    [
        ("required string id", "optional string id", "REQUIRED_LABEL_CHANGED"),
        ("optional string note", "required string note", "REQUIRED_LABEL_CHANGED"),
        ("  extensions", "  required string more = 4;\n  extensions", "REQUIRED_LABEL_CHANGED"),
        ('default = "a"', 'default = "b"', "FIELD_DEFAULT_CHANGED"),
        ("SMALL = 1; LARGE = 2;", "LARGE = 2; SMALL = 1;", "FIELD_DEFAULT_CHANGED"),
        ("extend Kept { optional string colour = 100; }", "", "FIELD_REMOVED"),
        ("optional string colour", "optional bytes colour", "FIELD_TYPE_CHANGED"),
        ("optional string note = 2", "optional group Note = 2 { }", "FIELD_TYPE_CHANGED"),
    ],
)
def test_each_change_of_a_proto2_file_has_its_verdict(before: str, after: str, rules: str) -> None:
    text = OLD.replace(before, after)
    if "group" in text:
        text = text.replace(' { } [default = "a"];', " { }")
    found = breaks(contract_of(old=OLD), contract_of(old=text))
    assert set(rules.split()) <= {one.rule for one in found}, "\n".join(map(str, found))


def test_editions_say_what_proto3_says() -> None:
    edition = SHOP.replace('syntax = "proto3"', 'edition = "2023"').replace("optional string", "string")
    edition = edition.replace("package shop.v1;", "package shop.v1;\noption features.field_presence = IMPLICIT;")
    edition = edition.replace("string comment = 5", "string comment = 5 [features.field_presence = EXPLICIT]")
    edition = edition.replace('reserved "HUGE"', "reserved HUGE").replace('reserved "old"', "reserved old")
    assert breaks(base(), contract_of(shop=edition)) == []


def test_a_break_has_its_line_and_names_who_is_affected() -> None:
    found = {
        title: breaks(base(), contract_of(shop=changed_text(title)))[0]
        for title in ("a field is removed", "a method is removed", "a service is removed", "another key")
    }
    lines = SHOP.splitlines()
    assert found["a field is removed"].place == f"shop.proto:{lines.index('message Order {') + 1}"
    assert "shop.v1.Shop/GetOrder, shop.v1.Shop/PlaceOrder and 1 more" in found["a field is removed"].affected
    assert found["a method is removed"].place == f"shop.proto:{lines.index('service Shop {') + 1}"
    assert found["a service is removed"].place == "shop.proto"
    assert "nothing is called any more for: event shop.v1.Placed, change shop" in found["a service is removed"].affected
    assert found["another key"].element == "shop.v1.Placed"
    for one in found.values():
        assert one.rule in RULES
        assert one.affected
        assert one.compatible


ACCEPTED = """package shop.v1;
option (meshapi.v1.accepted_breaks) = { rule: "TIMEOUT_CUT" element: "shop.v1.Shop/GetOrder" reason: "never takes so long" };
"""


def test_a_break_is_accepted_once() -> None:
    """A declaration for an earlier change says nothing of a later one."""
    old = SHOP.replace("package shop.v1;", ACCEPTED)
    cut = old.replace("{ seconds: 5 }", "{ seconds: 2 }").replace("access: PUBLIC", "access: AUTHENTICATED")
    found = {one.rule: one.accepted for one in breaks(base(), contract_of(shop=cut))}
    assert found == {"TIMEOUT_CUT": "never takes so long", "ACCESS_NARROWED": ""}
    assert [one.accepted for one in breaks(contract_of(shop=old), contract_of(shop=cut))] == ["", ""]


@pytest.mark.parametrize(
    ("rule", "element", "reason", "text"),
    [
        ("TIMEOUT_CUTS", "a", "b", "'TIMEOUT_CUTS' is no rule; did you mean 'TIMEOUT_CUT'?"),
        ("nonsense", "a", "b", "'nonsense' is no rule; mesh check --against prints the rule of each break"),
        ("TIMEOUT_CUT", "", "b", "TIMEOUT_CUT needs its element"),
        ("TIMEOUT_CUT", "shop.v1.Shop/GetOrder", " ", "TIMEOUT_CUT of shop.v1.Shop/GetOrder needs a reason"),
    ],
)
def test_an_acceptance_without_sense_is_a_fault(rule: str, element: str, reason: str, text: str) -> None:
    option = f'option (meshapi.v1.accepted_breaks) = {{ rule: "{rule}" element: "{element}" reason: "{reason}" }};\n'
    with pytest.raises(Faults, match="accepted_breaks") as caught:
        contract_of(shop=SHOP.replace("package shop.v1;\n", f"package shop.v1;\n{option}"))
    assert f"shop.proto:3: accepted_breaks: {text}" in str(caught.value)


def test_the_edge_decides_some_verdicts() -> None:
    removed = contract_of(shop=changed_text("a field of a request is removed and reserved"))
    # One of the routes has no body, so the field may be a query parameter, which is refused in any case.
    by_query = contract_of(shop=SHOP.replace('put: "/v1/orders/{id}" body: "*"', 'put: "/v1/orders/{id}"'))
    assert breaks(base(), removed, ignores_unknown_json=True) == []
    found = breaks(by_query, removed, ignores_unknown_json=True)
    assert {one.rule for one in found} == {"REQUEST_FIELD_REMOVED", "ROUTE_CHANGED"}
    without = contract_of(shop=changed_text("a timeout is removed"))
    assert [one.rule for one in breaks(base(), without, default_timeout=3.0)] == ["TIMEOUT_CUT"]

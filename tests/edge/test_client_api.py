"""The edge's routes as clients call them: names, required fields and rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.contract import loader, protoc
from mesh.edge.clients.api import Api

PROTO = """syntax = "proto3";
package shop.v1;
import "buf/validate/validate.proto";
import "google/api/annotations.proto";
import "google/api/field_behavior.proto";
import "meshapi/v1/annotations.proto";
service Shop {
  rpc Put(Item) returns (Item) { option (google.api.http) = { put: "/v1/items/{id}" body: "*" }; }
  rpc Order(OrderRequest) returns (Item) { option (google.api.http) = { post: "/v1/orders" body: "*" }; }
  rpc Any(Item) returns (Item) { option (google.api.http) = { get: "/v1/*/any" }; }
  rpc Hidden(Item) returns (Item) { option (meshapi.v1.method) = { access: INTERNAL }; }
}
message Item {
  string id = 1;
  string name = 2 [(google.api.field_behavior) = REQUIRED, (buf.validate.field).string = { min_len: 3 max_len: 9 }];
  string made_by = 3 [(google.api.field_behavior) = OUTPUT_ONLY];
  string secret = 4 [debug_redact = true];
  int32 count = 5 [(buf.validate.field).int32 = { gte: 1 lte: 5 }];
  uint32 size = 6;
  string mail = 7 [(buf.validate.field).string.email = true];
}
message OrderRequest {
  repeated string words = 1 [(buf.validate.field).repeated.max_items = 4];
  Date date = 2;
  Outer.Inner inner = 3;
}
message Date {}
message Outer { message Inner {} }
"""


@pytest.fixture
def api(tmp_path: Path) -> Api:
    (tmp_path / "shop.proto").write_text(PROTO)
    return Api(loader.read(protoc.load([tmp_path], tmp_path / "gen")), {"Date"})


def test_names_and_operations(api: Api) -> None:
    (shop,) = api.services
    assert list(shop.operations) == ["Put", "Order"]  # a `*` has no value, and nobody outside calls Hidden
    assert api.names == {
        "shop.v1.Item": "Item", "shop.v1.OrderRequest": "OrderRequest", "shop.v1.Date": "ShopV1Date",
        "shop.v1.Outer.Inner": "OuterInner",
    }  # fmt: skip


def test_rules_are_those_of_the_contract(api: Api) -> None:
    rules = api.rules(api.inputs["shop.v1.Item"])
    assert rules["mail"]["format"] == "email"
    del rules["mail"]
    assert rules == {  # a count of 0, which is none, breaks its rule
        "name": {"required": True, "minLength": 3, "maxLength": 9},
        "count": {"required": True, "minimum": 1, "maximum": 5},
    }
    assert api.rules(api.inputs["shop.v1.OrderRequest"]) == {"words": {"maxItems": 4}}


def test_fields_that_have_to_be_set(api: Api) -> None:
    item = api.inputs["shop.v1.Item"]
    assert [field.name for field in item.fields if api.required(field)] == ["id", "name", "count", "mail"]
    assert [field.name for field in item.fields if not api.settable(field)] == ["made_by"]

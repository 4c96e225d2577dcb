"""A contract whose every comment and option ends in the OpenAPI document."""

from __future__ import annotations

PROTO = """\
syntax = "proto3";
package shop.v1;
import "google/api/annotations.proto";
import "google/api/field_behavior.proto";
import "google/api/httpbody.proto";
import "google/protobuf/empty.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
import "meshapi/v1/annotations.proto";

// What the shop sells.
//
// All of it.
service Shop {
  // Finds
  // an item. It is exact.
  //
  // Twice.
  rpc GetItem(Item) returns (Item) {
    option (google.api.http) = { get: "/v1/{name=shelves/*/items/*}" };
  }
  rpc PutItem(PutRequest) returns (Item) {
    option deprecated = true;
    option (google.api.http) = { put: "/v1/{item.name=shelves/*}" body: "item" response_body: "made" };
    option (meshapi.v1.method) = { roles: "owner" roles: "admin" };
  }
  rpc AnyOf(Item) returns (Item) {
    option (google.api.http) = { custom: { kind: "*" path: "/v1/all" } body: "*" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc OnlyGet(Item) returns (Item) {
    option (google.api.http) = {
      get: "/v1/all"
      additional_bindings { get: "/v2/all" response_body: "count" }
      additional_bindings { custom: { kind: "PURGE" path: "/v1/all" } }
      additional_bindings { get: "/v3/{name}" }
      additional_bindings { get: "/v3/{kind=**}" }
    };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Watch(Item) returns (stream Item) {
    option (google.api.http) = { get: "/v1/watch" };
  }
  rpc Send(stream Item) returns (Item) {
    option (google.api.http) = { post: "/v1/send" body: "*" };
  }
  rpc Talk(stream Item) returns (stream Item) {
    option (google.api.http) = { post: "/v1/talk" body: "*" };
  }
  rpc Download(Item) returns (google.api.HttpBody) {
    option (google.api.http) = { get: "/v1/files/{name=**}" };
  }
  rpc Upload(UploadRequest) returns (Item) {
    option (google.api.http) = { post: "/v1/files/{name}" body: "file" };
  }
  rpc Make(Item) returns (Item) {
    option (google.api.http) = { post: "/v1/made" body: "*" };
    option (meshapi.v1.method) = { success_status: 201 };
  }
  rpc Drop(Item) returns (google.protobuf.Empty) {
    option (google.api.http) = { delete: "/v1/made/{name}" };
    option (meshapi.v1.method) = { success_status: 204 };
  }
  rpc Hidden(Item) returns (Item) {
    option (meshapi.v1.method) = { access: INTERNAL };
  }
}

// One thing.
message Item {
  // Its place.
  string name = 1 [(google.api.field_behavior) = REQUIRED, (google.api.field_behavior) = IMMUTABLE];
  google.protobuf.Timestamp made = 2 [(google.api.field_behavior) = OUTPUT_ONLY];
  string secret = 3 [(google.api.field_behavior) = INPUT_ONLY];
  string old = 4 [deprecated = true];
  Kind kind = 5;
  // What it costs.
  oneof price {
    // In cents.
    int64 cents = 6;
    bool free = 7;
  }
  Item part = 8;  // What it is part of.
  google.protobuf.Int32Value count = 9;

  enum Kind {
    option deprecated = true;
    KIND_UNSPECIFIED = 0;
    // To eat.
    FOOD = 1;
    TOOL = 2 [deprecated = true];
  }
}

message PutRequest {
  Item item = 1 [(google.api.field_behavior) = REQUIRED];
  string reason = 2;
}

message UploadRequest {
  string name = 1;
  google.api.HttpBody file = 2;
}
"""

"""The compiled table of rules."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from rule_table import ROWS

from mesh.contract import protoc

HEAD = """
syntax = "proto3";
package table;
import "buf/validate/validate.proto";
import "predefined.proto";
import "google/api/field_behavior.proto";
import "google/protobuf/any.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/field_mask.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
enum Colour { COLOUR_UNSPECIFIED = 0; RED = 1; GREEN = 2; }
message Inner { string value = 1 [(buf.validate.field).string.min_len = 2]; }
message Needy { string value = 1 [(google.api.field_behavior) = REQUIRED]; string other = 2; }
"""
PREDEFINED = """
syntax = "proto2";
package table;
import "buf/validate/validate.proto";
extend buf.validate.StringRules {
  optional bool shouting = 80001 [(buf.validate.predefined).cel = {
    id: "string.shouting" message: "must be in capitals" expression: "!rule || this.matches('^[A-Z]*$')" }];
}
extend buf.validate.Int32Rules {
  optional int32 multiple_of = 80001 [(buf.validate.predefined).cel = {
    id: "int32.multiple_of" expression: "this % rule == 0 ? '' : 'must be a multiple of %s'.format([rule])" }];
}
"""


@pytest.fixture(scope="session")
def table_pool(tmp_path_factory: pytest.TempPathFactory) -> DescriptorPool:
    """Descriptor pool with a message ``table.M0``, ``table.M1``, … for each row."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "predefined.proto").write_text(PREDEFINED)
    messages = "".join(f"message M{number} {{ {row.declaration} }}\n" for number, row in enumerate(ROWS))
    (folder / "table.proto").write_text(HEAD + messages)
    roots = [f"-I{root}" for root in (folder, *protoc.builtin_roots())]
    command = [sys.executable, "-m", "grpc_tools.protoc", *roots, "--include_imports", "table.proto"]
    subprocess.run([*command, f"--descriptor_set_out={folder / 'table.binpb'}"], check=True)
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString((folder / "table.binpb").read_bytes()).file:
        pool.Add(file)
    return pool


@pytest.fixture(scope="session")
def message_of(table_pool: DescriptorPool) -> Callable[[int, Any], Message]:
    """Makes the message of a row with a value."""

    def make(number: int, value: Any) -> Message:
        message = message_factory.GetMessageClass(table_pool.FindMessageTypeByName(f"table.M{number}"))()
        fields = value if isinstance(value, dict) else {"f": value}
        return json_format.ParseDict(fields, message, descriptor_pool=table_pool)

    return make

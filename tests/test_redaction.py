"""Fields that the contract marks as secret are hidden, wherever they are in a message."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from login.v1 import login_pb2
from registration.v1 import registration_pb2

from mesh.redaction import redact

FILE = """
name: "secrets.proto" package: "secrets.v1" syntax: "proto3"
message_type {
  name: "Outer"
  field { name: "open" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "text" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL options { debug_redact: true } }
  field { name: "number" number: 3 type: TYPE_INT64 label: LABEL_OPTIONAL options { debug_redact: true } }
  field { name: "texts" number: 4 type: TYPE_STRING label: LABEL_REPEATED options { debug_redact: true } }
  field { name: "whole" number: 5 type: TYPE_MESSAGE type_name: ".secrets.v1.Outer" label: LABEL_OPTIONAL
          options { debug_redact: true } }
  field { name: "one" number: 6 type: TYPE_MESSAGE type_name: ".secrets.v1.Outer" label: LABEL_OPTIONAL }
  field { name: "many" number: 7 type: TYPE_MESSAGE type_name: ".secrets.v1.Outer" label: LABEL_REPEATED }
  field { name: "by_name" number: 8 type: TYPE_MESSAGE label: LABEL_REPEATED
          type_name: ".secrets.v1.Outer.ByNameEntry" }
  field { name: "numbers" number: 9 type: TYPE_MESSAGE label: LABEL_REPEATED
          type_name: ".secrets.v1.Outer.NumbersEntry" }
  nested_type { name: "ByNameEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".secrets.v1.Outer" label: LABEL_OPTIONAL } }
  nested_type { name: "NumbersEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "value" number: 2 type: TYPE_INT32 label: LABEL_OPTIONAL } }
}
"""


@pytest.fixture(scope="module")
def outer() -> Any:
    from google.protobuf import text_format

    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(FILE, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("secrets.v1.Outer"))


def test_secret_fields_are_hidden_at_any_depth(outer: Any) -> None:
    def leaf() -> Any:
        return outer(open="seen", text="hidden", number=7, texts=["hidden"], whole=outer(open="hidden"))

    message = outer(one=leaf(), many=[leaf(), leaf()], numbers={"a": 1})
    message.by_name["a"].CopyFrom(leaf())
    message.MergeFrom(leaf())
    redact(message)
    left = outer(open="seen", text="[REDACTED]")
    wanted = outer(open="seen", text="[REDACTED]", one=left, many=[left, left], numbers={"a": 1})
    wanted.by_name["a"].CopyFrom(left)
    assert message == wanted


def test_what_is_not_set_stays_unset(outer: Any) -> None:
    message = outer(open="seen")
    redact(message)
    assert message == outer(open="seen")


@pytest.mark.parametrize(
    "message",
    [
        login_pb2.LoginRequest(login="ada", password="horse"),
        login_pb2.RefreshRequest(refresh_token="horse"),
        login_pb2.Tokens(access_token="horse", refresh_token="horse"),
        login_pb2.SetCredentialRequest(user_id="1", password="horse"),
        registration_pb2.RegisterRequest(name="ada", password="horse"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_the_sample_marks_its_secrets(message: Any) -> None:
    redact(message)
    assert "horse" not in str(message)

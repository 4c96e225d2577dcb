"""Names in a contract: names of Python methods, extensions, and JSON names of two fields."""

from __future__ import annotations

import json
from typing import Any

import pytest
from arbitrary import messages
from google.protobuf import any_pb2, json_format
from hypothesis import given
from odd.v1 import extended_pb2 as pb

from mesh.contract.model import Contract
from mesh.message_methods import list_fields, parser, serialize
from mesh.protojson.codec import Codec, Codecs
from mesh.protojson.scalars import JsonError
from mesh.protojson.wellknown import JsonEncodeError

PLAIN = Codecs()


@pytest.fixture(params=["plain", "defaults printed"])
def codecs(request: pytest.FixtureRequest) -> Codecs:
    return Codecs(always_print_fields_with_no_presence=request.param != "plain")


@pytest.mark.parametrize(
    ("message", "value"),
    [
        (pb.Methods, {"ListFields": "a", "SetInParent": {"ListFields": "b"}, "HasField": 1, "Clear": True}),
        (pb.Methods, {"SerializeToString": "s", "ByteSize": "b", "Class": "c", "DESCRIPTOR": "d"}),
        (pb.Methods, {"CopyFrom": ["x"], "add": {"k": {"Extensions": "e"}}, "IsInitialized": {"Init": "i"}}),
        (
            pb.FewMethods,
            {"ListFields": "a", "SetInParent": {"HasField": 3}, "add": [{"Clear": "c"}], "DESCRIPTOR": "d"},
        ),
        (pb.FewMethods, {"ListFields": "undone by the general codec", "Set_In_Parent": None, "SetInParent": {}}),
    ],
)
def test_fields_are_called_like_methods(message: Any, value: dict[str, Any]) -> None:
    codec = PLAIN.of(message)
    if "Set_In_Parent" in value:
        with pytest.raises(JsonError, match="there is no such field"):
            codec.parse_value(value)
        del value["Set_In_Parent"]
    parsed = codec.parse_value(value)
    assert codec.dump(parsed) == value
    assert codec.dump(parser(message)(serialize(parsed))) == value
    defaults = Codecs(always_print_fields_with_no_presence=True).of(message).dump(parsed)
    assert {key: defaults[key] for key in value if not isinstance(value[key], dict | list)}.items() <= value.items()


def test_members_of_a_oneof_called_which_oneof_exclude_each_other() -> None:
    with pytest.raises(JsonError, match="only one field of 'WhichOneof' can be set, and 'HasField' is"):
        PLAIN.of(pb.FewMethods).parse_value({"HasField": 1, "Clear": "c"})


EXTENSIONS = {
    "name": "n",
    "result": {"url": "u"},
    "[odd.v1.colour]": "red",
    "[odd.v1.numbers]": ["1", "-9223372036854775808"],
    "[odd.v1.nested]": {"[odd.v1.colour]": "blue", "inner": [{"[odd.v1.nested]": {}}]},
    "[odd.v1.shade]": "LIGHT",
    "[odd.v1.when]": "2026-01-31T12:00:00Z",
    "[odd.v1.wrapped]": "7",
    "[odd.v1.raw]": "/w==",
    "[odd.v1.ratio]": "-Infinity",
    "[odd.v1.texts]": ["a", "b"],
    "[odd.v1.grouped]": {"depth": 2},
    "[odd.v1.Scope.scope]": {"value": 1},
}


def test_extensions_stand_in_brackets(codecs: Codecs) -> None:
    codec = codecs.of(pb.Extended)
    parsed = codec.parse(json.dumps(EXTENSIONS).encode())
    assert parsed == json_format.ParseDict(EXTENSIONS, pb.Extended())
    assert PLAIN.of(pb.Extended).dump(parsed) == EXTENSIONS == json_format.MessageToDict(parsed)
    assert codec.parse(codec.print(parsed)) == parsed


@pytest.mark.parametrize(
    ("value", "where", "text"),
    [
        ({"[odd.v1.nobody]": 1}, "[odd.v1.nobody]", "there is no such field"),
        ({"odd.v1.colour": "red"}, "odd.v1.colour", "there is no such field"),
        ({"[odd.v1.Extended.name]": "red"}, "[odd.v1.Extended.name]", "there is no such field"),
        ({"[google.api.http]": {}}, "[google.api.http]", "there is no such field"),
        ({"[odd.v1.colour]": 1}, "[odd.v1.colour]", "expected a string, got a number"),
        ({"[odd.v1.numbers]": [1, "x"]}, "[odd.v1.numbers][1]", "got a string that is no number"),
        ({"[odd.v1.shade]": 7}, "[odd.v1.shade]", "got another number"),
        ({"inner": [{"[odd.v1.nested]": []}]}, "inner[0][odd.v1.nested]", "expected an object"),
    ],
)
def test_what_is_no_extension_is_refused_with_its_place(value: Any, where: str, text: str) -> None:
    with pytest.raises(JsonError) as caught:
        PLAIN.of(pb.Extended).parse_value(value)
    assert (caught.value.path, text in caught.value.text) == (where, True)


def test_an_unknown_extension_is_passed_over_with_unknown_fields() -> None:
    lenient = Codecs(ignore_unknown_fields=True).of(pb.Extended)
    assert lenient.parse_value({"[odd.v1.nobody]": 1, "[odd.v1.colour]": "red"}).Extensions is not None
    assert lenient.dump(lenient.parse_value({"[no]": 1, "[odd.v1.colour]": "red"})) == {"[odd.v1.colour]": "red"}


def test_an_extension_of_null_is_not_set() -> None:
    assert list_fields(PLAIN.of(pb.Extended).parse_value({"[odd.v1.nested]": None, "[odd.v1.numbers]": None})) == []


def test_fields_with_one_json_name_are_told_apart() -> None:
    codec = PLAIN.of(pb.Legacy)
    value = {"eventType": 1, "event_type": 2, "d": "c's", "c": "d's"}
    parsed = codec.parse_value(value)
    assert (parsed.eventType, parsed.event_type, parsed.c, parsed.d) == (1, 2, "c's", "d's")
    assert codec.dump(parsed) == value


def test_an_any_whose_message_has_a_field_called_type_cannot_be_printed(contract: Contract) -> None:
    inner = contract.message("odd.v1.Names")(type_url="not the URL")
    holder = any_pb2.Any(type_url="type.googleapis.com/odd.v1.Names", value=inner.SerializeToString())
    codec: Codec = PLAIN.of_descriptor(contract.pool.FindMessageTypeByName("google.protobuf.Any"))
    with pytest.raises(JsonEncodeError, match=r'odd\.v1\.Names, which has a field named "@type"'):
        codec.dump(codec.message.FromString(holder.SerializeToString()))


@pytest.mark.parametrize("message", [pb.Extended, pb.Defaults])
def test_agrees_with_json_format(message: Any) -> None:
    codec = PLAIN.of(message)

    @given(messages(message))
    def agrees(made: Any) -> None:
        text = json_format.MessageToJson(made)
        assert json.loads(codec.print(made)) == json.loads(text)
        assert codec.parse(text.encode()) == made

    agrees()


@pytest.mark.parametrize("message", [pb.Legacy, pb.LegacyExtended])
def test_fields_with_one_json_name_are_printed_as_they_are_set(message: Any) -> None:
    codec = PLAIN.of(message)

    @given(messages(message))
    def comes_back(made: Any) -> None:
        assert serialize(codec.parse(codec.print(made)), deterministic=True) == serialize(made, deterministic=True)

    comes_back()
    assert codec.dump(message(eventType=7)) == {"eventType": 7}
    assert codec.dump(message(event_type=7)) == {"event_type": 7}

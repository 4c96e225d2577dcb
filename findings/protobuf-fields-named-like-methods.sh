#!/bin/bash
# protobuf for Python: a field may be called like a method or attribute of messages (ListFields, DESCRIPTOR, SetInParent), and
# then message.ListFields is the field's value, set or not. protobuf's own json_format, text_format and ParseDict ask the message
# for these names, so they fail on every such message; the methods of the base class work when they are called on it.
# Guessed wrong: generated code "mangles" or reserves such names, as protoc does for other languages (C++, Java, C#).
# mesh/message_methods.py calls the methods of the base class.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check protobuf==7.36.2
"$work/venv/bin/python" - <<'P'
import sys
import google.protobuf
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, text_format
from google.protobuf.empty_pb2 import Empty

def message_with(name):
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package=name.lower(), syntax="proto3")
    file.message_type.add(name="M").field.add(name=name, number=1, type="TYPE_STRING", label="LABEL_OPTIONAL", json_name=name)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{name.lower()}.M"))(**{name: "x"})

print("protobuf", google.protobuf.__version__)
failed = []
for name in ("ListFields", "DESCRIPTOR", "SerializeToString"):
    message = message_with(name)
    for what, call in (
        ("json_format", lambda: json_format.MessageToJson(message)),
        ("text_format", lambda: text_format.MessageToString(message)),
        ("message.SerializeToString()", lambda: message.SerializeToString()),
    ):
        try:
            call()
        except (TypeError, AttributeError) as error:
            failed.append((name, what))
            print(f"a field {name}: {what}: {type(error).__name__}: {error}")
    listed = [(field.name, value) for field, value in Empty.ListFields(message)]
    assert listed == [(name, "x")] and Empty.SerializeToString(message) == b"\n\x01x"
print("through the base class every one of them works")
wanted = {("ListFields", "json_format"), ("DESCRIPTOR", "json_format"), ("SerializeToString", "message.SerializeToString()")}
sys.exit(0 if wanted <= set(failed) else 1)
P
echo "json_format fails on messages with fields that are called like the methods which it uses."

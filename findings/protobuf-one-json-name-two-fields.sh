#!/bin/bash
# protobuf for Python (upb): in a message with deprecated_legacy_json_field_conflicts, which lets two fields have one JSON name,
# ListFields() gives the first field's descriptor and value for the second one too. str(), text_format and json_format, which
# walk ListFields(), show a wrong message; the attributes, HasField() and the serialized bytes are right.
# Guessed wrong: the option is protoc's own way out for old contracts (eventType beside event_type), so what compiles with it
# is taken to be printed as it is.
# mesh/protojson/printer.py asks a message for each field instead.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check protobuf==7.36.2 grpcio-tools==1.85.1
mkdir "$work/out"
cat > "$work/old.proto" <<'P'
syntax = "proto2";
message Old {
  option deprecated_legacy_json_field_conflicts = true;
  optional int32 eventType = 1;
  optional int32 event_type = 2;
}
P
"$work/venv/bin/python" -W ignore -m grpc_tools.protoc -I"$work" --python_out="$work/out" "$work/old.proto" 2>/dev/null
cd "$work/out"
"$work/venv/bin/python" - <<'P'
import sys
import google.protobuf
from google.protobuf import json_format
from google.protobuf.internal import api_implementation
from old_pb2 import Old

message = Old(eventType=10, event_type=20)
listed = [(field.name, value) for field, value in message.ListFields()]
print("protobuf", google.protobuf.__version__, api_implementation.Type())
print("attributes ", message.eventType, message.event_type)
print("serialized ", message.SerializeToString())
print("ListFields ", listed)
print("str        ", " ".join(str(message).split()))
print("json_format", json_format.MessageToJson(message, indent=None))
only = Old(event_type=20)
print("event_type alone, ListFields:", [(field.name, value) for field, value in only.ListFields()])
right = message.SerializeToString() == b"\x08\x0a\x10\x14" and (message.eventType, message.event_type) == (10, 20)
sys.exit(0 if right and listed == [("eventType", 10), ("eventType", 10)] else 1)
P
echo "ListFields() names and reads the first of two fields that have one JSON name for both; bytes and attributes are right."

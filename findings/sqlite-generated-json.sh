#!/usr/bin/env bash
# SQLite: what json_object() and json_quote() make of a generated TEXT column depends on where its value comes from.
#
# A generated column that is computed by a JSON function keeps the "JSON subtype" of the function's result when it is read
# from a virtual column, and in the NEW and OLD of a trigger even when it is STORED. There it becomes JSON inside JSON.
# Read from a stored column of the table, or from an index, it is a string. So an audit trigger and a query write the same
# row differently, and so do two plans of one query. Concatenating '' (doc || '') makes it a string everywhere.
# mesh/events/changes/sqlite_triggers.py concatenates '' before it quotes a text.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check apsw==3.54.1.0
"$folder/venv/bin/python" - <<'PYTHON'
import apsw

print("SQLite", apsw.sqlite_lib_version())
one = apsw.Connection(":memory:")
found = {}
for kind in ("VIRTUAL", "STORED"):
    one.execute(f"CREATE TABLE {kind} (k TEXT, doc TEXT AS (json_array(k)) {kind}); CREATE INDEX i{kind} ON {kind} (doc)")
    one.execute(f"CREATE TABLE log{kind} (row); CREATE TRIGGER t{kind} AFTER INSERT ON {kind} BEGIN "
                f"INSERT INTO log{kind} VALUES (json_object('doc', NEW.doc)); END")
    one.execute(f"INSERT INTO {kind} (k) VALUES ('v')")
    query = "SELECT json_object('doc', doc) FROM"
    found[kind, "trigger"] = one.execute(f"SELECT row FROM log{kind}").get
    found[kind, "table"] = one.execute(f"{query} {kind} NOT INDEXED").get
    found[kind, "index"] = one.execute(f"{query} {kind} INDEXED BY i{kind} WHERE doc > ''").get
for place, value in found.items():
    print(*place, value, sep="\t")
json, string = '{"doc":["v"]}', '{"doc":"[\\"v\\"]"}'
assert list(found.values()) == [json, json, string, json, string, string], "the behaviour has changed"
print("A generated column of JSON text is JSON in a trigger and when it is computed, and a string when it is stored or indexed.")
PYTHON

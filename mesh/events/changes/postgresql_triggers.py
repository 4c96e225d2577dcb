"""Change capture on PostgreSQL: one trigger function for all tables, which names no column.

The function uses ``row_to_json`` and not ``to_jsonb``: a ``json`` value may hold an escaped NUL, which ``jsonb``
refuses, and the refusal would fail the write. It runs as its owner, so changes by roles that may write the table but
not the outbox are captured too. It has settings of its own, so that a session's time zone or float digits do not change
what is captured.

``row_to_json`` writes every type but ``bytea`` in its final form, at any depth. The places of ``bytea``, in a column, a
domain, an array or a composite type, are found when the trigger is made, and each change carries them (``forms``).

Virtual generated columns (PostgreSQL 18) are NULL in the rows that a trigger gets. For a table with such a column, each
row costs one more statement, which computes the values from the expressions that the catalog has at that time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesh.events.changes.captured_table import ChangeError, Column, Form, Table, literal, name
from mesh.events.subjects import CHANGES, escape

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["function", "install", "triggers"]

PREFIX = "mesh_change_"
"""Prefix of the mesh's functions and triggers; nothing else may have it. A digest of the definition follows it."""

_BYTEA = 17
"""The type's OID, which is the same on every server."""

_UNREADABLE = r"'\\u(0000|[dD][89a-fA-F]..)'"
"""Escapes of NUL and of surrogates, which a ``json`` value may hold; its operators refuse the whole text then."""

_COLUMNS = """\
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = TG_RELID AND attnum > 0 AND NOT attisdropped"""
_COMPUTED = """\
format(
    'SELECT row_to_json("mesh row") FROM (SELECT %s FROM (SELECT ($1).*, $2 AS tableoid) t) "mesh row"',
    string_agg(
        CASE WHEN attgenerated <> 'v' OR attnum = ANY (failed) THEN ''
        ELSE '(' || pg_get_expr(adbin, adrelid) || ') AS ' END || quote_ident(attname), ', ' ORDER BY attnum))"""
"""Statement that computes the virtual columns of a row. Columns whose expression failed are null in it."""

# The alias of a row is "mesh row": a column with the name of the alias would be taken for it.
_FUNCTION = """\
CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO' SET "IntervalStyle" = 'iso_8601'
SET bytea_output = 'hex' SET extra_float_digits = 1 SET lc_monetary = 'C' SET standard_conforming_strings = on
AS $mesh$
DECLARE  -- arguments of the trigger: subject, what each change begins with, 'virtual' or '', the primary key's columns
    time text := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
    before json;
    after json;
    was json;  -- before and after, as the operators of json can read them
    now json;
    hops text := coalesce(current_setting('mesh.hops', true), '');  -- of the call (mesh.events.publish.outbox)
    key text[] := TG_ARGV[3:];
    ending text := '}}';
    part text;
    image text;
    held record;
    number int2;
    failed int2[] := '{{}}';  -- virtual columns whose expression fails
    moved boolean := false;
    renamed boolean := TG_OP = 'TRUNCATE';  -- or not known
BEGIN
    IF TG_ARGV[2] = 'virtual' AND TG_OP <> 'TRUNCATE' THEN
        BEGIN
            SELECT {computed} INTO part {columns};
            IF TG_OP <> 'INSERT' THEN EXECUTE part INTO before USING OLD, TG_RELID; END IF;
            IF TG_OP <> 'DELETE' THEN EXECUTE part INTO after USING NEW, TG_RELID; END IF;
        EXCEPTION WHEN OTHERS THEN  -- what cannot be read must not keep the row from being written: each by itself
            before := NULL;
            after := NULL;
            FOREACH image IN ARRAY ARRAY['before', 'after'] LOOP
                CONTINUE WHEN TG_OP = CASE image WHEN 'before' THEN 'INSERT' ELSE 'DELETE' END;
                IF image = 'before' THEN held := OLD; ELSE held := NEW; END IF;
                failed := '{{}}';
                FOR part, number IN SELECT pg_get_expr(adbin, adrelid), attnum {columns} AND attgenerated = 'v' LOOP
                    BEGIN
                        EXECUTE format('SELECT (%s) FROM (SELECT ($1).*, $2 AS tableoid) t', part) USING held, TG_RELID;
                    EXCEPTION WHEN OTHERS THEN
                        failed := failed || number;
                    END;
                END LOOP;
                BEGIN
                    SELECT {computed} INTO part {columns};
                    EXECUTE part INTO now USING held, TG_RELID;
                    IF image = 'before' THEN before := now; ELSE after := now; END IF;
                EXCEPTION WHEN OTHERS THEN
                    NULL;
                END;
            END LOOP;
        END;
    END IF;
    IF TG_OP IN ('UPDATE', 'DELETE') AND before IS NULL THEN before := row_to_json(OLD); END IF;
    IF TG_OP IN ('UPDATE', 'INSERT') AND after IS NULL THEN after := row_to_json(NEW); END IF;
    was := before;
    now := after;
    IF strpos(was::text, '\\u') > 0 THEN was := regexp_replace(was::text, {unreadable}, '\\ue000', 'g'); END IF;
    IF strpos(now::text, '\\u') > 0 THEN now := regexp_replace(now::text, {unreadable}, '\\ue000', 'g'); END IF;
    FOREACH part IN ARRAY key LOOP
        renamed := renamed OR coalesce(now, was) -> part IS NULL;
    END LOOP;
    IF renamed THEN  -- a column of the primary key, since the trigger was made
        SELECT coalesce(array_agg(attname::text ORDER BY array_position(indkey::int2[], attnum)), key) INTO key
        FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)
        WHERE indrelid = TG_RELID AND indisprimary;
        ending := ', "key": ' || to_json(key) || '}}';  -- of two, a reader of JSON takes the last
    END IF;
    IF TG_OP = 'TRUNCATE' THEN  -- each row that goes is a DELETE
        SELECT CASE relkind WHEN 'p' THEN '' ELSE 'ONLY' END INTO part FROM pg_class WHERE oid = TG_RELID;
        FOR before IN EXECUTE
            format('SELECT row_to_json("mesh row") FROM %s %I.%I "mesh row"', part, TG_TABLE_SCHEMA, TG_TABLE_NAME)
        LOOP
            INSERT INTO {outbox} (id, subject, headers, data, created) VALUES (
                replace(gen_random_uuid()::text, '-', ''), TG_ARGV[0], hops,
                convert_to(TG_ARGV[1] || time || ', "operation": "DELETE", "before": ' || before || ending, 'UTF8'),
                time::bigint);
        END LOOP;
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        FOREACH part IN ARRAY key LOOP
            moved := moved OR (was -> part)::text IS DISTINCT FROM (now -> part)::text;
        END LOOP;
    END IF;
    IF moved OR TG_OP = 'DELETE' THEN
        INSERT INTO {outbox} (id, subject, headers, data, created) VALUES (
            replace(gen_random_uuid()::text, '-', ''), TG_ARGV[0], hops,
            convert_to(TG_ARGV[1] || time || ', "operation": "DELETE", "before": ' || before || ending, 'UTF8'),
            time::bigint);
    END IF;
    IF moved OR TG_OP = 'INSERT' THEN
        INSERT INTO {outbox} (id, subject, headers, data, created) VALUES (
            replace(gen_random_uuid()::text, '-', ''), TG_ARGV[0], hops,
            convert_to(TG_ARGV[1] || time || ', "operation": "INSERT", "after": ' || after || ending, 'UTF8'),
            time::bigint);
    END IF;
    IF TG_OP = 'UPDATE' AND NOT moved THEN
        INSERT INTO {outbox} (id, subject, headers, data, created) VALUES (
            replace(gen_random_uuid()::text, '-', ''), TG_ARGV[0], hops,
            convert_to(
                TG_ARGV[1] || time || ', "operation": "UPDATE", "before": ' || before || ', "after": ' || after
                || ending, 'UTF8'),
            time::bigint);
    END IF;
    RETURN NULL;
END $mesh$"""


def install(connection: Connection, service: str, tables: Sequence[str]) -> None:
    """Make the triggers of these tables and remove all others (see ``capture.install``)."""
    schema = connection.exec_driver_sql("SELECT current_schema()").scalar_one()
    made, text = function(schema)
    wanted = {
        (table, title): statement
        for table in tables
        for title, statement in triggers(made, service, _table(connection, table)).items()
    }
    there = {
        (row.relname, row.tgname): row.enabled  # a trigger may have been disabled by hand
        for row in connection.exec_driver_sql(
            "SELECT relname, tgname, tgenabled <> 'D' AS enabled FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid "
            "WHERE tgname LIKE 'mesh\\_change\\_%' AND tgparentid = 0 AND NOT tgisinternal "
            "AND relnamespace = current_schema()::regnamespace"
        )
    }
    for table, title in {key for key, enabled in there.items() if not enabled or key not in wanted}:
        connection.exec_driver_sql(f"DROP TRIGGER {name(title)} ON {name(table)}")
    functions = set(
        connection.exec_driver_sql(
            "SELECT proname FROM pg_proc WHERE proname LIKE 'mesh\\_change\\_%' "
            "AND pronamespace = current_schema()::regnamespace"
        ).scalars()
    )
    if wanted and made not in functions:
        connection.exec_driver_sql(text)
    for key, statement in wanted.items():
        if not there.get(key):
            connection.exec_driver_sql(statement)
    for old in functions - ({made} if wanted else set()):
        connection.exec_driver_sql(f"DROP FUNCTION {name(old)}()")


def function(schema: str) -> tuple[str, str]:
    """Return the name of the trigger function and its CREATE statement for the schema."""
    text = _FUNCTION.format(
        outbox=f"{name(schema)}.mesh_outbox",
        unreadable=_UNREADABLE,
        computed=_COMPUTED,
        columns=_COLUMNS,
        function="{function}",
    )
    title = PREFIX + _digest(text)
    return title, text.replace("{function}", name(title))


def triggers(function: str, service: str, table: Table) -> dict[str, str]:
    """Return the CREATE statements of a table's triggers, by the triggers' names.

    Args:
        function: The name of the trigger function.
        service: The service that owns the table.
        table: The table.

    Raises:
        ChangeError: The table has no primary key.
    """
    forms = {column.name: column.form for column in table.columns if column.form is not None}
    # A relay of an earlier release may still run, which reads "bytes".
    raw = [title for title, form in forms.items() if form == "b"]
    head = json.dumps({"form": "postgresql", "key": table.key, "bytes": raw, "forms": forms}).removesuffix("}")
    subject = f"{CHANGES}.{escape(service)}.{escape(table.name)}"
    virtual = "virtual" if any(column.generated for column in table.columns) else ""
    arguments = ", ".join(literal(text) for text in (subject, f'{head}, "time": ', virtual, *table.key))
    made = {}
    for when, each in (("AFTER INSERT OR UPDATE OR DELETE", "ROW"), ("BEFORE TRUNCATE", "STATEMENT")):
        what = f"{when} ON {name(table.name)} FOR EACH {each} EXECUTE FUNCTION {name(function)}({arguments})"
        title = PREFIX + _digest(what)
        made[title] = f"CREATE TRIGGER {name(title)} {what}"
    return made


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _table(connection: Connection, table: str) -> Table:
    kind = connection.exec_driver_sql(
        "SELECT relkind::text FROM pg_class WHERE relname = $1 AND relnamespace = current_schema()::regnamespace",
        (table,),
    ).scalar_one_or_none()
    if kind not in ("r", "p"):
        what = "does not exist" if kind is None else "is not a table"
        raise ChangeError(f"table {table} {what}; on.change needs a table of this service's database")
    rows = connection.exec_driver_sql(
        "SELECT attname, format_type(atttypid, NULL) AS type, atttypid, attgenerated = 'v' AS virtual, "
        "coalesce(array_position(i.indkey::int2[], attnum), -1) + 1 AS key "  # an int2vector counts from 0
        "FROM pg_attribute LEFT JOIN pg_index i ON i.indrelid = attrelid AND i.indisprimary "
        "JOIN pg_class c ON c.oid = attrelid WHERE relname = $1 AND relnamespace = current_schema()::regnamespace "
        "AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        (table,),
    ).all()
    known: dict[int, Form] = {}
    columns = (
        Column(row.attname, row.type, row.key, _form(connection, row.atttypid, known), generated=row.virtual)
        for row in rows
    )
    return Table(table, tuple(columns))


def _form(connection: Connection, type_: int, known: dict[int, Form]) -> Form:
    """Return the places of ``bytea`` in the values of a type; ``known`` holds the types that were examined."""
    if type_ == _BYTEA:
        return "b"
    if type_ not in known:
        known[type_] = None  # ends the recursion if a type could contain itself
        [row] = connection.exec_driver_sql(
            "SELECT typtype::text, typbasetype, typrelid, CASE typcategory WHEN 'A' THEN typelem ELSE 0 END AS element "
            "FROM pg_type WHERE oid = $1",
            (type_,),
        )
        if row.typtype == "d":
            known[type_] = _form(connection, row.typbasetype, known)
        elif row.element:
            inner = _form(connection, row.element, known)
            known[type_] = None if inner is None else [inner]
        elif row.typtype == "c":
            parts = connection.exec_driver_sql(
                "SELECT attname, atttypid FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped",
                (row.typrelid,),
            ).all()
            found = {part.attname: _form(connection, part.atttypid, known) for part in parts}
            known[type_] = {part: form for part, form in found.items() if form is not None} or None
    return known[type_]

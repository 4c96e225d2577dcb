# ruff: noqa: E501 - a statement is one line
"""Tables and columns that a migration drops although a change trigger names them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mesh.config import manifest
from mesh.contract import loader
from mesh.control import project
from mesh.control.commands import check_against
from mesh.control.commands.captured_drops import drops

CASES = [
    ("op.drop_table('users')", [("users", "")]),
    ("op.drop_table(table_name=TABLE)", [("users", "")]),
    ("op.drop_column('users', 'name')", [("users", "name")]),
    ("op.drop_column(TABLE, column_name='name')", [("users", "name")]),
    ("op.rename_table('users', 'people')", [("users", "")]),
    ("op.alter_column('users', 'name', new_column_name='title')", [("users", "name")]),
    ("op.alter_column('users', 'name', nullable=True)", []),
    (
        "with op.batch_alter_table('users') as batch:\n        batch.drop_column('name')\n        batch.alter_column('age', new_column_name='years')",
        [("users", "name"), ("users", "age")],
    ),
    ("with op.batch_alter_table('users') as batch:\n        batch.add_column(sa.Column('name', sa.String))", []),
    ("op.execute('DROP TABLE IF EXISTS users')", [("users", "")]),
    ("op.execute(sa.text('drop table \"users\"'))", [("users", "")]),
    (
        "op.execute('ALTER TABLE users DROP COLUMN IF EXISTS name, DROP COLUMN age')",
        [("users", "name"), ("users", "age")],
    ),
    ("op.execute('ALTER TABLE users DROP name')", [("users", "name")]),
    ("op.execute('ALTER TABLE public.users RENAME COLUMN name TO title')", [("users", "name")]),
    ("op.execute('ALTER TABLE users RENAME TO people')", [("users", "")]),
    ("op.execute('ALTER TABLE users DROP CONSTRAINT one; ALTER TABLE users ALTER COLUMN name DROP NOT NULL')", []),
    ("op.drop_index('by_name', 'users')\n    op.drop_constraint('one', 'users')", []),
    (
        "op.create_table('new', sa.Column('id', sa.String))\n    op.drop_table('users')\n    op.rename_table('new', 'users')",
        [("new", "")],
    ),
    ("op.execute('DROP TABLE users; CREATE TABLE users (id TEXT)')", []),
    ("op.drop_table(name_of('users'))", []),
    ("'DROP TABLE users'", []),
    ("", []),
]
VERSION = """\"\"\"Drop table users.\"\"\"
revision = "2"
down_revision = "1"
TABLE = "users"

def upgrade():
    pass
    STATEMENT

def downgrade():
    op.drop_table("others")
"""


@pytest.mark.parametrize(("statement", "expected"), CASES)
def test_operations_and_sql_are_read(statement: str, expected: list[tuple[str, str]]) -> None:
    assert [(one.table, one.column) for one in drops(VERSION.replace("STATEMENT", statement).encode())] == expected


def test_a_file_that_is_no_python_has_no_operations() -> None:
    assert drops(b"def upgrade(:") == []


CONTRACT = """syntax = "proto3";
package a.v1;
import "google/protobuf/empty.proto";
import "meshapi/v1/annotations.proto";
service Audit {
  rpc OnUser(meshapi.v1.Change) returns (google.protobuf.Empty) {
    option (meshapi.v1.method) = { on: { change { service: "shop" table: "users" } } };
  }
}
"""
MANIFEST = """
[services.shop]
module = "shop.functions"
serves = ["a.v1.Audit"]
listen = "127.0.0.1:0"
database = "sqlite:///shop.db"
"""


def test_a_migration_that_a_commit_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def commit() -> None:
        git = ["git", "-C", tmp_path, "-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
            subprocess.run([*git, *words], check=True)

    def check() -> int:
        found = manifest.load(tmp_path / "mesh.toml")
        return check_against.run(found, loader.read(project.compile_contract(found)), "HEAD", "text")

    folder = tmp_path / "shop/migrations"
    folder.mkdir(parents=True)
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos/a.proto").write_text(CONTRACT)
    (tmp_path / "mesh.toml").write_text(MANIFEST)
    (folder / "v1.py").write_text(VERSION.replace("STATEMENT", "op.drop_table('users')"))
    commit()
    assert check() == 0
    assert capsys.readouterr().out == "ok: no breaking change against HEAD\n"
    two = "op.drop_column('users', 'name')\n    op.drop_column('other', 'name')\n    op.drop_table('users')"
    (folder / "v2.py").write_text(VERSION.replace("STATEMENT", two))
    assert check() == check_against.BROKEN
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "shop/migrations/v2.py:10: CAPTURED_TABLE_DROPPED shop.users: the migration drops or renames "
    )
    assert "a.v1.Audit/OnUser is called for changes of shop.users, so shop does not start without the table" in first
    assert second.startswith("shop/migrations/v2.py:8: CAPTURED_COLUMN_DROPPED shop.users.name: ")

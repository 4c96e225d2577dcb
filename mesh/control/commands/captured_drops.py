"""Tables and columns that new migrations drop or rename although a change trigger of the contract names the table.

The version files are read and never run. Found are Alembic's operations and SQL in strings; names that a migration
computes are not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.config.manifest import Manifest
from mesh.contract.breaks.break_rules import Break
from mesh.contract.model import ChangeTrigger, Contract
from mesh.control.supervise import migration_versions

__all__ = ["Drop", "captured_drops", "drops", "version_files"]

_NAME = r"""["`\[]?(?:\w+["`\]]?\.["`\[]?)?(\w+)["`\]]?"""
_TABLE = re.compile(rf"\bDROP\s+TABLE\s+(?:IF\s+EXISTS\s+)?{_NAME}", re.IGNORECASE)
_CREATE = re.compile(rf"\bCREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?{_NAME}", re.IGNORECASE)
_ALTER = re.compile(rf"\bALTER\s+TABLE\s+(?:IF\s+EXISTS\s+)?(?:ONLY\s+)?{_NAME}\s+([^;]*)", re.IGNORECASE)
_RENAME_TABLE = re.compile(rf"\bRENAME\s+TO\s+{_NAME}", re.IGNORECASE)
_COLUMN = re.compile(
    rf"\bDROP\s+(?:COLUMN\s+)?(?:IF\s+EXISTS\s+)?(?!CONSTRAINT\b|COLUMN\b|IF\b|DEFAULT\b|NOT\b){_NAME}"
    rf"|\bRENAME\s+(?:COLUMN\s+)?(?!TO\b|COLUMN\b|CONSTRAINT\b){_NAME}\s+TO\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Drop:
    """A table or column that is gone after a migration.

    Attributes:
        table: The table.
        column: The column; ``""``: the table itself.
        line: Line of the operation.
    """

    table: str
    column: str
    line: int


def captured_drops(
    manifest: Manifest, contract: Contract, applied: Mapping[str, Collection[str] | Mapping[str, bytes]]
) -> list[Break]:
    """Return a break for each table or column that a new version drops and a change trigger names.

    Args:
        manifest: The manifest.
        contract: The new contract.
        applied: Service → the version files that are not new: their contents by file name, or the names of the versions
            that its database has. A service that is missing is new, so its tables have no changes yet.
    """
    found: list[Break] = []
    for service in manifest.services.keys() & applied.keys():
        captured = {table: _called(contract, service, table) for table in contract.captured_tables(service)}
        folder = manifest.migrations_folder(service) if captured else None
        for path, source in _new_versions(folder, applied[service]) if folder is not None else ():
            place = path.relative_to(manifest.root) if path.is_relative_to(manifest.root) else path
            found += [_break(f"{place}:{one.line}", service, one, captured[one.table])
                      for one in drops(source) if one.table in captured]  # fmt: skip
    return found


def version_files(manifest: Manifest) -> dict[str, dict[str, bytes]]:
    """Return the version files of each service with a database: contents by file name."""
    return {
        name: migration_versions.read_versions(manifest.migrations_folder(name))
        for name, config in manifest.services.items()
        if config.database
    }


def _called(contract: Contract, service: str, table: str) -> list[str]:
    trigger = ChangeTrigger(service, table)
    return [method.path[1:] for method in contract.methods.values() if trigger in method.triggers]


def _new_versions(folder: Path, applied: Collection[str] | Mapping[str, bytes]) -> Iterator[tuple[Path, bytes]]:
    for name, source in migration_versions.read_versions(folder).items():
        if isinstance(applied, Mapping):
            is_new = applied.get(name) != source
        else:
            is_new = migration_versions.revision_of(source) not in applied
        if is_new:
            yield folder / name, source


def _break(place: str, service: str, drop: Drop, methods: list[str]) -> Break:
    called = f"{', '.join(methods)} {'is' if len(methods) == 1 else 'are'} called for changes of {service}.{drop.table}"
    if drop.column:
        return Break(
            place, "CAPTURED_COLUMN_DROPPED", f"{service}.{drop.table}.{drop.column}",
            f"the migration drops or renames the column {drop.column}", f"{called}, whose rows no longer have it",
            "keep the column until no function reads it from a change; add the new one beside it",
        )  # fmt: skip
    return Break(
        place, "CAPTURED_TABLE_DROPPED", f"{service}.{drop.table}", "the migration drops or renames the table",
        f"{called}, so {service} does not start without the table", "remove the triggers first, and drop it later",
    )  # fmt: skip


def drops(source: bytes) -> list[Drop]:
    """Return the tables and columns that a version drops or renames, and does not make again."""
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError):  # the other checks report it
        return []
    reader = _VersionReader(module)
    for statement in module.body:
        if not (isinstance(statement, ast.FunctionDef) and statement.name == "downgrade"):
            reader.visit(statement)
    return sorted(reader.found.values(), key=lambda one: one.line)


class _VersionReader(ast.NodeVisitor):
    """Reader of one version file, in the order of its statements."""

    def __init__(self, module: ast.Module) -> None:
        self.found: dict[tuple[str, str], Drop] = {}
        self._constants = {
            target.id: statement.value.value
            for statement in module.body
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
            for target in statement.targets
            if isinstance(target, ast.Name) and isinstance(statement.value.value, str)
        }
        self._batches: dict[str, str] = {}

    def visit_With(self, node: ast.With) -> None:
        """Remember the table of ``with op.batch_alter_table("users") as batch``."""
        for item in node.items:
            call = item.context_expr
            if isinstance(call, ast.Call) and _method(call) == "batch_alter_table":
                table = self._text(call, 0, "table_name")
                if isinstance(item.optional_vars, ast.Name):
                    self._batches[item.optional_vars.id] = table
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Read an operation of Alembic."""
        owner = (
            node.func.value.id if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) else ""
        )
        batch = self._batches.get(owner)
        table = self._text(node, 0, "table_name") if batch is None else batch
        column = self._text(node, 1 if batch is None else 0, "column_name")
        match _method(node):
            case "drop_table":
                self._drop(node, table)
            case "rename_table":
                self._drop(node, self._text(node, 0, "old_table_name"))
                self._make(self._text(node, 1, "new_table_name"))
            case "create_table":
                self._make(table)
            case "drop_column":
                self._drop(node, table, column)
            case "alter_column" if any(keyword.arg == "new_column_name" for keyword in node.keywords):
                self._drop(node, table, column)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        """Pass over docstrings."""
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Read SQL."""
        if isinstance(node.value, str):
            self._sql(node, node.value)

    def _sql(self, node: ast.AST, text: str) -> None:
        for found in _TABLE.finditer(text):
            self._drop(node, found[1])
        for found in _ALTER.finditer(text):
            table, rest = found[1], found[2]
            renamed = _RENAME_TABLE.search(rest)
            if renamed is not None:
                self._drop(node, table)
                self._make(renamed[1])
            for column in _COLUMN.finditer(rest):
                self._drop(node, table, column[1] or column[2])
        for found in _CREATE.finditer(text):
            self._make(found[1])

    def _drop(self, node: ast.AST, table: str, column: str = "") -> None:
        if table:
            self.found[table, column] = Drop(table, column, getattr(node, "lineno", 1))

    def _make(self, table: str) -> None:
        """Forget a dropped table: it was made anew, as SQLite needs for most changes."""
        self.found.pop((table, ""), None)

    def _text(self, call: ast.Call, index: int, keyword: str) -> str:
        """Return an argument that is a text or a constant of the module, or ``""``."""
        given: ast.expr | None = call.args[index] if len(call.args) > index else None
        given = next((one.value for one in call.keywords if one.arg == keyword), given)
        if isinstance(given, ast.Name):
            return self._constants.get(given.id, "")
        return given.value if isinstance(given, ast.Constant) and isinstance(given.value, str) else ""


def _method(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""

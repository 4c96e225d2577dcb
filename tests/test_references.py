"""References in docstrings: each ``mesh.…`` names a module, or a name of one, that exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(file.relative_to(ROOT) for file in (ROOT / "mesh").rglob("*.py"))
REFERENCE = re.compile(r"``(mesh(?:\.\w+)+)(?:\(.*?\))?``|^ +(mesh(?:\.\w+)+):", re.MULTILINE)
"""A name in double backquotes, or an exception of a ``Raises:`` section."""


@cache
def module_of(name: str) -> ast.Module | None:
    path = ROOT.joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return ast.parse(file.read_text())
    return None


def members(node: ast.Module | ast.ClassDef) -> dict[str, ast.AST]:
    """Return the names that a module or a class defines; for a class also the attributes that its methods set."""
    found: dict[str, ast.AST] = {}
    for one in ast.walk(node):
        if isinstance(one, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.setdefault(one.name, one)
        elif isinstance(one, ast.Name | ast.Attribute) and isinstance(one.ctx, ast.Store):
            found.setdefault(one.id if isinstance(one, ast.Name) else one.attr, one)
        elif isinstance(one, ast.alias):
            found.setdefault(one.asname or one.name, one)
    return found


def exists(reference: str) -> bool:
    parts = reference.split(".")
    for end in range(len(parts), 0, -1):
        module = module_of(".".join(parts[:end]))
        if module is None:
            continue
        node: ast.AST = module
        for name in parts[end:]:
            if not isinstance(node, ast.Module | ast.ClassDef) or name not in (known := members(node)):
                return False
            node = known[name]
        return True
    return False


def references(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for match in REFERENCE.finditer(node.value.value):
                yield node.lineno, match[1] or match[2]


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_references_of_docstrings_exist(file: Path) -> None:
    assert [f"{file}:{line}: {name}" for line, name in references(file) if not exists(name)] == []


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("mesh.call", True),
        ("mesh.call.Call.deadline", True),
        ("mesh.jsoncodec", False),
        ("mesh.call.Letter", False),
        ("mesh.call.Call.doubt", False),
    ],
)
def test_a_stale_reference_is_found(reference: str, *, expected: bool) -> None:
    assert exists(reference) is expected

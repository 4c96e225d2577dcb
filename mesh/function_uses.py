"""Uses of the service's database and events in functions, found in their source for ``mesh check``.

The search begins at the functions of the contract and the hooks, and follows the functions of the project that they
name. It finds ``context.transaction()``, ``context.publish(…)`` and ``tx.publish(…)``. Uses
that code hides (``getattr``, methods of objects) stay unknown.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from mesh.context import Context

__all__ = ["Use", "uses"]

_NAMES = frozenset({"context", "ctx", "service"})
"""Names of parameters without an annotation that stand for a context."""


@dataclass(frozen=True, slots=True)
class Use:
    """One use.

    Attributes:
        what: ``"transaction"`` or ``"publish"``.
        function: Name of the function that has it.
        place: File and line.
    """

    what: str
    function: str
    place: str


def uses(functions: Iterable[Callable[..., Any]], root: Path) -> list[Use]:
    """Return the uses in functions, and in the functions of the project that they name.

    Args:
        functions: The functions of the contract and the hooks. Their last positional parameter is a context.
        root: Folder of the project. Code outside of it is not read.
    """
    found: list[Use] = []
    seen: set[FunctionType] = set()
    waiting = [(inspect.unwrap(function), True) for function in functions]
    while waiting:
        function, is_root = waiting.pop()
        if not isinstance(function, FunctionType) or function in seen or not _is_own(function, root):
            continue
        seen.add(function)
        tree = _tree(function)
        if tree is None:
            continue
        found += _uses_in(tree, function, is_root=is_root)
        waiting += [(inspect.unwrap(named), False) for named in _named(tree, function)]
    return found


def _is_own(function: FunctionType, root: Path) -> bool:
    file = Path(function.__code__.co_filename)
    return file.is_relative_to(root) and not {"site-packages", "dist-packages"} & set(file.parts)


def _tree(function: FunctionType) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError, TypeError):  # code without a source, or a lambda within a statement
        return None
    ast.increment_lineno(tree, first - 1)
    found = tree.body[0] if tree.body else None
    return found if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef) else None


def _uses_in(tree: ast.FunctionDef | ast.AsyncFunctionDef, function: FunctionType, *, is_root: bool) -> Iterator[Use]:
    parameters = [argument.arg for argument in (*tree.args.posonlyargs, *tree.args.args)]
    contexts = {name for name in parameters if _is_context(name, function)}
    if is_root and parameters:
        contexts.add(parameters[-1])
    transactions = {
        item.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and _attribute(item.context_expr, contexts) == "transaction"
    }
    for node in ast.walk(tree):
        what = _attribute(node, contexts)
        if what is None and _attribute(node, transactions) == "publish":
            what = "publish"
        if what is not None:
            assert isinstance(node, ast.Call)  # noqa: S101 - as _attribute has found
            yield Use(what, function.__name__, f"{function.__code__.co_filename}:{node.lineno}")


def _attribute(node: ast.AST, owners: Iterable[str]) -> str | None:
    """Return ``"transaction"`` or ``"publish"`` if the node calls this method of one of the names."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="transaction" | "publish" as attribute)):
            return attribute if name in owners else None
    return None


def _is_context(name: str, function: FunctionType) -> bool:
    """Return whether a parameter is a context of the mesh, by its annotation or else by its name."""
    annotation = function.__annotations__.get(name)
    if annotation is None:
        return name in _NAMES
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    module = getattr(annotation, "__module__", "") or ""
    if isinstance(annotation, str):
        found = function.__globals__.get(text.partition("[")[0].rpartition(".")[2])
        module, text = getattr(found, "__module__", "") or "", str(found)
    return module == Context.__module__ or f"{Context.__module__}." in text


def _named(tree: ast.AST, function: FunctionType) -> Iterator[Callable[..., Any]]:
    """Yield the functions that a function names, of its own module and as attributes of modules."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                owner = function.__globals__.get(name)
                found = getattr(owner, attribute, None) if isinstance(owner, ModuleType) else None
            case ast.Name(id=name):
                found = function.__globals__.get(name)
            case _:
                continue
        if isinstance(found, FunctionType):
            yield found

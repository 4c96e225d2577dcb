"""Imports of a contract that need no import root of the user: the files themselves, for other tools.

buf, protoc and editors know neither ``meshapi`` nor ``google/api``. They need the files in a folder of the project.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from mesh.contract import protoc

__all__ = ["builtin_imports", "imported_names"]

_IMPORT = re.compile(r'^import\s+(?:public\s+|weak\s+|option\s+)?"([^"]+)"\s*;', re.MULTILINE)


def builtin_imports(names: Iterable[str], own: Collection[str] = ()) -> dict[str, Path]:
    """Return import name → path of the built-in files among the names, and of everything that these import, sorted.

    Args:
        names: Import names.
        own: Names of the files of the import roots. A file of one of these names is the user's own.
    """
    found: dict[str, Path] = {}
    pending = list(names)
    while pending:
        name = pending.pop()
        path = None if name in found or name in own else protoc.builtin_file(name)
        if path is not None:
            found[name] = path
            pending += imported_names(path.read_text(encoding="utf-8"))
    return dict(sorted(found.items()))


def imported_names(text: str) -> list[str]:
    """Return the import names in the text of a .proto file that has each import on a line of its own."""
    return _IMPORT.findall(text)

"""Explanation of import errors of stubs whose folder another Python package hides.

A folder with ``__init__.py``, or a module, hides folders of the same name elsewhere on ``sys.path``, whichever comes
first there (https://docs.python.org/3/reference/import.html, namespace packages). Stubs have no ``__init__.py``.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from types import ModuleType

__all__ = ["explain"]


def explain(error: BaseException) -> str:
    """Return which package hides the missing module and how to fix it, as the end of a sentence, or ``""``."""
    if not isinstance(error, ImportError) or not error.name:
        return ""
    parent, _, missing = error.name.rpartition(".")
    if not isinstance(error, ModuleNotFoundError):  # the module exists and lacks a name
        parent, missing = error.name, ""
    module = sys.modules.get(parent)
    if module is None:
        return ""
    folder = _elsewhere(module, parent, missing)
    if folder is None:
        return ""
    where = getattr(module, "__file__", None) or "built into Python"
    name = "/".join(parent.split("."))
    what = "rename that folder or the contract's" if _is_own(where) else "rename the contract's folder"
    return f"; {folder} is hidden by the Python package {parent!r} ({where}): {what} {name}/ (its `package` can stay)"


def _elsewhere(module: ModuleType, parent: str, missing: str) -> Path | None:
    """Return a folder of the parent's name on ``sys.path`` that Python ignores and that has the missing module."""
    seen = {Path(place).resolve() for place in getattr(module, "__path__", ())}
    for entry in sys.path:
        folder = Path(entry, *parent.split("."))
        if not folder.is_dir() or folder.resolve() in seen:
            continue
        if missing and ((folder / missing).is_dir() or (folder / f"{missing}.py").is_file()):
            return folder
        if not missing and any(folder.glob("*_pb2.py")):
            return folder
    return None


def _is_own(where: str) -> bool:
    """Whether a file belongs to the project, not to Python, an installed package or the mesh."""
    foreign = (
        *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")),
        str(Path(__file__).parent.parent),
    )
    return Path(where).is_absolute() and not where.startswith(foreign)

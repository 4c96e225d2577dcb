"""``mesh new NAME``: adds a service that runs as it is, to be edited. It overwrites no file."""

from __future__ import annotations

import importlib.util
import json
import keyword
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from string import Template

from mesh.address import reachable, split
from mesh.config import json_schema
from mesh.config.manifest import Manifest, load
from mesh.contract.imports import builtin_imports, imported_names
from mesh.control.commands import scaffold
from mesh.faults import Fault, Faults

__all__ = ["run"]

_FIRST_PORT = 9101


def run(file: Path, name: str) -> int:
    """Add a service to the project, make the project if it is missing, and print the next steps.

    Args:
        file: mesh.toml.
        name: Name of the service.

    Returns:
        The exit code.

    Raises:
        Faults: The name cannot be used, a file to be made exists, or mesh.toml has faults.
    """
    fresh = not file.exists()
    root = file.resolve().parent
    manifest = None if fresh else load(file)
    _check(name, manifest)
    values = _values(name, file, manifest)
    project = scaffold.PROJECT if fresh else {"services/__init__.py": scaffold.PROJECT["services/__init__.py"]}
    files = {root / _fill(path, values): _fill(text, values) for path, text in scaffold.SERVICE.items()}
    taken = [Fault(os.path.relpath(path), "exists already; nothing was written") for path in files if path.exists()]
    if taken:
        raise Faults(taken)
    files |= {root / path: _fill(text, values) for path, text in project.items()}  # files that exist are kept
    for path, text in files.items():
        if _write(path, text):
            print(f"  made     {os.path.relpath(path)}")
    if fresh:
        for path, text in _for_other_tools(root).items():
            _write(path, text)
        print(f"  made     {os.path.relpath(root / scaffold.IMPORTS)}{os.sep}")
    _append(file, _fill(scaffold.TABLE, values))
    print(f"  changed  {os.path.relpath(file)}")
    print(_next_steps(values, load(file)))
    return 0


def _write(path: Path, text: str) -> bool:
    """Write a file unless it exists; return whether it was written.

    Raises:
        Faults: It cannot be written.
    """
    if path.exists():
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Faults([Fault(str(path), f"cannot be written: {error.strerror or error}")]) from error
    return True


def _for_other_tools(root: Path) -> dict[Path, str]:
    """Return the files of a new project that buf and editors read: the contract's imports, the schema of mesh.toml."""
    imports = builtin_imports(imported_names(scaffold.PROTO))
    files = {root / scaffold.IMPORTS / name: path.read_text(encoding="utf-8") for name, path in imports.items()}
    return {**files, root / scaffold.SCHEMA: json.dumps(json_schema.document(), indent=2) + "\n"}


def _check(name: str, manifest: Manifest | None) -> None:
    """Refuse a name that is no valid package name, or that another package has."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise Faults(
            [
                Fault(
                    name,
                    "a service's name has lower-case letters, digits and '_', begins with a letter, and is no keyword",
                )
            ]
        )
    if manifest is not None and name in manifest.services:
        raise Faults([Fault(f"{manifest.file.name} [services.{name}]", "exists already; nothing was written")])
    if name in ("edge", "services", "tests", "protos"):
        raise Faults([Fault(name, "is taken by the mesh itself; use another name")])
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise Faults([Fault(name, "is a Python package already, and the stubs would be one too; use another name")])


def _values(name: str, file: Path, manifest: Manifest | None) -> dict[str, str]:
    root = file.resolve().parent
    protos = manifest.protos[0] if manifest else root / "protos"
    used = {split(config.listen)[1] for config in manifest.services.values()} if manifest else set()
    if manifest is not None and manifest.edge is not None:
        used.add(split(manifest.edge.listen)[1])
    return {
        "name": name,
        "service": "".join(part.capitalize() for part in name.split("_")),
        "path": name.replace("_", "-"),
        "module": f"services.{name}.functions",
        "port": str(next(port for port in range(_FIRST_PORT, 2**16) if port not in used)),
        "protos": os.path.relpath(protos, root),
        "project": "".join(char if char.isprintable() else "?" for char in root.name),  # a heading of one line
        "file": json.dumps(file.name),
    }


def _fill(text: str, values: Mapping[str, str]) -> str:
    return Template(text).substitute(values)


def _append(file: Path, text: str) -> None:
    """Add text at the end of a file, on a new line."""
    before = file.read_text(encoding="utf-8")
    with file.open("a", encoding="utf-8") as end:
        end.write(("" if before.endswith("\n") else "\n") + text)


def _next_steps(values: Mapping[str, str], manifest: Manifest) -> str:
    name, service, path = values["name"], values["service"], values["path"]
    lines = [
        "",
        "Next:",
        "  mesh up" + " " * 36 + "# start it",
        f'  mesh call {service}/Greet -d \'{{"name": "Ada"}}\'',
        f"  python -m pytest tests/test_{name}.py",
        f"  edit {values['protos']}/{name}/v1/{name}.proto and services/{name}/functions.py",
    ]
    if manifest.edge is not None:
        lines.insert(3, f"  curl {reachable(manifest.edge.listen)}/v1/{path}/Ada")
    return "\n".join(lines)

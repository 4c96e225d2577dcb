"""``mesh secrets``: sets, lists and removes the secrets of a mesh on this machine."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

from mesh.config import manifest
from mesh.config.secrets import valid_name
from mesh.control.text_table import table
from mesh.faults import Fault, Faults

__all__ = ["remove", "set_", "show"]


def set_(file: Path, name: str) -> int:
    """Store a secret: from the terminal without echo, else all of standard input without its last line break.

    Raises:
        Faults: The name is not valid, the secret is empty, or the file cannot be written.
    """
    if not valid_name(name):
        raise Faults([Fault("NAME", f"expected letters, digits, '_', '-' and '.', got {name[:40]!r}")])
    store = manifest.load(file).secret_sources.store
    value = getpass.getpass(f"{name}: ") if sys.stdin.isatty() else sys.stdin.read().removesuffix("\n")
    if not value:
        raise Faults([Fault("standard input", "expected the secret, got nothing")])
    store.set(name, value)
    return 0


def remove(file: Path, name: str) -> int:
    """Remove a stored secret.

    Raises:
        Faults: There is none of this name, or the file cannot be written.
    """
    if not manifest.load(file).secret_sources.store.remove(name):
        raise Faults([Fault(name, "no such secret was set here; `mesh secrets list` shows where the mesh finds each")])
    return 0


def show(file: Path) -> int:
    """Print the name of each secret, who uses it, and where it is found; never a value.

    Returns:
        0, or 1 if a secret that mesh.toml names is nowhere.
    """
    found = manifest.load(file)
    users: dict[str, list[str]] = {name: [] for name in found.secret_sources.store.names()}
    for owner, names in found.secret_names.items():
        for name in names:
            users.setdefault(name, []).append(owner or "mesh")
    rows = []
    for name, owners in sorted(users.items()):
        try:
            place = found.secret_sources.locate(name)[1] or "nowhere"
        except Faults as unreadable:
            place = str(unreadable)
        rows.append((name, ", ".join(sorted(owners)) or "not used", place))
    print(table(("secret", "used by", "found in"), rows) if rows else f"{file.name} names no secrets, and none is set")
    return int(any(place == "nowhere" for _, _, place in rows))

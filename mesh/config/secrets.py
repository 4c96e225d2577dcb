"""Secrets of mesh.toml: ``{ secret = "name" }`` in settings and other text values, ``{secret:name}`` inside a text.

A secret is looked up, in this order, in

- the variable ``MESH_SECRET_NAME`` (upper case, ``-`` as ``_``),
- the file ``name`` of the folder ``secrets`` of mesh.toml (``/run/secrets``, where Docker and Kubernetes mount them);
  one line break at its end is not part of the secret,
- the encrypted file of ``mesh secrets set``.

A component looks up its own secrets only. Commands that need none, such as ``mesh check``, look up nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mesh.config.secret_store import KEY_VARIABLE, SecretStore
from mesh.faults import Fault, Faults
from mesh.secret import HIDDEN, Secret

__all__ = ["VARIABLE_PREFIX", "SecretSources", "is_variable", "resolve", "valid_name", "variable"]

VARIABLE_PREFIX = "MESH_SECRET_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_INSIDE = re.compile(r"\{secret:([^{}]*)\}")
_UNRESOLVED = {"database": "postgresql:///unresolved", "broker": "nats://unresolved:4222"}
"""Key → valid value in place of a secret that is not looked up; ``***`` for other keys."""


def is_variable(name: str) -> bool:
    """Whether an environment variable holds a secret, or the key of the secrets, and no value of mesh.toml."""
    return name.startswith(VARIABLE_PREFIX) or name == KEY_VARIABLE


def valid_name(name: str) -> bool:
    """Whether a name can be that of a secret: letters, digits, ``_``, ``-`` and ``.``."""
    return _NAME.fullmatch(name) is not None


class SecretSources:
    """The places where secrets are.

    Args:
        environ: The environment.
        folder: Folder with a file for each secret.
        store: The encrypted secrets.

    Attributes:
        store: As above.
    """

    def __init__(self, environ: Mapping[str, str], folder: Path, store: SecretStore) -> None:
        self._environ = environ
        self._folder = folder
        self.store = store

    def find(self, name: str) -> str | None:
        """Return a secret, or None if it is nowhere.

        Raises:
            Faults: A file is there and cannot be read.
        """
        return self.locate(name)[0]

    def locate(self, name: str) -> tuple[str | None, str]:
        """Return a secret and the place where it is; (None, "") if it is nowhere.

        Raises:
            Faults: A file is there and cannot be read.
        """
        found = self._environ.get(variable(name))
        if found is not None:
            return found, f"environment variable {variable(name)}"
        file = self._folder / name
        try:
            text = file.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            found = self.store.get(name)
            return found, "" if found is None else "mesh secrets"
        except (OSError, UnicodeDecodeError) as error:
            reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "it is not UTF-8"
            raise Faults([Fault(str(file), f"the secret cannot be read: {reason}")]) from None
        return text.removesuffix("\n").removesuffix("\r"), str(file)

    def missing(self, name: str) -> str:
        """Return the text of the fault for a secret that is nowhere."""
        return (
            f"the secret {name!r} is nowhere: expected the file {self._folder / name}, the variable {variable(name)}, "
            f"or `mesh secrets set {name}`"
        )


def variable(name: str) -> str:
    """Return the environment variable of a secret."""
    return VARIABLE_PREFIX + re.sub(r"[^A-Z0-9]", "_", name.upper())


def resolve(
    tables: dict[str, Any], sources: SecretSources, wanted: Callable[[str], bool]
) -> tuple[dict[str, frozenset[str]], list[tuple[str, str]]]:
    """Replace the secrets in the tables of mesh.toml.

    A secret in ``settings``, or a text with one inside, becomes a ``Secret``; elsewhere it is the text. Inside a text
    outside of ``settings`` it is percent-encoded, because such texts are URLs.

    Args:
        tables: The tables, which are changed.
        sources: Where secrets are.
        wanted: Whether to look up the secrets of an owner: the name of a service, ``edge``, or "" for the rest.

    Returns:
        Owner → names of its secrets; and the faults as pairs of dotted key and text.
    """
    names: dict[str, set[str]] = {}
    faults: list[tuple[str, str]] = []

    def find(path: tuple[str, ...], name: str, *, optional: bool) -> str | None:
        owner = _owner(path)
        names.setdefault(owner, set()).add(name)
        if not valid_name(name):
            faults.append((".".join(path), f"a secret's name is letters, digits, '_', '-' and '.', not {name[:40]!r}"))
            return None
        if not wanted(owner):
            return None
        try:
            found = sources.find(name)
        except Faults as unreadable:
            faults.extend((".".join(path), str(fault)) for fault in unreadable.faults)
            return None
        if found is None and not optional:
            faults.append((".".join(path), sources.missing(name)))
        return "" if found is None and optional else found

    for table, key, path in list(_texts(tables, ())):
        value = table[key]
        if isinstance(value, dict):
            found = find(path, value["secret"], optional=value.get("optional", False))
            if "settings" in path:
                table[key] = Secret("" if found is None else found)
            else:
                table[key] = _UNRESOLVED.get(path[-1], HIDDEN) if found is None else found
        else:
            own = "settings" in path

            def text(match: re.Match[str], path: tuple[str, ...] = path, *, encode: bool = not own) -> str:
                found = find(path, match[1], optional=False)
                return HIDDEN if found is None else quote(found, safe="") if encode else found

            whole = _INSIDE.sub(text, value)
            table[key] = Secret(whole) if own else whole
    return {owner: frozenset(found) for owner, found in names.items()}, faults


def _owner(path: tuple[str, ...]) -> str:
    if path[0] == "services":
        return path[1]
    return path[0] if path[0] == "edge" else ""


def _texts(node: Any, path: tuple[str, ...]) -> Iterator[tuple[Any, Any, tuple[str, ...]]]:
    """Yield container, key and path of every value that is a secret or a text with one inside."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        inner = (*path, key) if isinstance(key, str) else path
        if _is_secret(value) or (isinstance(value, str) and _INSIDE.search(value)):
            yield node, key, inner
        else:
            yield from _texts(value, inner)


def _is_secret(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("secret"), str)
        and value.keys() <= {"secret", "optional"}
        and isinstance(value.get("optional", False), bool)
    )

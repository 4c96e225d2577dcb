"""``mesh apikeys``: creates, lists and revokes the API keys of a mesh."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from mesh.auth.api_keys import ApiKeyFile
from mesh.config import manifest
from mesh.config.values import Duration, Rate
from mesh.contract.model import Contract
from mesh.control.text_table import table
from mesh.faults import Fault, Faults

__all__ = ["create", "revoke", "show"]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def create(file: Path, contract: Contract, name: str, scopes: Sequence[str], expires: str, rate: str) -> int:
    """Create a key and print it, the only time that it is shown.

    Args:
        file: Path of mesh.toml.
        contract: The contract, whose methods name the scopes.
        name: Name of the key.
        scopes: Its scopes.
        expires: Duration for which it is valid (``"90d"``), or ``"never"``.
        rate: Rate limit at the edge (``"10/s burst 50"``); empty: none of its own.

    Raises:
        Faults: A value is not valid, there is a key of this name, or the file cannot be written.
    """
    faults = list(_faults(contract, name, scopes, rate))
    seconds = None
    if expires != "never":
        try:
            seconds = float(Duration.parse(expires))
        except ValueError as error:
            faults.append(Fault("--expires", f"{error}, or never"))
    if faults:
        raise Faults(faults)
    keys = ApiKeyFile(manifest.load(file).state)
    now = time.time()
    try:
        end = None if seconds is None else now + seconds
        key = keys.create(name, tuple(sorted(set(scopes))), now=now, expires=end, rate=rate)
    except (OSError, ValueError) as error:
        raise _unusable(keys, error) from None
    if key is None:
        raise Faults([Fault(name, "there is a key of this name; choose another, or revoke it first")])
    print(key)
    return 0


def _faults(contract: Contract, name: str, scopes: Sequence[str], rate: str) -> Iterator[Fault]:
    if not _NAME.fullmatch(name):
        yield Fault("NAME", f"expected lower-case letters, digits, '-', '_' and '.', got {name[:64]!r}")
    known = {scope for method in contract.methods.values() for scope in method.scopes}
    for scope in scopes:
        if scope not in known:
            names = ", ".join(sorted(known)) or "none"
            yield Fault("--scope", f"no method of the contract has the scope {scope!r}; there are: {names}")
    if rate:
        try:
            Rate.parse(rate)
        except ValueError as error:
            yield Fault("--rate", str(error))


def revoke(file: Path, name: str) -> int:
    """Remove a key. Components refuse it within seconds.

    Raises:
        Faults: There is none of this name, or the file cannot be written.
    """
    keys = ApiKeyFile(manifest.load(file).state)
    try:
        found = keys.revoke(name)
    except (OSError, ValueError) as error:
        raise _unusable(keys, error) from None
    if not found:
        raise Faults([Fault(name, "there is no such key; `mesh apikeys list` shows them")])
    return 0


def show(file: Path) -> int:
    """Print the name, scopes and times of every key, never a key.

    Raises:
        Faults: The file cannot be read.
    """
    keys = ApiKeyFile(manifest.load(file).state)
    try:
        found = keys.read()
    except (OSError, ValueError) as error:
        raise _unusable(keys, error) from None
    rows = [
        (key.name, " ".join(key.scopes) or "none", key.rate or "none", _day(key.created), _end(key.expires))
        for key in found
    ]
    print(table(("name", "scopes", "rate", "created", "expires"), rows) if rows else "there are no API keys")
    return 0


def _end(expires: float | None) -> str:
    if expires is None:
        return "never"
    return _day(expires) if expires > time.time() else f"{_day(expires)} (expired)"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _unusable(keys: ApiKeyFile, error: OSError | ValueError) -> Faults:
    text = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
    return Faults([Fault(str(keys.path), text)])

"""``mesh export``: contract and deployment in the forms that other tools read."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mesh.config import json_schema
from mesh.config.manifest import Manifest
from mesh.contract import protoc
from mesh.contract.imports import builtin_imports
from mesh.contract.model import Contract
from mesh.control import identity_keys
from mesh.control.commands import asyncapi as asyncapi_document
from mesh.control.component import broker_users
from mesh.edge.clients import python as python_client
from mesh.edge.clients import typescript as typescript_client
from mesh.edge.openapi import document as openapi_document
from mesh.events.broker import authorization
from mesh.faults import Fault, Faults
from mesh.text import json_for

__all__ = ["asyncapi", "contract", "nats", "openapi", "protos", "python", "schema", "typescript"]


def openapi(contract: Contract, out: Path | None, *, title: str, version: str, servers: Sequence[str]) -> int:
    """Write the OpenAPI document of the contract; returns the exit code.

    Args:
        contract: The contract.
        out: The file; None: standard output.
        title: What the API is called.
        version: Its version; ``""``: a digest of the contract.
        servers: URLs of the API.

    Raises:
        Faults: The file cannot be written.
    """
    document = openapi_document.document(contract, title=title, version=version, servers=servers)
    return _write(document, out, f"{sum(len(item) for item in document['paths'].values())} operations")


def asyncapi(contract: Contract, out: Path | None, *, title: str, version: str) -> int:
    """Write the AsyncAPI document of the contract's events; returns the exit code.

    Args:
        contract: The contract.
        out: The file; None: standard output.
        title: What the API is called.
        version: Its version; ``""``: a digest of the contract.

    Raises:
        Faults: The file cannot be written.
    """
    document = asyncapi_document.document(contract, title=title, version=version)
    return _write(document, out, f"{len(document['channels'])} channels")


def contract(compiled: Contract, out: Path) -> int:
    """Write the compiled contract, a ``FileDescriptorSet`` with all imports; returns the exit code.

    Raises:
        Faults: The file cannot be written.
    """
    try:
        out.write_bytes(compiled.files.SerializeToString(deterministic=True))
    except OSError as error:
        raise Faults([Fault(str(out), f"cannot be written: {error.strerror}")]) from None
    print(f"{out}: {len(compiled.files.file)} files")
    return 0


def nats(manifest: Manifest, contract: Contract, out: Path | None, keys: Path | None) -> int:
    """Write the users and rights of this mesh for a nats-server's configuration; returns the exit code.

    Args:
        manifest: The manifest.
        contract: The contract.
        out: The file; None: standard output.
        keys: A folder with one folder of keys for each component; None: the keys of this machine, which are made.

    Raises:
        Faults: A key is missing or cannot be made, or the file cannot be written.
    """
    folders = None if keys is None else {name: keys / name for name in (*manifest.services, identity_keys.OPERATOR)}
    users = broker_users.users(manifest, contract, identity_keys.ensure(manifest) if folders is None else folders)
    return _print(authorization.block(users), out, f"{len(users)} users")


def protos(manifest: Manifest, contract: Contract, folder: Path) -> int:
    """Write the .proto files that the contract imports and that are in no import root; returns the exit code.

    Args:
        manifest: The manifest.
        contract: The contract.
        folder: The folder. Files in it that are not imported stay.

    Raises:
        Faults: The folder lies in an import root, or cannot be written.
    """
    for root in manifest.protos:
        if folder.resolve().is_relative_to(root):
            text = f"lies in the import root {root}, so the files would be compiled; name a folder beside it"
            raise Faults([Fault(str(folder), text)])
    own = {name for _, name in protoc.sources(manifest.protos)}
    files = builtin_imports((name for file in contract.files.file if file.name in own for name in file.dependency), own)
    for name, path in files.items():
        target = folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        except OSError as error:
            raise Faults([Fault(str(target), f"cannot be written: {error.strerror}")]) from None
    print(f"{folder}: {len(files)} files")
    return 0


def schema(out: Path | None) -> int:
    """Write the JSON Schema of mesh.toml; returns the exit code.

    Args:
        out: The file; None: standard output.

    Raises:
        Faults: The file cannot be written.
    """
    document = json_schema.document()
    return _write(document, out, "the schema of mesh.toml")


def typescript(contract: Contract, out: Path | None) -> int:
    """Write the TypeScript client of the HTTP routes; returns the exit code.

    Args:
        contract: The contract.
        out: The file; None: standard output.

    Raises:
        Faults: The file cannot be written.
    """
    return _print(typescript_client.client(contract), out, "the TypeScript client")


def python(contract: Contract, out: Path | None) -> int:
    """Write the Python client of the HTTP routes; returns the exit code.

    Args:
        contract: The contract.
        out: The file; None: standard output.

    Raises:
        Faults: The file cannot be written.
    """
    return _print(python_client.client(contract), out, "the Python client")


def _print(text: str, out: Path | None, summary: str) -> int:
    if out is None:
        print(text, end="")
    else:
        _write_text(text, out, summary)
    return 0


def _write(document: Mapping[str, Any], out: Path | None, summary: str) -> int:
    if out is None:
        print(json_for(sys.stdout, document, indent=2))
        return 0
    _write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", out, summary)
    return 0


def _write_text(text: str, out: Path, summary: str) -> None:
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Faults([Fault(str(out), f"cannot be written: {error.strerror}")]) from None
    print(f"{out}: {summary}")

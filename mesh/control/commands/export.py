"""``mesh export``: the contract as an OpenAPI or AsyncAPI document."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mesh.contract.model import Contract
from mesh.control.commands import asyncapi as asyncapi_document
from mesh.edge.openapi import document as openapi_document
from mesh.faults import Fault, Faults
from mesh.text import json_for

__all__ = ["asyncapi", "openapi"]


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


def _write(document: Mapping[str, Any], out: Path | None, summary: str) -> int:
    if out is None:
        print(json_for(sys.stdout, document, indent=2))
        return 0
    try:
        out.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise Faults([Fault(str(out), f"cannot be written: {error.strerror}")]) from None
    print(f"{out}: {summary}")
    return 0

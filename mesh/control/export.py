"""``mesh export openapi``: what the contract says, in a form that other tools read."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mesh.contract import Contract
from mesh.edge import openapi as description
from mesh.faults import Fault, Faults

__all__ = ["openapi"]


def openapi(contract: Contract, out: Path | None, *, title: str, version: str, servers: Sequence[str]) -> int:
    """Write the OpenAPI document of the contract; returns the exit code.

    Args:
        contract: The contract.
        out: The file; None: standard output.
        title: What the API is called.
        version: Its version; ``""``: a digest of the contract.
        servers: URLs where it is offered.

    Raises:
        Faults: The file cannot be written.
    """
    made = description.document(contract, title=title, version=version, servers=servers)
    text = json.dumps(made, indent=2, ensure_ascii=False) + "\n"
    if out is None:
        sys.stdout.write(text)
        return 0
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Faults([Fault(str(out), f"cannot be written: {error.strerror}")]) from None
    print(f"{out}: {sum(len(item) for item in made['paths'].values())} operations")
    return 0

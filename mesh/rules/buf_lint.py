"""buf's lint category PROTOVALIDATE: mistakes in rules that protovalidate finds only with certain messages.

buf compiles CEL expressions against the types of their fields, also of fields that are not set, and compares bounds. It
is used where the package ``buf-bin`` is installed (``pip install function-mesh[check]``) or ``buf`` is on the path.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from mesh.contract import protoc
from mesh.faults import Fault

__all__ = ["lint_faults"]

RULES_FILE = "buf/validate/validate.proto"
LINT_TIMEOUT = 60.0
"""Seconds that buf may take."""
_CONFIG = '{"version": "v2", "lint": {"use": ["PROTOVALIDATE"]}}'
_REDUNDANT = "removed"
"""Word in the texts about rules that have no effect and do no harm."""


def lint_faults(files: FileDescriptorSet, known: Collection[str] = ()) -> list[Fault]:
    """Return the faults that buf finds in the rules of a contract; none where buf is not installed.

    Args:
        files: The compiled files, with source info.
        known: Places (``a.proto:12``) of faults that are known already.
    """
    buf = _buf()
    if buf is None or not any(RULES_FILE in file.dependency for file in files.file):
        return []
    done = subprocess.run(  # noqa: S603 - an installed program, a list of arguments
        [buf, "lint", "-#format=binpb", "--error-format=json", f"--config={_CONFIG}"],
        input=files.SerializeToString(), capture_output=True, check=False, timeout=LINT_TIMEOUT,
    )  # fmt: skip
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        said = json.loads(line)
        place = f"{said['path']}:{said['start_line']}"
        if _REDUNDANT not in said["message"] and protoc.builtin_file(said["path"]) is None and place not in known:
            found.setdefault(place, said["message"])
    return [Fault(place, f"buf lint: {text}") for place, text in found.items()]


def _buf() -> str | None:
    """Return the path of buf: that of this environment, or one on the path."""
    own = Path(sys.executable).with_name("buf")
    return str(own) if own.is_file() else shutil.which("buf")

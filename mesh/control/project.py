"""Project loader: manifest and contract, compiled and checked, with current stubs that can be imported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    from mesh.config.manifest import Manifest
    from mesh.contract.model import Contract

__all__ = ["compile_contract", "load"]


def load(file: Path, secrets_of: Callable[[str], bool] | None = None) -> tuple[Manifest, Contract]:
    """Return manifest and contract. Stubs that are not current are generated, and become importable.

    Args:
        file: mesh.toml.
        secrets_of: Whether to look up the secrets of an owner (``mesh.config.manifest.load``); None: of nobody.

    Raises:
        Faults: The manifest or the contract has faults.
    """
    from mesh.config import manifest  # noqa: PLC0415 - protobuf is heavy, and --help needs none of it
    from mesh.contract import loader  # noqa: PLC0415 - protobuf is heavy, and --help needs none of it

    found = manifest.load(file, secrets_of=secrets_of or manifest.no_secrets)
    serves = {name for service in found.services.values() for name in service.serves}
    contract = loader.read(compile_contract(found), serves)
    for path in (str(found.root), str(found.stubs)):
        if path not in sys.path:
            sys.path.insert(0, path)
    return found, contract


def compile_contract(found: Manifest) -> FileDescriptorSet:
    """Return the compiled contract of the .proto files and of the Lambda functions; make the stubs of both current.

    Raises:
        Faults: protoc refused a file; a function cannot be part of the contract.
    """
    from mesh.contract import protoc  # noqa: PLC0415 - as above
    from mesh.lambdas.service_descriptor import extend  # noqa: PLC0415 - as above

    files = extend(protoc.load(found.protos, found.stubs), found.lambdas.values())
    protoc.add(files, [function.proto for function in found.lambdas.values()], found.stubs)
    return files

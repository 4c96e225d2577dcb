"""``mesh check``: all faults of mesh.toml, contract and functions in one run.

A fault does not hide others. What is wrong in mesh.toml has its default for the checks that follow. Files of the
contract that are refused are left out, with those that import them, and the stubs of the others are made in a temporary
folder.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from mesh.config import manifest as manifests
from mesh.config.manifest import Manifest
from mesh.contract import loader, protoc
from mesh.contract.model import Contract
from mesh.contract.stub_module import module_name
from mesh.control import deployment, project
from mesh.faults import Fault, Faults
from mesh.lambdas.service_descriptor import extend

__all__ = ["checked"]


def checked(file: Path) -> tuple[Manifest, Contract, list[Fault]]:
    """Return manifest, contract and warnings of a project without faults.

    Args:
        file: mesh.toml.

    Raises:
        Faults: All faults.
    """
    manifest, faults = manifests.read(file)
    if manifest is None:
        raise Faults(faults)
    with tempfile.TemporaryDirectory(prefix="mesh-check-") as folder:
        files, refused, compiler_faults = _compile(manifest, Path(folder))
        roots = {str(root): f"{manifest.file.name} protos" for root in manifest.protos}
        for fault in compiler_faults:  # the compiler does not know which key names an import root
            key = roots.get(fault.place)
            faults.append(Fault(key, f"{fault.place}: {fault.text}") if key else fault)
        contract: Contract | None = None
        if files is not None:
            served = {name for service in manifest.services.values() for name in service.serves}
            contract, contract_faults = loader.read_valid(files, served, partial=bool(refused))
            faults += contract_faults
        if contract is None:
            raise Faults(faults)
        for path in (str(manifest.root), str(manifest.stubs), folder):
            if path not in sys.path:
                sys.path.insert(0, path)
        found = deployment.all_faults(manifest, contract, partial=bool(refused))
        sys.path.remove(folder)
        faults += [fault for fault in found if not _lacks_stubs(fault, refused)]
    if faults:
        raise Faults(faults)
    return manifest, contract, deployment.warnings(manifest, contract)


def _compile(manifest: Manifest, folder: Path) -> tuple[FileDescriptorSet | None, frozenset[str], list[Fault]]:
    """Return the compiled contract, the names of refused files, and the compiler's faults.

    The stubs become current, or, if files were refused, those of the other files are made in ``folder``.
    """
    try:
        return project.compile_contract(manifest), frozenset(), []
    except Faults as found:
        faults = list(found.faults)
    try:
        files, refused, compiler_faults = protoc.load_valid(manifest.protos, folder)
        if files is not None:
            files = extend(files, manifest.lambdas.values())
            protoc.add(files, [function.proto for function in manifest.lambdas.values()], folder)
    except Faults as found:
        return None, frozenset(), [*faults, *found.faults]
    return files, refused, [*faults, *compiler_faults]


def _lacks_stubs(fault: Fault, refused: frozenset[str]) -> bool:
    """Return whether a module cannot be imported because a file of the contract was refused, which is reported."""
    if "cannot be imported" not in fault.text:
        return False
    names: set[str] = set()
    for name in refused:
        parts = module_name(name).split(".")
        names |= {parts[-1], *(".".join(parts[:count]) for count in range(1, len(parts) + 1))}
    return any(f"'{name}'" in fault.text for name in names)

"""Contract of the running mesh, by reflection of its services."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from mesh.address import reachable
from mesh.config.manifest import Manifest
from mesh.contract import loader
from mesh.contract.descriptor_pool import build_pool
from mesh.contract.model import Contract
from mesh.control import run_state
from mesh.control.operator_tls import operator_tls
from mesh.faults import Fault, Faults
from mesh.message_methods import serialize
from mesh.rpc.client.reflection_client import NoSuchMethod, ReflectionCallError, ReflectionClient

__all__ = ["running_contract"]

REFLECTION_TIMEOUT = 5.0
"""Seconds for each request of reflection."""


def running_contract(manifest: Manifest, names: Iterable[str] = ()) -> Contract:
    """Return the contract that the services of mesh.toml have at present.

    Each service tells its own part, because they may run different versions. Of ``mesh up``, the services that run are
    read; one that mesh.toml has since then is new. Elsewhere each service of mesh.toml has to respond.

    Args:
        manifest: The manifest.
        names: Names of files that are read too, if a service has them. Reflection lists no files, and one that no
            service imports may accept breaks.

    Raises:
        Faults: The mesh does not run, or a service does not respond.
    """
    files: dict[str, FileDescriptorProto] = {}
    for name, address in _addresses(manifest).items():
        try:
            with ReflectionClient(address, REFLECTION_TIMEOUT, operator_tls(manifest, name)) as client:
                for service in client.services():
                    _merge(files, client.files_of(symbol=service))
                for event in sorted(_published(FileDescriptorSet(file=_ordered(files)))):
                    _merge(files, client.files_of(symbol=event))
                for file in names:
                    with suppress(NoSuchMethod):  # it is new
                        _merge(files, {} if file in files else client.files_of(file=file))
        except (NoSuchMethod, ReflectionCallError) as error:
            raise Faults([Fault(f"{name} at {address}", f"it does not tell its contract: {error}")]) from None
    return loader.read(FileDescriptorSet(file=_ordered(files)), checked=False)


def _merge(files: dict[str, FileDescriptorProto], more: Mapping[str, FileDescriptorProto]) -> None:
    for name, file in more.items():
        files.setdefault(name, file)


def _addresses(manifest: Manifest) -> Mapping[str, str]:
    """Return the addresses of the services that run.

    Raises:
        Faults: None is known.
    """
    mesh = run_state.running(manifest.state)
    if mesh is not None and mesh.addresses:
        return {name: reachable(mesh.addresses[name]) for name in manifest.services if name in mesh.addresses}
    found = {name: config.addresses[0] for name, config in manifest.services.items()}
    if any(address.endswith(":0") for address in found.values()):
        raise Faults([Fault(str(manifest.file), "the mesh does not run here; start it: mesh up")])
    return found


def _published(files: FileDescriptorSet) -> Iterator[str]:
    """Yield the events that services publish. Options name them, so no file has to import theirs."""
    try:
        extension: Any = build_pool(files).FindExtensionByName("meshapi.v1.service")
    except KeyError:
        return
    kind: Any = message_factory.GetMessageClass(extension.containing_type)
    for file in files.file:
        for service in file.service:
            yield from kind.FromString(serialize(service.options)).Extensions[extension].publishes


def _ordered(files: Mapping[str, FileDescriptorProto]) -> list[FileDescriptorProto]:
    """Return files in the order of their imports."""
    ordered: dict[str, FileDescriptorProto] = {}

    def add(name: str) -> None:
        if name in files and name not in ordered:
            for needed in files[name].dependency:
                add(needed)
            ordered[name] = files[name]

    for name in files:
        add(name)
    return list(ordered.values())

"""The part of the contract that the edge exposes through reflection: everything but INTERNAL methods. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from mesh.contract.model import Access, Contract

__all__ = ["files", "services"]

_SERVICE = FileDescriptorProto.SERVICE_FIELD_NUMBER
_METHOD = 2
"""Field number of ``ServiceDescriptorProto.method``, as it stands in source-info paths."""


def services(contract: Contract) -> list[str]:
    """Return the full names of the services with a method that is not INTERNAL."""
    return [
        name
        for name, service in contract.services.items()
        if any(method.access is not Access.INTERNAL for method in service.methods.values())
    ]


def files(contract: Contract) -> FileDescriptorSet:
    """Return the contract's files without INTERNAL methods, and without services that have only such methods."""
    hidden = {path.lstrip("/") for path, method in contract.methods.items() if method.access is Access.INTERNAL}
    return FileDescriptorSet(file=[_exposed_file(file, hidden) for file in contract.files.file])


def _exposed_file(file: FileDescriptorProto, hidden: set[str]) -> FileDescriptorProto:
    """Return a file without the hidden methods, which are named ``package.Service/Method``."""
    prefix = f"{file.package}." if file.package else ""
    new_indexes: dict[tuple[int, ...], tuple[int, ...]] = {}
    exposed = FileDescriptorProto()
    exposed.CopyFrom(file)
    del exposed.service[:]
    for service_index, service in enumerate(file.service):
        methods = [
            (method_index, method)
            for method_index, method in enumerate(service.method)
            if f"{prefix}{service.name}/{method.name}" not in hidden
        ]
        if service.method and not methods:
            continue
        new_indexes[service_index,] = (len(exposed.service),)
        copy = exposed.service.add()
        copy.CopyFrom(service)
        del copy.method[:]
        for method_index, method in methods:
            new_indexes[service_index, method_index] = (len(exposed.service) - 1, len(copy.method))
            copy.method.add().CopyFrom(method)
    if len(new_indexes) < len(file.service) + sum(len(service.method) for service in file.service):
        _move_comments(exposed, new_indexes)
    return exposed


def _move_comments(file: FileDescriptorProto, new_indexes: Mapping[tuple[int, ...], tuple[int, ...]]) -> None:
    """Move each comment of a service or method to its new index; remove the comments of those that are hidden.

    Args:
        file: The file without the hidden methods.
        new_indexes: Index of the service, or of service and method, before → after.
    """
    locations = list(file.source_code_info.location)
    del file.source_code_info.location[:]
    for location in locations:
        path = list(location.path)
        if path[:1] == [_SERVICE] and len(path) > 1:
            of_method = path[2:3] == [_METHOD] and len(path) > 3  # noqa: PLR2004 - service, index, method, index
            indexes = new_indexes.get((path[1], path[3]) if of_method else (path[1],))
            if indexes is None:
                continue
            path[1] = indexes[0]
            if of_method:
                path[3] = indexes[1]
        kept = file.source_code_info.location.add()
        kept.CopyFrom(location)
        del kept.path[:]
        kept.path.extend(path)

"""What the edge shows of the contract: services and methods that are not only for the mesh's own services. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from mesh.contract.model import Access, Contract

__all__ = ["files", "services"]

_SERVICE = FileDescriptorProto.SERVICE_FIELD_NUMBER
_METHOD = 2
"""``ServiceDescriptorProto.method``: in the path of a comment."""


def services(contract: Contract) -> list[str]:
    """Return the full names of the services that have a method which is not INTERNAL."""
    return [
        name
        for name, service in contract.services.items()
        if any(method.access is not Access.INTERNAL for method in service.methods.values())
    ]


def files(contract: Contract) -> FileDescriptorSet:
    """Return the contract's files without INTERNAL methods and without services that have no others."""
    hidden = {path.lstrip("/") for path, method in contract.methods.items() if method.access is Access.INTERNAL}
    return FileDescriptorSet(file=[_open(file, hidden) for file in contract.files.file])


def _open(file: FileDescriptorProto, hidden: set[str]) -> FileDescriptorProto:
    prefix = f"{file.package}." if file.package else ""
    places: dict[tuple[int, ...], tuple[int, ...]] = {}
    shown = FileDescriptorProto()
    shown.CopyFrom(file)
    del shown.service[:]
    for at, service in enumerate(file.service):
        methods = [
            (index, method)
            for index, method in enumerate(service.method)
            if f"{prefix}{service.name}/{method.name}" not in hidden
        ]
        if service.method and not methods:
            continue
        places[at,] = (len(shown.service),)
        copy = shown.service.add()
        copy.CopyFrom(service)
        del copy.method[:]
        for index, method in methods:
            places[at, index] = (len(shown.service) - 1, len(copy.method))
            copy.method.add().CopyFrom(method)
    if len(places) < len(file.service) + sum(len(service.method) for service in file.service):
        _move_comments(shown, places)
    return shown


def _move_comments(file: FileDescriptorProto, places: Mapping[tuple[int, ...], tuple[int, ...]]) -> None:
    """Give each comment of a service or method its new place; those of what was taken out go."""
    locations = list(file.source_code_info.location)
    del file.source_code_info.location[:]
    for location in locations:
        path = list(location.path)
        if path[:1] == [_SERVICE] and len(path) > 1:
            of_method = path[2:3] == [_METHOD] and len(path) > 3  # noqa: PLR2004 - service, index, method, index
            place = places.get((path[1], path[3]) if of_method else (path[1],))
            if place is None:
                continue
            path[1] = place[0]
            if of_method:
                path[3] = place[1]
        kept = file.source_code_info.location.add()
        kept.CopyFrom(location)
        del kept.path[:]
        kept.path.extend(path)

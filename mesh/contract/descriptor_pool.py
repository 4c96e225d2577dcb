"""Descriptor pool of the contract's files, with a fault for each file that protobuf's runtime refuses.

protoc compiles some files that the runtime refuses: those with two fields of one message that have the same JSON name
(in proto2 protoc does not even warn, https://protobuf.dev/programming-guides/json/). The generated Python code of such
a file cannot be imported either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

from mesh.contract.source_locations import SourceLocations
from mesh.faults import Fault, Faults

__all__ = ["build_pool"]

_MESSAGE = FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER
_NESTED, _FIELD = DescriptorProto.NESTED_TYPE_FIELD_NUMBER, DescriptorProto.FIELD_FIELD_NUMBER


def build_pool(files: FileDescriptorSet) -> DescriptorPool:
    """Return a new descriptor pool with the files.

    Args:
        files: All files with their imports, in dependency order.

    Raises:
        Faults: The runtime refuses a file.
    """
    pool = DescriptorPool()
    faults: list[Fault] = []
    refused: set[str] = set()
    for file in files.file:
        if refused.intersection(file.dependency):
            refused.add(file.name)
            continue
        try:
            pool.Add(file)
        except TypeError as error:
            refused.add(file.name)
            faults += list(_conflicts(file)) or [Fault(file.name, f"protobuf's runtime refuses the file: {error}")]
    if faults:
        raise Faults(faults)
    return pool


def _conflicts(file: FileDescriptorProto) -> Iterator[Fault]:
    locations = SourceLocations(file)
    for index, message in enumerate(file.message_type):
        yield from _conflicts_of(message, f"{file.package}.{message.name}".lstrip("."), locations, (_MESSAGE, index))


def _conflicts_of(
    message: DescriptorProto, name: str, locations: SourceLocations, path: Sequence[int]
) -> Iterator[Fault]:
    for index, nested in enumerate(message.nested_type):
        yield from _conflicts_of(nested, f"{name}.{nested.name}", locations, (*path, _NESTED, index))
    if message.options.deprecated_legacy_json_field_conflicts:
        return
    taken: dict[str, FieldDescriptorProto] = {}
    for index, field in enumerate(message.field):
        others = {key: other for key, other in taken.items() if key in (field.name, field.json_name)}
        for key, other in others.items():
            what = (
                "have the same JSON name" if other.json_name == field.json_name else "have each other's names in JSON"
            )
            yield Fault(
                locations.at(*path, _FIELD, index),
                f"{name}: the fields {other.name!r} and {field.name!r} {what} ({key!r}), which protobuf's Python "
                "runtime refuses; give one of them another json_name, or set option "
                "deprecated_legacy_json_field_conflicts = true in the message",
            )
            break
        taken.setdefault(field.name, field)
        taken.setdefault(field.json_name, field)

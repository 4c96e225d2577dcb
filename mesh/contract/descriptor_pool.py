"""Compiled files → a descriptor pool, where protobuf's runtime takes them.

The runtime refuses files that protoc compiles with a warning or without: two fields of one message that have one JSON
name (always so in proto2, https://protobuf.dev/programming-guides/json/). The generated Python code of such a file
cannot be imported either, so the contract has a fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

from mesh.contract.source_locations import Places
from mesh.faults import Fault, Faults

__all__ = ["pool_of"]

_MESSAGE = FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER
_NESTED, _FIELD = DescriptorProto.NESTED_TYPE_FIELD_NUMBER, DescriptorProto.FIELD_FIELD_NUMBER


def pool_of(files: FileDescriptorSet) -> DescriptorPool:
    """Return a pool of its own with the files.

    Args:
        files: All files with their imports, in dependency order.

    Raises:
        Faults: The runtime does not take a file.
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
            faults += list(_conflicts(file)) or [Fault(file.name, f"protobuf's runtime does not take it: {error}")]
    if faults:
        raise Faults(faults)
    return pool


def _conflicts(file: FileDescriptorProto) -> Iterator[Fault]:
    places = Places(file)
    for index, message in enumerate(file.message_type):
        yield from _conflicts_of(message, f"{file.package}.{message.name}".lstrip("."), places, (_MESSAGE, index))


def _conflicts_of(message: DescriptorProto, name: str, places: Places, path: Sequence[int]) -> Iterator[Fault]:
    for index, nested in enumerate(message.nested_type):
        yield from _conflicts_of(nested, f"{name}.{nested.name}", places, (*path, _NESTED, index))
    if message.options.deprecated_legacy_json_field_conflicts:
        return
    taken: dict[str, FieldDescriptorProto] = {}
    for index, field in enumerate(message.field):
        others = {key: other for key, other in taken.items() if key in (field.name, field.json_name)}
        for key, other in others.items():
            what = "are one JSON name" if other.json_name == field.json_name else "stand for each other in JSON"
            yield Fault(
                places.at(*path, _FIELD, index),
                f"{name}: the fields {other.name!r} and {field.name!r} {what} ({key!r}), which protobuf's Python "
                "runtime refuses; give one of them another json_name, or set option "
                "deprecated_legacy_json_field_conflicts = true in the message",
            )
            break
        taken.setdefault(field.name, field)
        taken.setdefault(field.json_name, field)

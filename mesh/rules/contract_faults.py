"""Faults of the rules of a contract, with file and line: rules that cannot be compiled, and rules that nothing passes.

protovalidate compiles a type's rules with the first message of the type and names only the first error. So an empty
message of each type with rules is evaluated here. Where that fails, each field is evaluated again without the rules of
the others, which finds every field whose rules are wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

from mesh.contract import protoc
from mesh.contract.model import Contract, EventTrigger, Method
from mesh.contract.source_locations import SourceLocations
from mesh.faults import Fault
from mesh.message_methods import class_descriptor
from mesh.rules.evaluation import broken_rule, has_rules, violations_of
from mesh.rules.field_behavior import OUTPUT_ONLY, Behaviors
from mesh.rules.message_types import reachable

__all__ = ["rule_faults"]

_MESSAGE = FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER
_NESTED, _FIELD = DescriptorProto.NESTED_TYPE_FIELD_NUMBER, DescriptorProto.FIELD_FIELD_NUMBER


def rule_faults(contract: Contract) -> list[Fault]:
    """Return the faults of all rules of a contract. Without rules it costs a walk over the descriptors."""
    cleared = _cleared_fields(contract)
    return [
        fault
        for file in contract.files.file
        if protoc.builtin_file(file.name) is None
        for path, message in _messages(contract.pool, file)
        if has_rules(message)
        for fault in _faults_of(contract.files, file, path, message, cleared)
    ]


def _messages(pool: DescriptorPool, file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], Descriptor]]:
    """Yield each message type of a file, with its path in the file."""
    waiting: list[tuple[tuple[int, ...], DescriptorProto, str]] = [
        ((_MESSAGE, index), message, f"{file.package}.{message.name}".lstrip("."))
        for index, message in enumerate(file.message_type)
    ]
    while waiting:
        path, message, name = waiting.pop()
        if not message.options.map_entry:
            yield path, pool.FindMessageTypeByName(name)
        waiting += [
            ((*path, _NESTED, index), nested, f"{name}.{nested.name}")
            for index, nested in enumerate(message.nested_type)
        ]


def _faults_of(
    files: FileDescriptorSet,
    file: FileDescriptorProto,
    path: tuple[int, ...],
    message: Descriptor,
    cleared: dict[str, str],
) -> Iterator[Fault]:
    locations = SourceLocations(file)
    cls = message_factory.GetMessageClass(message)
    text = broken_rule(cls)
    if text is None:
        for violation in violations_of(cls):
            method = cleared.get(f"{message.full_name}.{violation.path}")
            if method is not None:
                index = message.fields_by_name[violation.path].index
                yield Fault(
                    locations.at(*path, _FIELD, index),
                    f"{message.full_name}.{violation.path} is OUTPUT_ONLY, so requests of {method} do not have it, but "
                    f"its rule {violation.rule} refuses the empty value; add ignore: IGNORE_IF_ZERO_VALUE",
                )
        return
    found = False
    for field in message.fields:
        text_of_field = broken_rule(_with_rules_of(files, file, path, message.full_name, field.index))
        if text_of_field is not None:
            found = True
            yield Fault(
                locations.at(*path, _FIELD, field.index), f"a rule of {field.full_name} is wrong: {text_of_field}"
            )
    text = broken_rule(_with_rules_of(files, file, path, message.full_name, None)) if found else text
    if text is not None:
        yield Fault(locations.at(*path), f"a rule of {message.full_name} is wrong: {text}")


def _with_rules_of(
    files: FileDescriptorSet, file: FileDescriptorProto, path: Sequence[int], name: str, field: int | None
) -> Any:
    """Return the class of a message type with the rules of one field only; None: without the rules of all fields."""
    changed = FileDescriptorProto.FromString(file.SerializeToString())
    message: Any = changed
    for number, index in zip(path[::2], path[1::2], strict=True):
        message = (message.message_type if message is changed else message.nested_type)[index]
        assert number in (_MESSAGE, _NESTED)  # noqa: S101 - a path of message types
    for index, other in enumerate(message.field):
        if index != field:
            other.ClearField("options")
    if field is not None:
        message.ClearField("options")
    pool = DescriptorPool()
    for one in files.file:
        pool.Add(changed if one.name == file.name else one)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def _cleared_fields(contract: Contract) -> dict[str, str]:
    """Return OUTPUT_ONLY fields that no request has: full name → a method whose requests contain the message."""
    found: dict[str, str] = {}
    exempt: set[str] = set()
    behaviors = Behaviors(contract.pool)
    for method in contract.methods.values():
        if any(isinstance(trigger, EventTrigger) for trigger in method.triggers):
            continue
        exempt.update(_in_paths(method))
        for message in reachable(class_descriptor(method.input)):
            for field in message.fields:
                if OUTPUT_ONLY in behaviors.of(field):
                    found.setdefault(field.full_name, f"{method.service}.{method.name}")
    return {name: method for name, method in found.items() if name not in exempt}


def _in_paths(method: Method) -> Iterator[str]:
    """Yield the full names of fields that the routes of a method take from their paths."""
    for route in method.routes:
        for variable in route.template.variables:
            message: Any = method.input.DESCRIPTOR
            for part in variable.field:
                field = message.fields_by_name.get(part) if message is not None else None
                if field is None:
                    break
                yield field.full_name
                message = field.message_type

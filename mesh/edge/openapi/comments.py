"""Comments of the .proto files by the full name of the declaration that they belong to. Pure.

Source: google/protobuf/descriptor.proto, ``SourceCodeInfo.Location``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet

__all__ = ["headline", "read"]

_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE = 4, 5, 6
_MESSAGE_FIELD, _MESSAGE_NESTED, _MESSAGE_ENUM, _MESSAGE_ONEOF = 2, 3, 4, 8
_ENUM_VALUE, _SERVICE_METHOD = 2, 2
"""Field numbers in descriptor.proto, as they stand in source-info paths."""

_SENTENCE = re.compile(r"(.+?[.!?])(?:\s|$)", re.DOTALL)
_MAX_HEADLINE = 120
"""Characters of the longest headline."""

SourcePath = tuple[int, ...]
"""Path of a declaration in its file, as in ``SourceCodeInfo.Location.path``."""


def read(files: FileDescriptorSet) -> Mapping[str, str]:
    """Return the comment of every declaration that has one: full name → text.

    The value ``RED`` of an enum ``shop.v1.Colour`` has the name ``shop.v1.Colour.RED``.
    """
    found: dict[str, str] = {}
    for file in files.file:
        locations = {tuple(location.path): location for location in file.source_code_info.location}
        for name, path in _declarations(file):
            location = locations.get(path)
            if location is not None and (text := _text(location.leading_comments or location.trailing_comments)):
                found[name] = text
    return found


def headline(comment: str) -> tuple[str, str]:
    """Split a comment into its first sentence, without the full stop, and the rest.

    The headline is ``""`` if the first sentence is too long for one; the rest is then the whole comment.
    """
    paragraph, _, rest = comment.partition("\n\n")
    match = _SENTENCE.match(paragraph)
    sentence = match[1] if match else paragraph
    line = " ".join(sentence.split()).removesuffix(".")
    if len(line) > _MAX_HEADLINE:
        return "", comment
    return line, f"{paragraph[len(sentence) :].strip()}\n\n{rest}".strip()


def _text(comment: str) -> str:
    return "\n".join(line.removeprefix(" ").rstrip() for line in comment.strip("\n").splitlines()).strip()


def _declarations(file: FileDescriptorProto) -> Iterator[tuple[str, SourcePath]]:
    for index, message in enumerate(file.message_type):
        yield from _message(message, file.package, (_FILE_MESSAGE, index))
    yield from _enums(file.enum_type, file.package, (_FILE_ENUM,))
    for index, service in enumerate(file.service):
        name = _join(file.package, service.name)
        yield name, (_FILE_SERVICE, index)
        for method_index, method in enumerate(service.method):
            yield f"{name}.{method.name}", (_FILE_SERVICE, index, _SERVICE_METHOD, method_index)


def _message(message: DescriptorProto, scope: str, path: SourcePath) -> Iterator[tuple[str, SourcePath]]:
    name = _join(scope, message.name)
    yield name, path
    for index, field in enumerate(message.field):
        yield f"{name}.{field.name}", (*path, _MESSAGE_FIELD, index)
    for index, oneof in enumerate(message.oneof_decl):
        yield f"{name}.{oneof.name}", (*path, _MESSAGE_ONEOF, index)
    for index, nested in enumerate(message.nested_type):
        yield from _message(nested, name, (*path, _MESSAGE_NESTED, index))
    yield from _enums(message.enum_type, name, (*path, _MESSAGE_ENUM))


def _enums(enums: Iterable[EnumDescriptorProto], scope: str, path: SourcePath) -> Iterator[tuple[str, SourcePath]]:
    for index, enum in enumerate(enums):
        name = _join(scope, enum.name)
        yield name, (*path, index)
        for value_index, value in enumerate(enum.value):
            yield f"{name}.{value.name}", (*path, index, _ENUM_VALUE, value_index)


def _join(scope: str, name: str) -> str:
    return f"{scope}.{name}" if scope else name

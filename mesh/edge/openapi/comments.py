"""What the .proto files say in comments, by the full name of what they stand at. Pure.

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
_LONGEST = 120

Path = tuple[int, ...]


def read(files: FileDescriptorSet) -> Mapping[str, str]:
    """Return the comments of every declaration that has one: full name → text.

    The value ``RED`` of an enum ``shop.v1.Colour`` stands under ``shop.v1.Colour.RED``.
    """
    found: dict[str, str] = {}
    for file in files.file:
        places = {tuple(one.path): one for one in file.source_code_info.location}
        for name, path in _declarations(file):
            location = places.get(path)
            if location is not None and (text := _text(location.leading_comments or location.trailing_comments)):
                found[name] = text
    return found


def headline(comment: str) -> tuple[str, str]:
    """Split a comment: its first sentence without the full stop, and the rest.

    The first is ``""`` if no sentence is short enough for a headline; then the rest is all.
    """
    paragraph, _, rest = comment.partition("\n\n")
    match = _SENTENCE.match(paragraph)
    sentence = match[1] if match else paragraph
    line = " ".join(sentence.split()).removesuffix(".")
    if len(line) > _LONGEST:
        return "", comment
    return line, f"{paragraph[len(sentence) :].strip()}\n\n{rest}".strip()


def _text(comment: str) -> str:
    return "\n".join(line.removeprefix(" ").rstrip() for line in comment.strip("\n").splitlines()).strip()


def _declarations(file: FileDescriptorProto) -> Iterator[tuple[str, Path]]:
    for index, message in enumerate(file.message_type):
        yield from _message(message, file.package, (_FILE_MESSAGE, index))
    yield from _enums(file.enum_type, file.package, (_FILE_ENUM,))
    for index, service in enumerate(file.service):
        name = _join(file.package, service.name)
        yield name, (_FILE_SERVICE, index)
        for at, method in enumerate(service.method):
            yield f"{name}.{method.name}", (_FILE_SERVICE, index, _SERVICE_METHOD, at)


def _message(message: DescriptorProto, scope: str, path: Path) -> Iterator[tuple[str, Path]]:
    name = _join(scope, message.name)
    yield name, path
    for index, field in enumerate(message.field):
        yield f"{name}.{field.name}", (*path, _MESSAGE_FIELD, index)
    for index, oneof in enumerate(message.oneof_decl):
        yield f"{name}.{oneof.name}", (*path, _MESSAGE_ONEOF, index)
    for index, nested in enumerate(message.nested_type):
        yield from _message(nested, name, (*path, _MESSAGE_NESTED, index))
    yield from _enums(message.enum_type, name, (*path, _MESSAGE_ENUM))


def _enums(enums: Iterable[EnumDescriptorProto], scope: str, path: Path) -> Iterator[tuple[str, Path]]:
    for index, enum in enumerate(enums):
        name = _join(scope, enum.name)
        yield name, (*path, index)
        for at, value in enumerate(enum.value):
            yield f"{name}.{value.name}", (*path, index, _ENUM_VALUE, at)


def _join(scope: str, name: str) -> str:
    return f"{scope}.{name}" if scope else name

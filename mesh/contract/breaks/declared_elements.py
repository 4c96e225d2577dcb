"""Declared elements: places of the declarations of a contract, and the messages and enums in it, by full name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from mesh.contract import protoc
from mesh.contract.source_locations import SourceLocations

__all__ = ["DeclaredElements"]

_FOREIGN = ("meshapi/", "buf/validate/")
"""Files that a contract imports and does not declare. Their types are compared where the contract has them."""


class DeclaredElements:
    """Elements that the files of a contract declare.

    Args:
        files: The compiled files.

    Attributes:
        messages: Messages by full name; map entries are left out.
        enums: Enums by full name.
        own: Full names of the messages and enums outside of the built-in files.
    """

    def __init__(self, files: FileDescriptorSet) -> None:
        self.messages: dict[str, DescriptorProto] = {}
        self.enums: dict[str, EnumDescriptorProto] = {}
        self.own: set[str] = set()
        self._places: dict[str, str] = {}
        self._files: dict[str, str] = {}
        for file in files.file:
            self._file(file)

    def place(self, *names: str, file: str = "") -> str:
        """Return the place of the first of these elements that is declared.

        Args:
            names: The element and those around it, the closest first. Methods are ``package.Service/Method``.
            file: The file in which the first of them was declared before.
        """
        for name in names:
            if name in self._places:
                return self._places[name]
        return file

    def file_of(self, name: str) -> str:
        """Return the name of the file that declares a message, an enum or a service, or ``""``."""
        return self._files.get(name, "")

    def _file(self, file: FileDescriptorProto) -> None:
        locations = SourceLocations(file)
        prefix = f"{file.package}." if file.package else ""
        own = not (file.name.startswith(_FOREIGN) or protoc.builtin_file(file.name) is not None)
        fields = FileDescriptorProto
        for index, message in enumerate(file.message_type):
            path = (fields.MESSAGE_TYPE_FIELD_NUMBER, index)
            self._message(message, f"{prefix}{message.name}", path, locations, own=own)
        for index, enum in enumerate(file.enum_type):
            self._enum(enum, f"{prefix}{enum.name}", (fields.ENUM_TYPE_FIELD_NUMBER, index), locations, own=own)
        for index, service in enumerate(file.service):
            name = f"{prefix}{service.name}"
            path = (fields.SERVICE_FIELD_NUMBER, index)
            self._declare(name, locations, path)
            for at, method in enumerate(service.method):
                method_path = (*path, ServiceDescriptorProto.METHOD_FIELD_NUMBER, at)
                self._places[f"{name}/{method.name}"] = locations.at(*method_path)

    def _declare(self, name: str, locations: SourceLocations, path: Iterable[int]) -> None:
        self._places[name] = locations.at(*path)
        self._files[name] = locations.file

    def _message(
        self, message: DescriptorProto, name: str, path: tuple[int, ...], locations: SourceLocations, *, own: bool
    ) -> None:
        if message.options.map_entry:
            return
        self._declare(name, locations, path)
        self.messages[name] = message
        if own:
            self.own.add(name)
        for kind, number in _members(message):
            for index, member in enumerate(kind):
                self._places[f"{name}.{member.name}"] = locations.at(*path, number, index)
        for index, nested in enumerate(message.nested_type):
            nested_path = (*path, DescriptorProto.NESTED_TYPE_FIELD_NUMBER, index)
            self._message(nested, f"{name}.{nested.name}", nested_path, locations, own=own)
        for index, enum in enumerate(message.enum_type):
            enum_path = (*path, DescriptorProto.ENUM_TYPE_FIELD_NUMBER, index)
            self._enum(enum, f"{name}.{enum.name}", enum_path, locations, own=own)

    def _enum(
        self, enum: EnumDescriptorProto, name: str, path: tuple[int, ...], locations: SourceLocations, *, own: bool
    ) -> None:
        self._declare(name, locations, path)
        self.enums[name] = enum
        if own:
            self.own.add(name)
        for index, value in enumerate(enum.value):
            value_path = (*path, EnumDescriptorProto.VALUE_FIELD_NUMBER, index)
            self._places[f"{name}.{value.name}"] = locations.at(*value_path)


def _members(message: DescriptorProto) -> Iterator[tuple[Iterable[Any], int]]:
    yield message.field, DescriptorProto.FIELD_FIELD_NUMBER
    yield message.oneof_decl, DescriptorProto.ONEOF_DECL_FIELD_NUMBER

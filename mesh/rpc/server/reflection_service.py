"""Reflection service, v1 and v1alpha, from compiled descriptors of the contract.

``list_services`` lists the services that are served here. Files and symbols are those of all given files. A file is
sent with everything that it imports, so that a client can build its types from one response.

The two versions have the same messages on the wire. ``buf curl`` calls v1, older clients call v1alpha.
``grpcio-reflection`` brings v1alpha only, so the descriptor of v1 is derived from it.

Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2 as pb

from mesh.call import Call, Handler
from mesh.contract.model import Method
from mesh.errors import InvalidArgument, NotFound, StatusError
from mesh.rpc.server.builtin_methods import decode, methods_of

__all__ = ["Reflection"]

_V1ALPHA_FILE = FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)


def _v1_file() -> FileDescriptorProto:
    """Return the file of v1: that of v1alpha in another package, without its deprecation."""
    file = FileDescriptorProto()
    file.CopyFrom(_V1ALPHA_FILE)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", "grpc.reflection.v1"
    file.ClearField("options")

    def rename(message: DescriptorProto) -> None:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
        for nested in message.nested_type:
            rename(nested)

    for message in file.message_type:
        rename(message)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
            method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
    return file


class Reflection:
    """Reflection service in both versions.

    Args:
        files: Compiled files of the contract.
        services: Full names of the contract's services that are served here. Health and reflection are added.
    """

    def __init__(self, files: FileDescriptorSet, services: Iterable[str]) -> None:
        v1_file = _v1_file()
        pool = descriptor_pool.DescriptorPool()
        pool.Add(v1_file)
        self._methods = [
            methods_of(descriptor)["ServerReflectionInfo"]
            for descriptor in (
                pool.FindServiceByName("grpc.reflection.v1.ServerReflection"),
                pb.DESCRIPTOR.services_by_name["ServerReflection"],
            )
        ]
        health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        self._services = sorted({*services, health, *(method.service for method in self._methods)})
        health_file = FileDescriptorProto.FromString(health_pb2.DESCRIPTOR.serialized_pb)
        self._files = {file.name: file for file in (v1_file, _V1ALPHA_FILE, health_file, *files.file)}
        self._file_of_symbol: dict[str, str] = {}
        self._file_of_extension: dict[str, dict[int, str]] = {}
        for file in self._files.values():
            for symbol in _symbols(file):
                self._file_of_symbol.setdefault(symbol, file.name)
            for extension in _extensions(file.message_type, file.extension):
                numbers = self._file_of_extension.setdefault(extension.extendee.lstrip("."), {})
                numbers.setdefault(extension.number, file.name)
        self._by_kind: dict[str, Callable[[Any, Any], None]] = {
            "list_services": self._list_services,
            "file_by_filename": self._file_by_filename,
            "file_containing_symbol": self._file_containing_symbol,
            "file_containing_extension": self._file_containing_extension,
            "all_extension_numbers_of_type": self._extension_numbers,
        }

    def handlers(self) -> dict[str, tuple[Method, Handler]]:
        """Return path → (method, handler)."""
        return {method.path: (method, self._server_reflection_info) for method in self._methods}

    async def _server_reflection_info(self, call: Call) -> None:
        response_class: Any = call.method.output
        while (data := await call.receive()) is not None:
            request = decode(call.method, data)
            response = response_class(valid_host=request.host, original_request=request)
            try:
                kind = request.WhichOneof("message_request")
                if kind is None:
                    raise InvalidArgument("the request sets no message_request that is known here")
                self._by_kind[kind](getattr(request, kind), response)
            except StatusError as error:
                response.error_response.error_code = error.code
                response.error_response.error_message = error.message
            await call.send(response.SerializeToString())

    def _list_services(self, _: str, response: Any) -> None:
        for name in self._services:
            response.list_services_response.service.add(name=name)

    def _file_by_filename(self, name: str, response: Any) -> None:
        if name not in self._files:
            raise NotFound(f"no file {name!r}")
        self._add_files(name, response)

    def _file_containing_symbol(self, symbol: str, response: Any) -> None:
        file = self._file_of_symbol.get(symbol.lstrip("."))
        if file is None:
            raise NotFound(f"no symbol {symbol!r}")
        self._add_files(file, response)

    def _file_containing_extension(self, extension: Any, response: Any) -> None:
        file = self._file_of_extension.get(extension.containing_type, {}).get(extension.extension_number)
        if file is None:
            raise NotFound(f"no extension {extension.extension_number} of {extension.containing_type!r}")
        self._add_files(file, response)

    def _extension_numbers(self, name: str, response: Any) -> None:
        if name not in self._file_of_extension and name not in self._file_of_symbol:
            raise NotFound(f"no type {name!r}")
        numbers = response.all_extension_numbers_response
        numbers.base_type_name = name
        numbers.extension_number.extend(sorted(self._file_of_extension.get(name, ())))

    def _add_files(self, name: str, response: Any) -> None:
        """Add a file and everything that it imports to the response: depth first, a file before its imports.

        grpcio sends this order. Clients that build their types file by file depend on it.
        """
        pending, seen = [name], set[str]()
        while pending:
            at = pending.pop()
            file = self._files.get(at)
            if file is None or at in seen:
                continue
            seen.add(at)
            response.file_descriptor_response.file_descriptor_proto.append(file.SerializeToString())
            pending += reversed(file.dependency)


def _symbols(file: FileDescriptorProto) -> Iterator[str]:
    """Yield the full names of everything that a file declares."""
    prefix = f"{file.package}." if file.package else ""
    for message in file.message_type:
        yield from _symbols_of_message(message, prefix)
    for enum in file.enum_type:
        yield f"{prefix}{enum.name}"
        yield from (f"{prefix}{value.name}" for value in enum.value)
    for extension in file.extension:
        yield f"{prefix}{extension.name}"
    for service in file.service:
        yield f"{prefix}{service.name}"
        yield from (f"{prefix}{service.name}.{method.name}" for method in service.method)


def _symbols_of_message(message: DescriptorProto, prefix: str) -> Iterator[str]:
    name = f"{prefix}{message.name}"
    yield name
    yield from (f"{name}.{field.name}" for field in (*message.field, *message.extension))
    yield from (f"{name}.{oneof.name}" for oneof in message.oneof_decl)
    for enum in message.enum_type:
        yield f"{name}.{enum.name}"
        yield from (f"{name}.{value.name}" for value in enum.value)
    for nested in message.nested_type:
        yield from _symbols_of_message(nested, f"{name}.")


def _extensions(
    messages: Iterable[DescriptorProto], extensions: Iterable[FieldDescriptorProto]
) -> Iterator[FieldDescriptorProto]:
    """Yield the extensions that are declared at this level and within the messages."""
    yield from extensions
    for message in messages:
        yield from _extensions(message.nested_type, message.extension)

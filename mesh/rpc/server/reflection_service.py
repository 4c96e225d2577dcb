"""gRPC server reflection, v1 and v1alpha, from the contract's compiled descriptors.

``list_services`` names what is served here; files and symbols are those of the whole contract, each file with
everything it imports, so that a client can build its types from one answer.

Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md. The two versions have the same messages on
the wire; ``buf curl`` asks for v1, older clients for v1alpha.
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
from mesh.rpc.server.builtin_services import decode, methods_of

__all__ = ["Reflection"]

_ALPHA = FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)


def _v1() -> FileDescriptorProto:
    """Return the v1 file: v1alpha with its package renamed, which is what v1 is."""
    file = FileDescriptorProto()
    file.CopyFrom(_ALPHA)
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
    """Answers what is served and how it is shaped.

    Args:
        files: The contract's compiled files.
        services: Full names of the services that are served here, health included.
    """

    def __init__(self, files: FileDescriptorSet, services: Iterable[str]) -> None:
        own = _v1()
        pool = descriptor_pool.DescriptorPool()
        pool.Add(own)
        self._methods = [
            methods_of(descriptor)["ServerReflectionInfo"]
            for descriptor in (
                pool.FindServiceByName("grpc.reflection.v1.ServerReflection"),
                pb.DESCRIPTOR.services_by_name["ServerReflection"],
            )
        ]
        self._services = sorted({*services, *(method.service for method in self._methods)})
        health = FileDescriptorProto.FromString(health_pb2.DESCRIPTOR.serialized_pb)
        self._files = {file.name: file for file in (own, _ALPHA, health, *files.file)}
        self._symbols: dict[str, str] = {}
        self._extensions: dict[str, dict[int, str]] = {}
        for file in self._files.values():
            for symbol in _symbols(file):
                self._symbols.setdefault(symbol, file.name)
            for extension in _extensions(file.message_type, file.extension):
                numbers = self._extensions.setdefault(extension.extendee.lstrip("."), {})
                numbers.setdefault(extension.number, file.name)
        self._answers: dict[str, Callable[[Any, Any], None]] = {
            "list_services": self._list,
            "file_by_filename": lambda name, response: self._file(self._named(name), response),
            "file_containing_symbol": lambda name, response: self._file(self._holder(name), response),
            "file_containing_extension": lambda asked, response: self._file(self._extender(asked), response),
            "all_extension_numbers_of_type": self._numbers,
        }

    def handlers(self) -> dict[str, tuple[Method, Handler]]:
        """Return path → (method, handler)."""
        return {method.path: (method, self._answer) for method in self._methods}

    async def _answer(self, call: Call) -> None:
        response_class: Any = call.method.output
        while (data := await call.receive()) is not None:
            request = decode(call.method, data)
            response = response_class(valid_host=request.host, original_request=request)
            try:
                kind = request.WhichOneof("message_request")
                if kind is None:
                    raise InvalidArgument("the request asks for nothing that is known here")
                self._answers[kind](getattr(request, kind), response)
            except StatusError as error:
                response.error_response.error_code = error.code
                response.error_response.error_message = error.message
            await call.send(response.SerializeToString())

    def _list(self, _: str, response: Any) -> None:
        for name in self._services:
            response.list_services_response.service.add(name=name)

    def _named(self, name: str) -> str:
        if name not in self._files:
            raise NotFound(f"no file {name!r}")
        return name

    def _holder(self, symbol: str) -> str:
        file = self._symbols.get(symbol.lstrip("."))
        if file is None:
            raise NotFound(f"no symbol {symbol!r}")
        return file

    def _extender(self, asked: Any) -> str:
        file = self._extensions.get(asked.containing_type, {}).get(asked.extension_number)
        if file is None:
            raise NotFound(f"no extension {asked.extension_number} of {asked.containing_type!r}")
        return file

    def _numbers(self, name: str, response: Any) -> None:
        if name not in self._extensions and name not in self._symbols:
            raise NotFound(f"no type {name!r}")
        answer = response.all_extension_numbers_response
        answer.base_type_name = name
        answer.extension_number.extend(sorted(self._extensions.get(name, ())))

    def _file(self, name: str, response: Any) -> None:
        """Add the file and, after it, everything it imports."""
        wanted, seen = [name], {name}
        for at in wanted:
            file = self._files[at]
            response.file_descriptor_response.file_descriptor_proto.append(file.SerializeToString())
            fresh = [other for other in file.dependency if other not in seen and other in self._files]
            seen.update(fresh)
            wanted += fresh


def _symbols(file: FileDescriptorProto) -> Iterator[str]:
    """Yield the full name of everything that a file declares."""
    prefix = f"{file.package}." if file.package else ""
    for message in file.message_type:
        yield from _of_message(message, prefix)
    for enum in file.enum_type:
        yield f"{prefix}{enum.name}"
        yield from (f"{prefix}{value.name}" for value in enum.value)
    for extension in file.extension:
        yield f"{prefix}{extension.name}"
    for service in file.service:
        yield f"{prefix}{service.name}"
        yield from (f"{prefix}{service.name}.{method.name}" for method in service.method)


def _of_message(message: DescriptorProto, prefix: str) -> Iterator[str]:
    name = f"{prefix}{message.name}"
    yield name
    yield from (f"{name}.{field.name}" for field in (*message.field, *message.extension))
    yield from (f"{name}.{group.name}" for group in message.oneof_decl)
    for enum in message.enum_type:
        yield f"{name}.{enum.name}"
        yield from (f"{name}.{value.name}" for value in enum.value)
    for nested in message.nested_type:
        yield from _of_message(nested, f"{name}.")


def _extensions(
    messages: Iterable[DescriptorProto], found: Iterable[FieldDescriptorProto]
) -> Iterator[FieldDescriptorProto]:
    yield from found
    for message in messages:
        yield from _extensions(message.nested_type, message.extension)

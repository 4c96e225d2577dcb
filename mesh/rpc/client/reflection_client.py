"""Reflection client: calls any method of a server without stubs, with messages as JSON.

It serves a person at a terminal: it blocks and retries nothing. It uses grpcio's blocking API and shares nothing with
the mesh's channel, so it works when the channel itself is in question. The server needs reflection, v1 or v1alpha.
(With grpc.aio, a stream that the server refuses while it is being written to ends with INTERNAL half of the time, and
a first request to v1 causes just that; see grpc issue 36066.)

Sources: grpc/reflection/v1/reflection.proto; https://protobuf.dev/programming-guides/json/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
from google.protobuf import any_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2

from mesh.message_methods import descriptor_of, parser, serialize, serialize_partial
from mesh.protojson.codec import NO_SUCH_FIELD, Codecs
from mesh.protojson.scalars import JsonError
from mesh.protojson.wellknown import JsonEncodeError
from mesh.rpc.client.grpcio_credentials import grpcio_credentials, name_option
from mesh.rpc.status import DETAILS

if TYPE_CHECKING:
    from mesh.rpc.client.service_tls import ServiceTls

__all__ = ["NoSuchMethod", "ReflectionCallError", "ReflectionClient", "ResponseMetadata", "find"]

# The messages of v1 are those of v1alpha under another name, byte for byte.
_REFLECTION_SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_REQUEST_CODECS = Codecs(always_print_fields_with_no_presence=True)
_DETAIL_CODECS = Codecs()
_PROTOCOL_SERVICES = ("grpc.reflection.", "grpc.health.")

Pairs = Sequence[tuple[str, str | bytes]]


class NoSuchMethod(Exception):
    """The server has no such method, or the short name fits several; the text lists what there is."""


class ReflectionCallError(Exception):
    """The end of a call with a status other than OK.

    Attributes:
        code: The gRPC code.
        name: Its name, ``NOT_FOUND``.
        message: The server's message.
        details: The messages of the rich status, as JSON values.
        trailers: Response metadata.
    """

    def __init__(self, error: grpc.RpcError, details: list[Any]) -> None:
        self.code: int = error.code().value[0]
        self.name: str = error.code().name
        self.message = error.details() or ""
        self.details = details
        self.trailers = _pairs(error.trailing_metadata())
        super().__init__(f"{self.name}: {self.message}")


def _pairs(metadata: Any) -> Pairs:
    return tuple((str(key), value) for key, value in metadata or ())


@dataclass(slots=True)
class ResponseMetadata:
    """Response metadata of a call, filled in while it runs.

    Attributes:
        headers: Received before the first message.
        trailers: Received after the last message.
    """

    headers: Pairs = ()
    trailers: Pairs = ()


def find(name: str, names: Sequence[str]) -> str:
    """Return the full name in ``names`` that equals ``name`` or ends with it (``Login`` of ``login.v1.Login``).

    Raises:
        NoSuchMethod: There is none, or there are several; the text lists them.
    """
    if name in names:
        return name
    found = [full for full in names if full.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise NoSuchMethod(f"{name!r} can be {' or '.join(found)}")
    raise NoSuchMethod(f"there is no service {name!r}; there is {', '.join(names) or 'none at all'}")


class ReflectionClient:
    """A connection to one server; a context manager.

    Args:
        address: ``host:port``.
        timeout: Seconds that each call may take.
        tls: TLS to the server, or None for plain text.
    """

    def __init__(self, address: str, timeout: float, tls: ServiceTls | None = None) -> None:
        # A proxy in the environment is for external traffic, not for the mesh.
        options = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))
        if tls is None:
            self._channel = grpc.insecure_channel(address, options=options)
        else:
            self._channel = grpc.secure_channel(address, grpcio_credentials(tls), [*options, name_option(tls)])
        self._timeout = timeout
        self._version = 0
        self._files: set[str] = set()
        self.pool = descriptor_pool.DescriptorPool()
        self.pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
        self._files.add(any_pb2.DESCRIPTOR.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    # -- services and methods --

    def services(self) -> list[str]:
        """Return the full names of the server's services, without health and reflection.

        Raises:
            ReflectionCallError: The server cannot be reached or has no reflection.
        """
        response = self._request(reflection_pb2.ServerReflectionRequest(list_services="*"))
        names = [service.name for service in response.list_services_response.service]
        return sorted(name for name in names if not name.startswith(_PROTOCOL_SERVICES))

    def method(self, name: str) -> MethodDescriptor:
        """Return the descriptor of ``Service/Method``; an end of the service's name is enough if it fits one only.

        Raises:
            NoSuchMethod: There is none, or the name fits several.
            ReflectionCallError: The server cannot be reached or has no reflection.
        """
        service_name, _, method_name = name.lstrip("/").rpartition("/")
        if not service_name:
            service_name, _, method_name = name.rpartition(".")
        full = service_name if service_name.startswith(_PROTOCOL_SERVICES) else find(service_name, self.services())
        response = self._request(reflection_pb2.ServerReflectionRequest(file_containing_symbol=full))
        self._add(response.file_descriptor_response.file_descriptor_proto)
        service: ServiceDescriptor = self.pool.FindServiceByName(full)
        method = service.methods_by_name.get(method_name)
        if method is None:
            known = ", ".join(service.methods_by_name)
            raise NoSuchMethod(f"{full} has no method {method_name!r}; it has {known or 'none'}")
        return method

    def files_of(self, *, symbol: str = "", file: str = "") -> dict[str, FileDescriptorProto]:
        """Return the file that declares a symbol, or has a name, and all that it imports, by name.

        Raises:
            NoSuchMethod: The server knows neither.
            ReflectionCallError: The server cannot be reached or has no reflection.
        """
        found: dict[str, FileDescriptorProto] = {}
        request = reflection_pb2.ServerReflectionRequest
        to_request = [request(file_containing_symbol=symbol) if symbol else request(file_by_filename=file)]
        while to_request:
            response = self._request(to_request.pop())
            for data in response.file_descriptor_response.file_descriptor_proto:
                sent = FileDescriptorProto.FromString(data)
                found.setdefault(sent.name, sent)
            missing = next((name for one in found.values() for name in one.dependency if name not in found), None)
            if missing is not None:
                to_request.append(request(file_by_filename=missing))
        return found

    def _add(self, files: Sequence[bytes]) -> None:
        """Add files to the pool, each after its imports; imports that the server did not send are requested."""
        sent = {file.name: file for file in map(FileDescriptorProto.FromString, files)}
        for name in list(sent):
            self._add_one(name, sent)

    def _add_one(self, name: str, sent: dict[str, FileDescriptorProto]) -> None:
        if name in self._files:
            return
        self._files.add(name)
        if name not in sent:
            response = self._request(reflection_pb2.ServerReflectionRequest(file_by_filename=name))
            for data in response.file_descriptor_response.file_descriptor_proto:
                file = FileDescriptorProto.FromString(data)
                sent.setdefault(file.name, file)
        for needed in sent[name].dependency:
            self._add_one(needed, sent)
        self.pool.Add(sent[name])

    def _request(self, request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
        """Send one request to the reflection service, to v1 first."""
        while True:
            call: Any = self._channel.stream_stream(
                f"/{_REFLECTION_SERVICES[self._version]}/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )(iter([request]), timeout=self._timeout)
            try:
                response = next(call, None)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED and self._version + 1 < len(_REFLECTION_SERVICES):
                    self._version += 1
                    continue
                raise ReflectionCallError(error, []) from None
            finally:
                call.cancel()
            if not isinstance(response, reflection_pb2.ServerReflectionResponse):
                raise NoSuchMethod("the server's reflection ended without a response")
            if response.HasField("error_response"):
                raise NoSuchMethod(response.error_response.error_message)
            return response

    # -- calling --

    def parse(self, method: MethodDescriptor, value: Any) -> Message:
        """Return the request message of a JSON value.

        Raises:
            ValueError: The value does not fit the message; the text gives the reason.
        """
        try:
            message: Message = _REQUEST_CODECS.of_descriptor(method.input_type).parse_value(value)
        except JsonError as error:
            reason = f'has no field named "{error.path}"' if error.text == NO_SUCH_FIELD else str(error)
            raise ValueError(f"the request is no {method.input_type.full_name}: {reason}") from None
        return message

    def value(self, message: Message) -> Any:
        """Return the JSON value of a message, default values included."""
        try:
            return _REQUEST_CODECS.of(type(message)).dump(message)
        except JsonEncodeError:
            return {"@type": descriptor_of(message).full_name, "unreadable": serialize_partial(message).hex()}

    def call(
        self, method: MethodDescriptor, requests: Iterator[Message], metadata: Pairs, received: ResponseMetadata
    ) -> Iterator[Any]:
        """Call the method and yield each response as a JSON value when it arrives.

        Args:
            method: From ``method``.
            requests: One request, or several if the method streams them.
            metadata: Request metadata.
            received: Response metadata; filled in while the call runs.

        Raises:
            ReflectionCallError: The call ended with a status other than OK.
            ValueError: The iterator of requests raised it.
        """
        path = f"/{method.containing_service.full_name}/{method.name}"
        response = message_factory.GetMessageClass(method.output_type)
        request_errors: list[ValueError] = []

        def checked_requests() -> Iterator[Message]:  # grpcio hides an error of the request iterator
            try:
                yield from requests
            except ValueError as error:
                request_errors.append(error)
                raise

        # All kinds of calls are alike on the wire, so this one serves all methods.
        call: Any = self._channel.stream_stream(
            path, request_serializer=serialize, response_deserializer=parser(response)
        )(checked_requests(), metadata=tuple(metadata), timeout=self._timeout)
        try:
            received.headers = _pairs(call.initial_metadata())
            for message in call:
                yield self.value(message)
            received.trailers = _pairs(call.trailing_metadata())
        except grpc.RpcError as error:
            if request_errors:
                raise request_errors[0] from None
            raise ReflectionCallError(error, self._details(error)) from None
        finally:
            call.cancel()

    def _details(self, error: grpc.RpcError) -> list[Any]:
        trailers = dict(_pairs(error.trailing_metadata()))
        rich = trailers.get(DETAILS.decode())
        if not isinstance(rich, bytes):
            return []
        try:
            status = status_pb2.Status.FromString(rich)
        except DecodeError:
            return [{"@type": "google.rpc.Status", "unreadable": rich.hex()}]
        return [self._detail(detail) for detail in status.details]

    def _detail(self, detail: any_pb2.Any) -> Any:
        name = detail.type_url.rpartition("/")[2]
        # The standard details are known here even if the server's files do not import them.
        for pool in (error_details_pb2.DESCRIPTOR.pool, self.pool):
            try:
                kind = pool.FindMessageTypeByName(name)
                codec = _DETAIL_CODECS.of_descriptor(kind)
                value = codec.dump(parser(codec.message)(detail.value))
            except (KeyError, DecodeError, JsonEncodeError):
                continue
            return {"@type": name, "value": value} if codec.wrapped else {**value, "@type": name}
        return {"@type": name, "unreadable": detail.value.hex()}

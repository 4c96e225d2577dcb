"""Calls any method of a server that has reflection (v1, else v1alpha), without stubs: messages as JSON.

For a person at a terminal: it blocks, shows what happened and retries nothing. It is a client of its own, on grpcio's
blocking API, and shares nothing with the mesh's channel, so it can also be asked when that is in doubt. (Not grpc.aio:
there, a stream that the server refuses while it is being written to ends as INTERNAL half of the time, and asking for
v1 first runs into just that; see grpc issue 36066.)

Sources: grpc/reflection/v1/reflection.proto; https://protobuf.dev/programming-guides/json/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

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
from mesh.rpc.status import DETAILS

__all__ = ["CallError", "Client", "NoSuchMethod", "Outcome", "find"]

# v1 has the messages of v1alpha under another name, byte for byte.
_VERSIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_WHOLE = Codecs(always_print_fields_with_no_presence=True)
_SET = Codecs()
_OWN = ("grpc.reflection.", "grpc.health.")

Pairs = Sequence[tuple[str, str | bytes]]


class NoSuchMethod(Exception):
    """The server has no such method, or several that the short name fits; the text says which there are."""


class CallError(Exception):
    """The call ended with a status other than OK.

    Attributes:
        code: The gRPC code.
        name: Its name, ``NOT_FOUND``.
        message: What the server said.
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
class Outcome:
    """What came beside the messages of a call that is over: response metadata.

    Attributes:
        headers: Before the first message.
        trailers: After the last.
    """

    headers: Pairs = ()
    trailers: Pairs = ()


def find(wanted: str, names: Sequence[str]) -> str:
    """Return the one full name of ``names`` that ``wanted`` is, or is the end of (``Login`` of ``login.v1.Login``).

    Raises:
        NoSuchMethod: None or several; the text names them.
    """
    if wanted in names:
        return wanted
    found = [name for name in names if name.endswith(f".{wanted}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise NoSuchMethod(f"{wanted!r} can be {' or '.join(found)}")
    raise NoSuchMethod(f"there is no service {wanted!r}; there is {', '.join(names) or 'none at all'}")


class Client:
    """A connection to one server; a context manager.

    Args:
        address: ``host:port``.
        timeout: Seconds that each call may take.
    """

    def __init__(self, address: str, timeout: float) -> None:
        # A proxy of the environment is for the outside world, not for the mesh.
        options = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))
        self._channel = grpc.insecure_channel(address, options=options)
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

    # -- what there is --

    def services(self) -> list[str]:
        """Return the full names of the server's services, those of the protocol itself left out.

        Raises:
            CallError: The server cannot be reached or has no reflection.
        """
        answer = self._ask(reflection_pb2.ServerReflectionRequest(list_services="*"))
        names = [service.name for service in answer.list_services_response.service]
        return sorted(name for name in names if not name.startswith(_OWN))

    def method(self, name: str) -> MethodDescriptor:
        """Return the descriptor of ``Service/Method``; the service's name may be its end, if that is clear.

        Raises:
            NoSuchMethod: There is none, or the name fits several.
            CallError: The server cannot be reached or has no reflection.
        """
        service_name, _, method_name = name.lstrip("/").rpartition("/")
        if not service_name:
            service_name, _, method_name = name.rpartition(".")
        full = service_name if service_name.startswith(_OWN) else find(service_name, self.services())
        answer = self._ask(reflection_pb2.ServerReflectionRequest(file_containing_symbol=full))
        self._add(answer.file_descriptor_response.file_descriptor_proto)
        service: ServiceDescriptor = self.pool.FindServiceByName(full)
        method = service.methods_by_name.get(method_name)
        if method is None:
            known = ", ".join(service.methods_by_name)
            raise NoSuchMethod(f"{full} has no method {method_name!r}; it has {known or 'none'}")
        return method

    def _add(self, files: Sequence[bytes]) -> None:
        """Add files to the pool, each after what it imports; what the server did not send along is asked for."""
        sent = {file.name: file for file in map(FileDescriptorProto.FromString, files)}
        for name in list(sent):
            self._add_one(name, sent)

    def _add_one(self, name: str, sent: dict[str, FileDescriptorProto]) -> None:
        if name in self._files:
            return
        self._files.add(name)
        if name not in sent:
            answer = self._ask(reflection_pb2.ServerReflectionRequest(file_by_filename=name))
            for data in answer.file_descriptor_response.file_descriptor_proto:
                file = FileDescriptorProto.FromString(data)
                sent.setdefault(file.name, file)
        for needed in sent[name].dependency:
            self._add_one(needed, sent)
        self.pool.Add(sent[name])

    def _ask(self, request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
        """Ask reflection one thing, v1 first."""
        while True:
            call: Any = self._channel.stream_stream(
                f"/{_VERSIONS[self._version]}/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )(iter([request]), timeout=self._timeout)
            try:
                answer = next(call, None)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED and self._version + 1 < len(_VERSIONS):
                    self._version += 1
                    continue
                raise CallError(error, []) from None
            finally:
                call.cancel()
            if not isinstance(answer, reflection_pb2.ServerReflectionResponse):
                raise NoSuchMethod("the server's reflection ended without an answer")
            if answer.HasField("error_response"):
                raise NoSuchMethod(answer.error_response.error_message)
            return answer

    # -- calling --

    def parse(self, method: MethodDescriptor, value: Any) -> Message:
        """Return the request message of a JSON value.

        Raises:
            ValueError: It does not fit the message; the text says why.
        """
        try:
            message: Message = _WHOLE.of_descriptor(method.input_type).parse_value(value)
        except JsonError as error:
            said = f'has no field named "{error.path}"' if error.text == NO_SUCH_FIELD else str(error)
            raise ValueError(f"the request is no {method.input_type.full_name}: {said}") from None
        return message

    def value(self, message: Message) -> Any:
        """Return the JSON value of a message, default values included."""
        try:
            return _WHOLE.of(type(message)).dump(message)
        except JsonEncodeError:
            return {"@type": descriptor_of(message).full_name, "unreadable": serialize_partial(message).hex()}

    def call(
        self, method: MethodDescriptor, requests: Iterator[Message], metadata: Pairs, outcome: Outcome
    ) -> Iterator[Any]:
        """Call the method and yield each response as a JSON value when it comes.

        Args:
            method: From ``method``.
            requests: As many as its kind takes.
            metadata: Request metadata.
            outcome: Filled in while the call runs.

        Raises:
            CallError: It ended with a status other than OK.
            ValueError: From ``requests``.
        """
        path = f"/{method.containing_service.full_name}/{method.name}"
        response = message_factory.GetMessageClass(method.output_type)
        broken: list[ValueError] = []

        def guarded() -> Iterator[Message]:  # grpcio keeps the error of a request iterator to itself
            try:
                yield from requests
            except ValueError as error:
                broken.append(error)
                raise

        # Every kind of call is the same on the wire, so one shape serves all of them.
        call: Any = self._channel.stream_stream(
            path, request_serializer=serialize, response_deserializer=parser(response)
        )(guarded(), metadata=tuple(metadata), timeout=self._timeout)
        try:
            outcome.headers = _pairs(call.initial_metadata())
            for message in call:
                yield self.value(message)
            outcome.trailers = _pairs(call.trailing_metadata())
        except grpc.RpcError as error:
            if broken:
                raise broken[0] from None
            raise CallError(error, self._details(error)) from None
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
        # The standard details are known here even if the server's contract does not import them.
        for pool in (error_details_pb2.DESCRIPTOR.pool, self.pool):
            try:
                kind = pool.FindMessageTypeByName(name)
                codec = _SET.of_descriptor(kind)
                value = codec.dump(parser(codec.message)(detail.value))
            except (KeyError, DecodeError, JsonEncodeError):
                continue
            return {"@type": name, "value": value} if codec.wrapped else {**value, "@type": name}
        return {"@type": name, "unreadable": detail.value.hex()}

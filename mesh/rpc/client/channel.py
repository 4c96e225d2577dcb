"""Channel: generated stubs on a handler, with the interface of ``grpc.aio.Channel``.

Each call of a stub becomes a ``Call`` for the handler. The handler is a target, usually behind the layers of the
outbound chain. The call objects are in ``mesh.rpc.client.unary_call`` and ``streaming_call``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self, TypeAlias

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty

from mesh.call import FIELD_OVERHEAD_BYTES, Handler, Metadata, current, encode_pair, field_bytes
from mesh.contract.model import Contract, Method
from mesh.headers import is_reserved
from mesh.rpc.client.streaming_call import StreamStreamCall, StreamUnaryCall, UnaryStreamCall
from mesh.rpc.client.unary_call import UnaryUnaryCall

__all__ = ["Channel", "MultiCallable"]

Serialize: TypeAlias = "Callable[[Any], bytes] | None"
Deserialize: TypeAlias = "Callable[[bytes], Any] | None"


MAX_METADATA_BYTES = 32 * 2**10
"""Bytes of metadata that a caller may pass. All headers of a call are sent in one block of at most 64 KiB."""


def _unchanged(message: Any) -> Any:
    return message


def _pairs(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the caller's metadata as wire pairs.

    Raises:
        ValueError: A key belongs to the transport, or the metadata are too large (see also ``encode_pair``).
        TypeError: A key or value has the wrong type.
    """
    pairs = [encode_pair(key, value) for key, value in metadata]
    for name, _ in pairs:
        if is_reserved(name):
            raise ValueError(f"metadata key {name.decode()!r} belongs to the transport; choose another name")
    if field_bytes(pairs) > MAX_METADATA_BYTES:
        raise ValueError(
            f"the metadata of a call may be {MAX_METADATA_BYTES} bytes, counting {FIELD_OVERHEAD_BYTES} more for each "
            "pair; send it in the request"
        )
    return pairs


class MultiCallable:
    """One method of a stub; calling it starts a call."""

    __slots__ = ("call_class", "deserialize", "handler", "method", "serialize")

    def __init__(self, call_class: Any, method: Method, handler: Handler, serialize: Any, deserialize: Any) -> None:
        self.call_class = call_class
        self.method = method
        self.handler = handler
        self.serialize = serialize or _unchanged
        self.deserialize = deserialize or _unchanged

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        """Start the call.

        Args:
            request: The message; of a request stream an iterator (async or not), or None to use ``write()``.
            timeout: Seconds.
            metadata: Pairs of key and value; bytes for ``-bin`` keys. A ``user-agent`` is left out, because the channel
                sends its own.
            credentials: Not supported: the outbound layers identify the caller.
            wait_for_ready: Wait for a connection up to the deadline even when every address has just failed.
            compression: ``grpc.Compression.Gzip`` compresses the requests.

        Raises:
            ValueError: There are metadata that cannot be sent (see ``mesh.call.encode_pair``), belong to the transport
                (``te``, ``grpc-timeout``, …), or are more than 32 KiB (``mesh.call.field_bytes``); or credentials.
            TypeError: A key is not text, or a value is neither text nor bytes.
        """
        if credentials is not None:
            raise ValueError("call credentials are not supported: the outbound layers identify the caller")
        pairs = _pairs(metadata) if metadata else []
        call = self.call_class(self, request, Metadata.from_wire(pairs), timeout, current.get())
        if wait_for_ready:
            call.core.wait_for_ready = True
        if compression:
            call.core.compression = "gzip"
        call.start()
        return call


class Channel:
    """A channel of stubs on a handler.

    Args:
        handler: Answers the calls. Its owner closes it.
        contract: Source of the methods' retry safety and timeouts; None if there is none.
    """

    def __init__(self, handler: Handler, contract: Contract | None = None) -> None:
        self._handler = handler
        self._contract = contract

    def unary_unary(
        self, method: str, request_serializer: Serialize = None, response_deserializer: Deserialize = None, **_: Any
    ) -> MultiCallable:
        """Return the callable of a unary method (``/package.Service/Method``)."""
        return self._multi(UnaryUnaryCall, method, request_serializer, response_deserializer)

    def unary_stream(
        self, method: str, request_serializer: Serialize = None, response_deserializer: Deserialize = None, **_: Any
    ) -> MultiCallable:
        """Return the callable of a method that streams responses."""
        return self._multi(UnaryStreamCall, method, request_serializer, response_deserializer)

    def stream_unary(
        self, method: str, request_serializer: Serialize = None, response_deserializer: Deserialize = None, **_: Any
    ) -> MultiCallable:
        """Return the callable of a method that streams requests."""
        return self._multi(StreamUnaryCall, method, request_serializer, response_deserializer)

    def stream_stream(
        self, method: str, request_serializer: Serialize = None, response_deserializer: Deserialize = None, **_: Any
    ) -> MultiCallable:
        """Return the callable of a method that streams both ways."""
        return self._multi(StreamStreamCall, method, request_serializer, response_deserializer)

    async def close(self, grace: float | None = None) -> None:
        """Do nothing: the owner of the handler closes it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Do nothing: see ``close``."""

    def _multi(self, call_class: Any, path: str, serialize: Serialize, deserialize: Deserialize) -> MultiCallable:
        client, server = call_class.kind
        method = self._contract.method(path) if self._contract else None
        if method is None or (method.client_streaming, method.server_streaming) != (client, server):
            service, _, name = path.strip("/").rpartition("/")
            method = Method(
                name, service, f"/{service}/{name}", Empty, Empty, client_streaming=client, server_streaming=server
            )  # the handler sees bytes; the stub knows the message types
        return MultiCallable(call_class, method, self._handler, serialize, deserialize)


_abc: Any = grpc.aio.Channel  # an ABC, which its type stubs do not say
_abc.register(Channel)

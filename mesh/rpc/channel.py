"""The channel: stock generated stubs on a handler. Shaped like ``grpc.aio.Channel``, so stubs do not know the difference.

Each call of a stub becomes a ``Call`` that is given to the handler: a target, usually behind the layers of the outbound
chain. What the calls do is in ``mesh.rpc.calls``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc

from mesh.call import Handler, Metadata, current, encode_pair
from mesh.contract import Contract, Method
from mesh.rpc.calls import UnaryUnaryCall
from mesh.rpc.streaming import StreamStreamCall, StreamUnaryCall, UnaryStreamCall

__all__ = ["Channel", "MultiCallable"]

Serialize: TypeAlias = "Callable[[Any], bytes] | None"
Deserialize: TypeAlias = "Callable[[bytes], Any] | None"


def _as_is(message: Any) -> Any:
    return message


class MultiCallable:
    """One method of a stub: calling it makes a call."""

    __slots__ = ("deserialize", "handler", "make", "method", "serialize")

    def __init__(self, make: Any, method: Method, handler: Handler, serialize: Any, deserialize: Any) -> None:
        self.make = make
        self.method = method
        self.handler = handler
        self.serialize = serialize or _as_is
        self.deserialize = deserialize or _as_is

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - grpc's own signature
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        """Begin the call.

        Args:
            request: The message, or for a streaming request an iterator (async or not), or None to ``write()``.
            timeout: Seconds.
            metadata: Pairs of key and value; bytes for ``-bin`` keys.
            credentials: Not supported: the mesh's own layers say who calls.
            wait_for_ready: Wait for a connection up to the deadline even when every address has just failed.
            compression: ``grpc.Compression.Gzip`` compresses the requests.

        Raises:
            ValueError: Metadata that cannot be sent, or credentials.
        """
        if credentials is not None:
            raise ValueError("call credentials are not supported here; the outbound layers say who calls")
        pairs = [encode_pair(key, value) for key, value in metadata] if metadata else []
        call = self.make(self, request, Metadata.from_wire(pairs), timeout, current.get())
        if wait_for_ready:
            call._core.wait_for_ready = True  # noqa: SLF001
        if compression:
            call._core.compression = "gzip"
        call.start()
        return call


class Channel:
    """A channel of stubs on a handler.

    Args:
        handler: Answers the calls.
        contract: Says which methods may be retried and how long they may take; None if nothing is known.
    """

    def __init__(self, handler: Handler, contract: Contract | None = None) -> None:
        self._handler = handler
        self._contract = contract

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool = False,
    ) -> MultiCallable:
        return self._multi(UnaryUnaryCall, method, request_serializer, response_deserializer)

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool = False,
    ) -> MultiCallable:
        return self._multi(UnaryStreamCall, method, request_serializer, response_deserializer)

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool = False,
    ) -> MultiCallable:
        return self._multi(StreamUnaryCall, method, request_serializer, response_deserializer)

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool = False,
    ) -> MultiCallable:
        return self._multi(StreamStreamCall, method, request_serializer, response_deserializer)

    def _multi(self, make: Any, path: str, serialize: Any, deserialize: Any) -> MultiCallable:
        client, server = make.kind
        method = self._contract.method(path) if self._contract else None
        if method is None or (method.client_streaming, method.server_streaming) != (client, server):
            service, _, name = path.strip("/").rpartition("/")
            method = Method(
                name,
                service,
                f"/{service}/{name}",
                Any,
                Any,
                client_streaming=client,
                server_streaming=server,  # type: ignore[arg-type]
            )
        return MultiCallable(make, method, self._handler, serialize, deserialize)

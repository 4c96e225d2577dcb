"""Context of a function call: the API of the mesh for functions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mesh.call import (
    FIELD_OVERHEAD_BYTES,
    MAX_METADATA_SIZE,
    Call,
    Identity,
    Metadata,
    encode_pair,
    field_bytes,
)
from mesh.errors import FailedPrecondition
from mesh.headers import SERVER, UNTRAILED, is_reserved

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from google.protobuf.message import Message

__all__ = ["Context", "Service", "Transaction"]

StubT = TypeVar("StubT")


class Transaction(Protocol):
    """Transaction on the service's own database, from ``async with context.transaction() as tx``."""

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """Execute an SQLAlchemy statement and return its (buffered) result.

        Raises:
            Unavailable: The database cannot be reached, or its lock was not acquired in time.
            Aborted: Another transaction changed the same data, or an earlier statement failed or was cancelled.
            sqlalchemy.exc.IntegrityError: A constraint was violated. The transaction has ended.
        """

    async def publish(self, event: Message) -> None:
        """Publish an event that is committed with the transaction.

        Raises:
            FailedPrecondition: The contract does not declare that the service publishes this event.
            InvalidArgument: The event violates a rule of the contract, or is too large.
            StatusError: As for ``execute``.
        """


class Service(Protocol):
    """Service context: the API of the mesh outside of a call, as in ``startup``."""

    name: str
    settings: Mapping[str, Any]
    log: logging.Logger

    def stub(self, stub_class: type[StubT]) -> StubT:
        """Return the shared stub of ``stub_class`` on the mesh's channel."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a transaction on the service's database."""

    async def publish(self, event: Message) -> None:
        """Publish an event. Returns when the broker has stored it durably."""


class Context:
    """Context of one call: identity, deadline, metadata, stubs, transactions and events.

    Attributes:
        call: The call itself. Functions rarely need it.
    """

    __slots__ = ("_service", "call")

    def __init__(self, call: Call, service: Service) -> None:
        self.call = call
        self._service = service

    @property
    def service(self) -> str:
        """Name of the service in mesh.toml."""
        return self._service.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the service's code, ``[services.NAME.settings]`` of mesh.toml."""
        return self._service.settings

    @property
    def method(self) -> str:
        """Full path of the method, ``/package.Service/Method``."""
        return str(self.call.method.path)

    @property
    def identity(self) -> Identity | None:
        """Verified user of the call; None for anonymous calls and for services that call without a user."""
        return self.call.identity

    @property
    def caller(self) -> str | None:
        """Verified service of the mesh that made the call; None for a call from outside."""
        return self.call.caller

    @property
    def client_address(self) -> str | None:
        """Address (IPv4 or IPv6, without a port) of the edge's client for whom the call is made.

        Behind a proxy it is that of the client only if ``[edge] trusted_proxies`` names the proxy. None if the call
        came through no edge.
        """
        return self.call.client_address

    @property
    def deadline(self) -> float | None:
        """Absolute deadline in loop time, seconds; None: no deadline."""
        return self.call.deadline

    def remaining(self) -> float | None:
        """Return the seconds until the deadline, 0 if it has passed, or None without a deadline."""
        return self.call.remaining()

    @property
    def metadata(self) -> Metadata:
        """Metadata of the caller: a mapping with bytes for ``-bin`` keys and ``getall`` for repeated keys."""
        return self.call.metadata

    @property
    def log(self) -> logging.Logger:
        """Logger of the service. Its records have the trace and span id."""
        return self._service.log

    def stub(self, stub_class: type[StubT]) -> StubT:
        """Return a stub of another service.

        The stub is the generated one on the mesh's channel. Its calls propagate the trace, the deadline, the user and
        this service's identity. In an ``async def`` function its methods are awaited. In a ``def`` function, which runs
        in a thread, they block and return the result; the class ``LoginBlockingStub`` has their types.

        Raises:
            TypeError: A blocking stub is asked for in an ``async def`` function.
            StatusError: A call of the stub failed: the class of its code (``NotFound``), which is also grpcio's
                ``grpc.aio.AioRpcError``. Not caught, it is no status of this call (docs/functions.md).
        """
        return self._service.stub(stub_class)

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a transaction on the service's database. It commits at the end of the block and rolls back on an error.

        Raises:
            FailedPrecondition: mesh.toml gives this service no database.
            Unavailable: The database cannot be reached.
        """
        return self._service.transaction()

    async def publish(self, event: Message) -> None:
        """Publish an event without a transaction. Returns when the broker has stored it durably."""
        await self._service.publish(event)

    def set_header(self, key: str, value: str | bytes) -> None:
        """Add response metadata that is sent before the first message.

        Raises:
            ValueError: The key or the value cannot be sent (see ``mesh.call.encode_pair``), the key is the
                transport's own (``grpc-status``, ``content-type``, …), or all pairs exceed the size limit: 7168 bytes,
                where each pair counts 32 more than its key and value.
            TypeError: The key is not text, or the value neither text nor bytes.
            FailedPrecondition: The response headers were already sent.
        """
        if self.call.headers_sent:
            raise FailedPrecondition("the response headers were already sent: set them before the first message")
        _add(self.call.headers, key, value, frozenset())

    def set_trailer(self, key: str, value: str | bytes) -> None:
        """Add response metadata that is sent after the last message.

        Raises:
            ValueError: As for ``set_header``; or the key is a field that HTTP does not allow after a message
                (``etag``, ``cache-control``, …; RFC 9110, 6.5.1).
            TypeError: As for ``set_header``.
        """
        _add(self.call.trailers, key, value, UNTRAILED)


_STATUS_SIZE = 1024
"""Bytes of trailers that are reserved for the status."""
_MAX_SIZE = MAX_METADATA_SIZE - _STATUS_SIZE


def _add(pairs: list[tuple[bytes, bytes]], key: str, value: str | bytes, forbidden: frozenset[bytes]) -> None:
    pair = encode_pair(key, value)
    name = pair[0]
    if is_reserved(name) or name in SERVER:
        raise ValueError(f"metadata key {key!r} belongs to the transport; choose another name")
    if name in forbidden:
        raise ValueError(f"metadata key {key!r} is no trailer in HTTP (RFC 9110, 6.5.1); set it with set_header")
    if field_bytes((*pairs, pair)) > _MAX_SIZE:
        raise ValueError(
            f"metadata {key!r} exceeds the size limit: all pairs together may have {_MAX_SIZE} bytes, with "
            f"{FIELD_OVERHEAD_BYTES} more for each pair; send it in a message"
        )
    pairs.append(pair)

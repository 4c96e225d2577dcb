"""What a function sees of the mesh: ``context``, its second argument."""

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
    """A transaction on the service's own database, as ``async with context.transaction() as tx`` gives it."""

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """Execute an SQLAlchemy statement and return its (buffered) result.

        Raises:
            Unavailable: The database cannot be reached, or its lock was not had in time.
            Aborted: Another transaction changed the same data; or a statement before this one was cancelled, or failed.
            sqlalchemy.exc.IntegrityError: A constraint was violated; the transaction is over.
        """

    async def publish(self, event: Message) -> None:
        """Publish an event that commits with the transaction, or not at all.

        Raises:
            FailedPrecondition: The service does not declare that it publishes this.
            StatusError: As for ``execute``.
        """


class Service(Protocol):
    """What the sidecar gives to all functions of one service; ``Context`` is this plus one call."""

    name: str
    settings: Mapping[str, Any]
    log: logging.Logger

    def stub(self, stub_class: type[StubT]) -> StubT:
        """Return the shared stub of ``stub_class`` on the mesh's channel."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a transaction on the service's database."""

    async def publish(self, event: Message) -> None:
        """Publish an event; returns when the broker has it durably."""


class Context:
    """One call, as the function sees it.

    Attributes:
        call: The call behind it; a function rarely needs it.
    """

    __slots__ = ("_service", "call")

    def __init__(self, call: Call, service: Service) -> None:
        self.call = call
        self._service = service

    @property
    def service(self) -> str:
        """The name of the service in mesh.toml."""
        return self._service.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """``[services.NAME.settings]`` of mesh.toml: what the service's own code is configured with."""
        return self._service.settings

    @property
    def method(self) -> str:
        """The full path of the method, ``/package.Service/Method``."""
        return str(self.call.method.path)

    @property
    def identity(self) -> Identity | None:
        """The user for whom the call is made, verified here; None for anonymous calls and for services on their own."""
        return self.call.identity

    @property
    def caller(self) -> str | None:
        """The service of the mesh that made the call, verified here; None for a call from outside."""
        return self.call.caller

    @property
    def deadline(self) -> float | None:
        """When the answer is worthless, in ``loop.time()`` seconds; None if never."""
        return self.call.deadline

    def remaining(self) -> float | None:
        """Return the seconds left until the deadline, or None without one."""
        return self.call.remaining()

    @property
    def metadata(self) -> Metadata:
        """The caller's metadata: a mapping; bytes for ``-bin`` keys; ``getall`` for repeated ones."""
        return self.call.metadata

    @property
    def log(self) -> logging.Logger:
        """The service's logger; records carry the trace and span id."""
        return self._service.log

    def stub(self, stub_class: type[StubT]) -> StubT:
        """Return a stub of another service.

        The stub is the generated one, unchanged, on the mesh's channel: its calls carry the trace, the time left, the
        user and this service's identity. In a ``def`` function (which runs in a thread) its methods block and return
        their result; in an ``async def`` function they are awaited.

        Raises:
            grpc.aio.AioRpcError: From the stub's calls, when they fail.
        """
        return self._service.stub(stub_class)

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a transaction on the service's own database: commits at the end of the block, rolls back on any error.

        Raises:
            FailedPrecondition: mesh.toml gives this service no database.
            Unavailable: The database cannot be reached.
        """
        return self._service.transaction()

    async def publish(self, event: Message) -> None:
        """Publish an event by itself; returns when the broker has it durably."""
        await self._service.publish(event)

    def set_header(self, key: str, value: str | bytes) -> None:
        """Add response metadata that goes before the first message.

        Raises:
            ValueError: The key or the value cannot be sent (see ``mesh.call.encode_pair``), the key is the
                transport's own (``grpc-status``, ``content-type``, …), or there is no room for more: 7168 bytes in all,
                where each pair counts 32 more than its key and value.
            TypeError: The key is not text, or the value neither text nor bytes.
            FailedPrecondition: The headers have gone already.
        """
        if self.call.headers_sent:
            raise FailedPrecondition("the response headers have gone: set them before the first message")
        _add(self.call.headers, key, value, frozenset())

    def set_trailer(self, key: str, value: str | bytes) -> None:
        """Add response metadata that goes after the last message.

        Raises:
            ValueError: As for ``set_header``; or the key is a field that HTTP does not allow after a message
                (``etag``, ``cache-control``, …; RFC 9110, 6.5.1).
            TypeError: As for ``set_header``.
        """
        _add(self.call.trailers, key, value, UNTRAILED)


_STATUS_ROOM = 1024
"""Bytes of trailers that are kept for the status."""
_MOST = MAX_METADATA_SIZE - _STATUS_ROOM


def _add(pairs: list[tuple[bytes, bytes]], key: str, value: str | bytes, unfit: frozenset[bytes]) -> None:
    pair = encode_pair(key, value)
    name = pair[0]
    if is_reserved(name) or name in SERVER:
        raise ValueError(f"metadata key {key!r} belongs to the transport; choose another name")
    if name in unfit:
        raise ValueError(f"metadata key {key!r} is no trailer in HTTP (RFC 9110, 6.5.1); set it with set_header")
    if field_bytes((*pairs, pair)) > _MOST:
        raise ValueError(
            f"metadata {key!r} finds no room: all of it together may be {_MOST} bytes, counting "
            f"{FIELD_OVERHEAD_BYTES} more for each pair; send it in a message"
        )
    pairs.append(pair)

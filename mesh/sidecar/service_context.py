"""Service context: the ``mesh.context.Service`` behind every ``Context``, one for all functions of a service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mesh.call import current
from mesh.errors import FailedPrecondition
from mesh.message_methods import descriptor_of

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from mesh.context import Transaction

__all__ = ["EventPublisher", "ServiceContext", "TransactionSource"]

StubT = TypeVar("StubT")


class TransactionSource(Protocol):
    """The part of the service's database that functions use (``mesh.database.Database``)."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a transaction."""


class EventPublisher(Protocol):
    """Publishes events that belong to no transaction (``mesh.events.publish.publisher.Publisher``)."""

    async def publish(self, message: Message) -> None:
        """Publish an event; returns when the broker has stored it durably."""


class ServiceContext:
    """One service, as its functions see it.

    Args:
        name: Its name in mesh.toml.
        channel: The channel that stubs are made on, shaped like ``grpc.aio.Channel``.
        blocking: The channel for ``def`` functions, shaped like ``grpc.Channel``.
        database: Its database, or None.
        settings: ``[services.NAME.settings]``.
        publisher: Publishes its events; None for a service without events.
    """

    def __init__(
        self,
        name: str,
        *,
        channel: Any,
        blocking: Any,
        database: TransactionSource | None = None,
        settings: Mapping[str, Any] = MappingProxyType({}),
        publisher: EventPublisher | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.log = logging.getLogger(f"services.{name}")
        self._database = database
        self._publisher = publisher
        self._channel = channel
        self._blocking = blocking
        self._stubs: dict[type, Any] = {}
        self._blocking_stubs: dict[type, Any] = {}
        self._loop = asyncio._get_running_loop()  # noqa: SLF001 - None if no event loop runs here

    def stub(self, stub_class: type[StubT]) -> StubT:
        """Return the shared stub: an awaitable one on the service's event loop, a blocking one anywhere else.

        A ``def`` function may run an event loop of its own (``asyncio.run``). There the stub blocks too.

        Raises:
            TypeError: A blocking stub is asked for on the service's event loop, which it would not block.
        """
        running = asyncio._get_running_loop()  # noqa: SLF001 - get_running_loop without the exception
        if running is None or (self._loop is not None and running is not self._loop):
            stubs, channel = self._blocking_stubs, self._blocking
        else:
            stubs, channel = self._stubs, self._channel
        found = stubs.get(stub_class)
        if found is None:
            if channel is self._channel and getattr(stub_class, "is_blocking", False):
                name = stub_class.__name__
                awaited = name.replace("BlockingStub", "Stub")
                raise TypeError(f"{name} is for def functions; in an async def function await the calls of {awaited}")
            found = stubs[stub_class] = stub_class(channel)  # type: ignore[call-arg]
        return found

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a transaction on the service's database.

        Raises:
            FailedPrecondition: The service has no database.
        """
        if self._database is None:
            raise FailedPrecondition(
                f"service {self.name} has no database: set database in [services.{self.name}] of mesh.toml"
            )
        call = current.get()
        if call is None or call.delivery is None:
            return self._database.transaction()
        from mesh.events.consume.inbox import guarded  # noqa: PLC0415 - imports SQLAlchemy, for services with a database only

        return guarded(self._database.transaction())

    async def publish(self, event: Message) -> None:
        """Publish an event; returns when the broker has stored it durably.

        Raises:
            FailedPrecondition: The contract does not let this service publish it.
            InvalidArgument: The event is too large.
            Unavailable: The broker cannot be reached, or did not respond; then it may have the event all the same.
            ResourceExhausted: The broker is full.
        """
        if self._publisher is None:
            raise FailedPrecondition(
                f"{descriptor_of(event).full_name} was not published: service {self.name} declares no events; "
                f'add publishes: "{descriptor_of(event).full_name}" to its options in the contract'
            )
        await self._publisher.publish(event)

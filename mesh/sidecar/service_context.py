"""What the sidecar gives to all functions of one service: the ``mesh.context.Service`` behind every ``Context``."""

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

__all__ = ["Database", "Publisher", "ServiceContext"]

StubT = TypeVar("StubT")


class Database(Protocol):
    """The service's database, as far as functions need it (``mesh.database.Database``)."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a transaction."""


class Publisher(Protocol):
    """Where events go that belong to no transaction (``mesh.events.publish.publisher.Publisher``)."""

    async def publish(self, message: Message) -> None:
        """Publish an event; returns when the broker has it durably."""


class ServiceContext:
    """One service of the mesh, as its functions see it.

    Args:
        name: Its name in mesh.toml.
        channel: The channel that stubs are made on, shaped like ``grpc.aio.Channel``.
        blocking: The channel for ``def`` functions, shaped like ``grpc.Channel``.
        database: Its database, or None.
        settings: ``[services.NAME.settings]``.
        publisher: Where its events go, or None when it publishes none.
    """

    def __init__(
        self,
        name: str,
        *,
        channel: Any,
        blocking: Any,
        database: Database | None = None,
        settings: Mapping[str, Any] = MappingProxyType({}),
        publisher: Publisher | None = None,
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
        self._loop = asyncio._get_running_loop()  # noqa: SLF001 - None where nothing is hosted

    def stub(self, stub_class: type[StubT]) -> StubT:
        """Return the shared stub: one to await on the service's event loop, one that blocks anywhere else.

        A ``def`` function may run an event loop of its own (``asyncio.run``); calls block that as any other function.
        """
        running = asyncio._get_running_loop()  # noqa: SLF001 - get_running_loop without the exception
        if running is None or (self._loop is not None and running is not self._loop):
            stubs, channel = self._blocking_stubs, self._blocking
        else:
            stubs, channel = self._stubs, self._channel
        found = stubs.get(stub_class)
        if found is None:
            found = stubs[stub_class] = stub_class(channel)  # type: ignore[call-arg]
        return found

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a transaction on the service's database.

        Raises:
            FailedPrecondition: It has none.
        """
        if self._database is None:
            raise FailedPrecondition(
                f"service {self.name} has no database: set database in [services.{self.name}] of mesh.toml"
            )
        call = current.get()
        if call is None or call.delivery is None:
            return self._database.transaction()
        from mesh.events.consume.inbox import guarded  # noqa: PLC0415 - SQLAlchemy, which only who has a database loads

        return guarded(self._database.transaction())

    async def publish(self, event: Message) -> None:
        """Publish an event; returns when the broker has it durably.

        Raises:
            FailedPrecondition: The contract does not let this service publish it.
            InvalidArgument: It is too large.
            Unavailable: The broker is away, or did not answer; then it may have the event all the same.
            ResourceExhausted: The broker is full.
        """
        if self._publisher is None:
            raise FailedPrecondition(
                f"{descriptor_of(event).full_name} was not published: service {self.name} declares no events; "
                f'add publishes: "{descriptor_of(event).full_name}" to its options in the contract'
            )
        await self._publisher.publish(event)

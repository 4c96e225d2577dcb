"""Service context: stubs, transactions and events as functions see them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest
from conformance.v1 import conformance_pb2 as pb
from odd.v1 import extended_pb2

from mesh.errors import FailedPrecondition
from mesh.sidecar import ServiceContext


class Stub:
    def __init__(self, channel: Any) -> None:
        self.channel = channel


class OtherStub(Stub):
    pass


async def test_one_stub_a_class_and_a_blocking_one_in_threads() -> None:
    service = ServiceContext("login", channel="async", blocking="blocking")
    assert service.stub(Stub).channel == "async"
    assert service.stub(Stub) is service.stub(Stub)
    assert isinstance(service.stub(OtherStub), OtherStub)
    first = await asyncio.to_thread(service.stub, Stub)
    assert first.channel == "blocking"
    assert await asyncio.to_thread(service.stub, Stub) is first


async def test_a_service_without_a_database_says_what_to_set() -> None:
    service = ServiceContext("login", channel=None, blocking=None)
    with pytest.raises(FailedPrecondition, match=r"service login has no database: set database in \[services\.login\]"):
        service.transaction()


async def test_a_transaction_is_the_database_s() -> None:
    class Database:
        @asynccontextmanager
        async def transaction(self) -> Any:
            yield "tx"

    async with ServiceContext("login", channel=None, blocking=None, database=Database()).transaction() as tx:  # type: ignore[arg-type]
        assert tx == "tx"


async def test_an_event_without_a_broker_is_refused() -> None:
    service = ServiceContext("login", channel=None, blocking=None)
    with pytest.raises(FailedPrecondition, match=r"EchoRequest was not published: service login declares no"):
        await service.publish(pb.EchoRequest())
    with pytest.raises(FailedPrecondition, match=r"odd\.v1\.Methods was not published"):
        await service.publish(extended_pb2.Methods())  # it has a field called DESCRIPTOR

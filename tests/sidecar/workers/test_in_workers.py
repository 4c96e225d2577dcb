"""Functions in worker processes do what they do elsewhere: the suite ``behaviour``, with one worker for all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from behaviour import *  # noqa: F403 - the suite
from conformance.v1 import conformance_pb2_grpc
from hosting import pool_of, working

from mesh.contract import Contract

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(params=["apps.echo", "apps.echo_sync"], scope="module", loop_scope="module")
async def stub(request: pytest.FixtureRequest, contract: Contract) -> AsyncIterator[conformance_pb2_grpc.EchoStub]:
    unlimited = [("grpc.max_receive_message_length", -1)]
    pool = pool_of(contract, request.param, min=1, max=1, concurrency=1000)
    async with working(contract, pool) as address, grpc.aio.insecure_channel(address, unlimited) as channel:
        yield conformance_pb2_grpc.EchoStub(channel)

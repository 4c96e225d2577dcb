"""Functions in worker processes behave as elsewhere: the suite ``behaviour``.

One worker runs all of it. Workers that serve one call at a time run the ``def`` functions again, in the main thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from behaviour import *  # noqa: F403 - the suite
from conformance.v1 import conformance_pb2_grpc
from hosting import pool_of, working

from mesh.contract.model import Contract

pytestmark = pytest.mark.asyncio(loop_scope="module")


SHARED, ALONE = {"min": 1, "max": 1, "concurrency": 1000}, {"min": 1, "max": 4, "concurrency": 1}


@pytest_asyncio.fixture(
    params=[("apps.echo", SHARED), ("apps.echo_sync", SHARED), ("apps.echo_sync", ALONE)],
    ids=["echo", "echo_sync", "echo_sync alone"],
    scope="module",
    loop_scope="module",
)
async def stub(request: pytest.FixtureRequest, contract: Contract) -> AsyncIterator[conformance_pb2_grpc.EchoStub]:
    unlimited = [("grpc.max_receive_message_length", -1)]
    module, spec = request.param
    pool = pool_of(contract, module, **spec)
    async with working(contract, pool) as address, grpc.aio.insecure_channel(address, unlimited) as channel:
        yield conformance_pb2_grpc.EchoStub(channel)

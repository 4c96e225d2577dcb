"""Fixtures of real nats-servers: one for each test process, emptied after each test, and servers of single tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import nats
import pytest
from broker_process import BrokerProcess


@pytest.fixture(scope="session")
def nats_server() -> Iterator[BrokerProcess]:
    """The server that tests share; nobody kills it."""
    made = BrokerProcess()
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def nats_url(nats_server: BrokerProcess) -> AsyncIterator[str]:
    """The URL of the shared server, which holds nothing."""
    yield nats_server.url
    client = await nats.connect(nats_server.url)
    js = client.jetstream()
    for stream in await js.streams_info():
        await js.delete_stream(stream.config.name)
    await client.close()


@pytest.fixture
def new_nats() -> Iterator[Callable[..., BrokerProcess]]:
    """Starts a server of the test's own, to be killed and started again."""
    made: list[BrokerProcess] = []

    def make(extra: str = "") -> BrokerProcess:
        made.append(BrokerProcess(extra))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.stop()

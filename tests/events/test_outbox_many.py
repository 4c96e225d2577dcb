"""Outbox of 100,000 rows, as after a night without the broker."""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from broker_process import BrokerProcess
from events.v1 import events_pb2 as pb
from publishing import shop

from mesh.contract.model import Contract

ROWS = 100_000
NUMBERS = {
    "sqlite": "WITH RECURSIVE many (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many WHERE n < 100000)",
    "postgresql": "WITH many AS (SELECT n FROM generate_series(1, 100000) AS n)",
}
ROW = """{} INSERT INTO mesh_outbox (id, subject, headers, data, created)
SELECT n, 'events.many.0.k' || (n - n / 997 * 997), '{{"Nats-Msg-Id"\\: "' || n || '"}}', CAST(CAST(n AS TEXT) AS {}), 1
FROM many"""
BYTES = {"sqlite": "BLOB", "postgresql": "BYTEA"}


def resident() -> int:
    """Return the most memory that this process ever had, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_it_is_emptied_in_order_while_calls_go_on(
    contract: Contract,
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    new_nats: Callable[..., BrokerProcess],
) -> None:
    url = request.getfixturevalue("new_postgres")() if kind == "postgresql" else f"sqlite:///{tmp_path}/many.db"
    server = new_nats()
    async with shop(contract, url, server.url, relays=False) as made:
        await made.sql(ROW.format(NUMBERS[kind], BYTES[kind]))
        assert await made.waiting() == ROWS
        link = await made.broker.ready()
        memory, calls, slowest = resident(), 0, 0.0
        made.relay.start()
        while not await made.empty():
            began = time.monotonic()
            await made.publish(pb.Noted(text="calls go on meanwhile"))
            slowest = max(slowest, time.monotonic() - began)
            calls += 1
            await asyncio.sleep(0.05)
        assert slowest < 5
        assert resident() - memory < 100 * 2**20
        assert (await link.js.stream_info("EVENTS")).state.messages == ROWS + calls
        numbers = []
        for sequence in sorted(random.sample(range(1, ROWS + 1), 300)):
            message = await link.js.get_msg("EVENTS", sequence, direct=True)
            if message.subject.startswith("events.many."):
                numbers.append(int(message.data or b""))
        assert numbers == sorted(numbers)
        assert len(numbers) > 200

"""Password hashes: the queue before the cores is bounded by time."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mesh import ResourceExhausted
from services.login.passwords import HashPool


async def until(condition: threading.Event) -> None:
    await asyncio.to_thread(condition.wait, 10)


async def test_a_hash_that_would_wait_too_long_is_refused_and_the_others_are_made() -> None:
    pool, go = HashPool(1), threading.Event()
    await pool.run(None, lambda: threading.Event().wait(0.01))  # now it knows how long one takes
    begun = threading.Event()

    def work() -> str:
        begun.set()
        go.wait(10)
        return "made"

    first = asyncio.ensure_future(pool.run(None, work))
    await until(begun)
    with pytest.raises(ResourceExhausted, match="too many passwords") as refused:
        await pool.run(0.0, work)
    assert refused.value.details
    go.set()
    assert await first == "made"
    assert await pool.run(60.0, lambda: "again") == "again"


async def test_a_hash_that_waits_is_given_up_with_its_call() -> None:
    pool, go, begun = HashPool(1), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(10)

    first = asyncio.ensure_future(pool.run(None, work))
    await until(begun)
    ran: list[int] = []
    second = asyncio.ensure_future(pool.run(None, ran.append, 2))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    go.set()
    await first
    assert await pool.run(None, lambda: "after") == "after"
    assert ran == []

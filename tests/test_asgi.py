"""The reader that discards the rest of a request body: it ends with the body, the client, its size and its timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from mesh import asgi
from mesh.asgi import AsgiEvent, Receive, discard_body

PIECE = b"x" * 1024


def receiving(events: Iterator[AsgiEvent]) -> Receive:
    async def receive() -> AsgiEvent:
        return next(events)

    return receive


def piece(*, more: bool) -> AsgiEvent:
    return {"type": "http.request", "body": PIECE, "more_body": more}


@pytest.mark.parametrize("last", [piece(more=False), {"type": "http.request"}, {"type": "http.disconnect"}])
async def test_it_reads_to_the_end_of_the_body_or_of_the_client(last: AsgiEvent) -> None:
    events = iter([piece(more=True), last, piece(more=True)])
    await discard_body(receiving(events))
    assert list(events) == [piece(more=True)]


async def test_it_reads_no_more_than_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "DISCARD_SIZE", 2 * len(PIECE))
    events = iter([piece(more=True)] * 5)
    await discard_body(receiving(events))
    assert len(list(events)) == 3


async def test_a_silent_client_is_waited_for_until_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "DISCARD_TIMEOUT", 0.01)

    async def receive() -> AsgiEvent:
        await asyncio.Event().wait()
        raise AssertionError

    async with asyncio.timeout(10):
        await discard_body(receive)

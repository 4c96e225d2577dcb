"""Streams on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import nats
import pytest
from broker_process import BrokerProcess
from nats.aio.client import Client

from mesh.events.broker import streams
from mesh.events.broker.nats_connection import NatsConnection
from mesh.events.broker.streams import Retention, StreamError


async def connected(client: Client) -> NatsConnection:
    connection = NatsConnection(client)
    await connection.open()
    return connection


async def test_they_are_made_once_and_stay(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await nats.connect(nats_url)
    js, connection = client.jetstream(), await connected(client)
    await asyncio.gather(*(streams.ensure(connection, Retention()) for _ in range(4)))
    assert sorted(one.config.name or "" for one in await js.streams_info()) == [
        "CHANGES",
        "DEAD",
        "EVENTS",
        "SCHEDULES",
        "TRIES",
    ]
    await js.publish("events.a.0._", b"kept")
    made = {one.config.name: one.created for one in await js.streams_info()}

    request = connection.request

    async def checked(operation: str, body: object = None) -> dict[str, object]:
        assert operation.startswith("STREAM.INFO."), "nothing has changed"
        return await request(operation, body)

    monkeypatch.setattr(connection, "request", checked)
    await streams.ensure(connection, Retention())
    assert {one.config.name: one.created for one in await js.streams_info()} == made
    assert (await js.stream_info("EVENTS")).state.messages == 1
    await client.close()


async def test_another_retention_updates_them(nats_url: str) -> None:
    client = await nats.connect(nats_url)
    js, connection = client.jetstream(), await connected(client)
    await streams.ensure(connection, Retention())
    await js.publish("events.a.0._", b"kept")
    await streams.ensure(connection, Retention(age=0, dead=60, size=2**20))
    info = await js.stream_info("EVENTS")
    assert (info.config.max_age, info.config.max_bytes, info.state.messages) == (0, 2**20, 1)
    assert (await js.stream_info("DEAD")).config.max_age == 60
    await client.close()


async def test_what_the_server_refuses_is_said(nats_url: str) -> None:
    client = await nats.connect(nats_url)
    with pytest.raises(StreamError, match=r"stream EVENTS: .*replicas > 1 not supported"):
        await streams.ensure(await connected(client), Retention(replicas=3))
    await client.close()


async def test_what_was_acknowledged_survives_a_kill(new_nats: Callable[..., BrokerProcess]) -> None:
    server = new_nats()
    client = await nats.connect(server.url)
    await streams.ensure(await connected(client), Retention())
    for number in range(50):
        await client.jetstream().publish("events.a.0._", str(number).encode())
    await client.close()
    server.kill()
    server.start()
    client = await nats.connect(server.url)
    assert (await client.jetstream().stream_info("EVENTS")).state.messages == 50
    await client.close()

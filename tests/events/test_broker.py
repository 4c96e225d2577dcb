"""Broker client with a real server: storing, refusals, loss of the connection and reconnection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import nats.errors
import pytest
from broker_process import BrokerProcess

from mesh.errors import InvalidArgument, ResourceExhausted, Unavailable
from mesh.events.broker.broker import Broker, Settings
from mesh.events.broker.nats_connection import Outgoing
from mesh.events.broker.streams import Retention
from mesh.events.cloudevents import Event


def event(key: str = "ada", data: bytes = b"", **others: str) -> Event:
    return Event(
        id=others.get("id") or str(uuid4()), type="a.v1.Made", source="a", key=key, time=datetime.now(UTC), data=data
    )


def outgoing(one: Event) -> Outgoing:
    return Outgoing(one.subject, one.to_headers(), one.data)


@asynccontextmanager
async def connected(url: str, **settings: object) -> AsyncIterator[Broker]:
    broker = Broker(Settings(urls=(url,), **settings), "test")  # type: ignore[arg-type]
    broker.start()
    try:
        async with asyncio.timeout(10):
            await broker.ready()
        yield broker
    finally:
        await broker.stop()


async def held(broker: Broker, stream: str = "EVENTS") -> list[bytes]:
    link = await broker.ready()
    info = await link.js.stream_info(stream)
    return [
        (await link.js.get_msg(stream, sequence, direct=True)).data or b""
        for sequence in range(info.state.first_seq, info.state.last_seq + 1)
    ]


async def test_an_event_is_stored_as_it_is(nats_url: str) -> None:
    async with connected(nats_url) as broker:
        one = event(data=b"\x0a\x03ada")
        await broker.publish(one)
        link = await broker.ready()
        message = await link.js.get_msg("EVENTS", 1, direct=True)
        assert (message.subject, message.data) == (one.subject, one.data)
        assert message.headers is not None
        assert Event.from_message(message.headers, message.data or b"") == one


async def test_what_comes_at_the_same_time_is_stored_in_its_order(nats_url: str) -> None:
    async with connected(nats_url) as broker:
        await asyncio.gather(*(broker.publish(event(data=str(number).encode())) for number in range(2500)))
        assert await held(broker) == [str(number).encode() for number in range(2500)]


async def test_the_same_again_is_stored_once(nats_url: str) -> None:
    """Also within a batch, which the server refuses as a whole then."""
    events = [event(data=str(number).encode()) for number in range(20)]
    async with connected(nats_url) as broker:
        link = await broker.ready()
        messages = [outgoing(one) for one in events]
        assert await link.store(messages[:12]) == (12, None)
        assert await link.store(messages[8:]) == (12, None)
        assert await link.store(messages[3:5]) == (2, None)
        assert await held(broker) == [one.data for one in events]


async def test_a_full_broker_refuses_and_nothing_jumps_the_queue(nats_url: str) -> None:
    async with connected(nats_url, retention=Retention(size=100_000)) as broker:
        link = await broker.ready()
        messages = [outgoing(event(data=str(number).encode() + b"x" * 5000)) for number in range(40)]
        number, error = await link.store(messages)
        assert 10 < number < 20
        assert isinstance(error, ResourceExhausted)
        assert await held(broker) == [message.data for message in messages[:number]]
        with pytest.raises(ResourceExhausted, match="the event broker is full"):
            await broker.publish(event(data=b"x" * 9000))


async def test_one_that_is_too_large_harms_no_other(nats_url: str) -> None:
    async with connected(nats_url) as broker:
        outcomes = await asyncio.gather(
            *(broker.publish(event(data=data)) for data in (b"a", b"x" * 1_100_000, b"b")), return_exceptions=True
        )
        assert isinstance(outcomes[1], InvalidArgument)
        assert outcomes[::2] == [None, None]
        assert await held(broker) == [b"a", b"b"]


@pytest.mark.parametrize("number", [1, 5, 20])
async def test_headers_count(nats_url: str, number: int) -> None:
    """A message of the maximum size is stored; one byte more is refused and ends no connection."""
    async with connected(nats_url) as broker:
        link = await broker.ready()
        plain = outgoing(event())
        block = sum(len(f"{name}: {value}\r\n") for name, value in plain.headers.items()) + len("NATS/1.0\r\n\r\n")
        fits = plain._replace(data=b"x" * (link.largest - block))
        fewer = [outgoing(event(data=b"small")) for _ in range(number - 1)]
        assert await link.store([*fewer, fits]) == (number, None)
        long = outgoing(event(key="\u20ac" * 130_000))
        stored, error = await link.store([*[outgoing(event()) for _ in fewer], long, outgoing(event())])
        assert stored == number - 1
        assert isinstance(error, InvalidArgument)
        more = fits._replace(data=fits.data + b"x")
        (error,) = await link.each([more])
        assert isinstance(error, InvalidArgument)
        await broker.publish(event(data=b"later"))
        assert await broker.ready() is link
        assert not link.closed.is_set()


async def test_an_acknowledgement_that_says_nothing_fails_its_event_alone(nats_url: str) -> None:
    """The server answers the first message of a batch, which nobody goes on with, with an empty acknowledgement."""
    async with connected(nats_url) as broker:
        strange = outgoing(event())
        strange = strange._replace(headers={**strange.headers, "Nats-Batch-Id": "abc", "Nats-Batch-Sequence": "1"})
        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(
                broker.store(strange), broker.publish(event(data=b"a")), return_exceptions=True
            )
        assert isinstance(outcomes[0], Unavailable)
        assert outcomes[1] is None
        assert await held(broker) == [b"a"]


@pytest.mark.parametrize("others", [1, 20])
async def test_a_message_that_cannot_even_be_written_holds_up_nobody(
    nats_url: str, caplog: pytest.LogCaptureFixture, others: int
) -> None:
    """Those that share its batch are told; what comes later is stored."""
    async with connected(nats_url) as broker:
        bad = outgoing(event())._replace(headers={"half-a-pair": "\ud800"})
        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(
                broker.store(bad), *(broker.publish(event()) for _ in range(others)), return_exceptions=True
            )
            await broker.publish(event(data=b"later"))
        assert {type(one) for one in outcomes} == {Unavailable}
        assert (await held(broker))[-1] == b"later"
    assert "publications failed" in caplog.text


async def test_away_is_unavailable_after_a_moment() -> None:
    broker = Broker(Settings(urls=("nats://127.0.0.1:1",)), "test")
    broker.start()
    with pytest.raises(Unavailable, match="the event broker cannot be reached"):
        await asyncio.wait_for(broker.publish(event()), 4)
    await broker.stop()


async def test_it_comes_back(new_nats: Callable[..., BrokerProcess], caplog: pytest.LogCaptureFixture) -> None:
    server = new_nats()
    async with connected(server.url) as broker:
        await broker.publish(event(data=b"before"))
        link = await broker.ready()
        server.kill()
        await asyncio.wait_for(link.closed.wait(), 5)
        with pytest.raises(Unavailable):
            await broker.publish(event())
        server.start()
        async with asyncio.timeout(10):
            assert await broker.ready() is not link
        await broker.publish(event(data=b"after"))
        assert await held(broker) == [b"before", b"after"]
    assert "the event broker went away" in caplog.text


async def test_a_connection_that_breaks_under_unsent_messages_is_noticed(nats_url: str) -> None:
    """nats-py 2.16: what is left to send makes its close fail, and nobody is told."""
    host, port = nats_url.removeprefix("nats://").split(":")
    open_: set[asyncio.StreamWriter] = set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, on = await asyncio.open_connection(host, int(port))
        open_.update((writer, on))
        await asyncio.gather(pass_on(reader, on), pass_on(back, writer))
        open_.difference_update((writer, on))

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as proxy:
        address = "{}:{}".format(*proxy.sockets[0].getsockname())
        async with connected(f"nats://{address}") as broker:
            first = await broker.ready()

            async def flood() -> None:
                with contextlib.suppress(nats.errors.Error, OSError):
                    while not first.client.is_closed:
                        await first.client.publish("nobody", b"x")
                        await asyncio.sleep(0)

            floods = [asyncio.create_task(flood()) for _ in range(50)]
            await asyncio.sleep(0)
            for writer in list(open_):
                writer.transport.abort()
            await asyncio.wait(floods)
            async with asyncio.timeout(5):
                await first.closed.wait()
                await broker.publish(event())
            assert await broker.ready() is not first


async def test_what_is_acknowledged_while_the_broker_is_killed_is_not_lost(
    new_nats: Callable[..., BrokerProcess],
) -> None:
    server = new_nats()
    async with connected(server.url) as broker:
        acknowledged: list[bytes] = []

        async def work(worker: int) -> None:
            for number in range(10_000):
                name = f"{worker}-{number}".encode()
                try:
                    await broker.publish(event(data=name))
                except Unavailable:
                    return
                acknowledged.append(name)

        workers = [asyncio.create_task(work(worker)) for worker in range(20)]
        while len(acknowledged) < 500:  # noqa: ASYNC110 - until there is a load
            await asyncio.sleep(0.005)
        server.kill()
        async with asyncio.timeout(10):
            await asyncio.gather(*workers)
        server.start()
        assert not set(acknowledged) - set(await held(broker))


@pytest.mark.parametrize(
    ("extra", "user", "settings"),
    [
        ("authorization { user: u, password: 'p:@/' }", "u:p%3A%40%2F@", {}),
        ("authorization { user: u, password: p }", "", {"user": "u", "password": "p"}),
        ("authorization { token: t }", "t@", {}),
        ("authorization { token: t }", "", {"token": "t"}),
    ],
)
async def test_who_this_is(
    new_nats: Callable[..., BrokerProcess], extra: str, user: str, settings: dict[str, str]
) -> None:
    server = new_nats(extra)
    async with connected(server.url.replace("//", f"//{user}"), **settings) as broker:
        await broker.publish(event())


async def test_an_nkey(new_nats: Callable[..., BrokerProcess], tmp_path: Path) -> None:
    import nkeys

    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
    (tmp_path / "seed").write_bytes(seed)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    server = new_nats(f"authorization {{ users: [{{ nkey: {public} }}] }}")
    async with connected(server.url, nkey=str(tmp_path / "seed")) as broker:
        await broker.publish(event())


async def test_a_wrong_password_is_said_once_and_never_shown(
    new_nats: Callable[..., BrokerProcess], caplog: pytest.LogCaptureFixture
) -> None:
    server = new_nats("authorization { user: u, password: p }")
    broker = Broker(Settings(urls=(server.url.replace("//", "//u:wrong-one@"),)), "test")
    broker.start()
    async with asyncio.timeout(10):
        while "cannot be used" not in caplog.text:  # noqa: ASYNC110 - a log line is no event
            await asyncio.sleep(0.02)
    await broker.stop()
    assert "Authorization Violation" in caplog.text
    assert "wrong-one" not in caplog.text
    assert caplog.text.count("cannot be used") == 1


@pytest.mark.parametrize("wrong", ["a port that is none", "a peer that speaks something else"])
async def test_what_is_no_broker_does_not_end_the_search_for_one(
    nats_url: str, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 200_000)  # a line longer than a stream's reader takes
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as peer:
        port = peer.sockets[0].getsockname()[1] if "peer" in wrong else "none"
        broker = Broker(Settings(urls=(f"nats://127.0.0.1:{port}", nats_url)), "test")
        broker.start()
        try:
            await asyncio.wait_for(broker.publish(event()), 10)
        finally:
            await broker.stop()
    assert f"the event broker cannot be used: nats://127.0.0.1:{port}: " in caplog.text
    assert "Client.connect must be called first" not in caplog.text


async def test_a_seed_that_comes_later_is_found(
    new_nats: Callable[..., BrokerProcess], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import nkeys

    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
    server = new_nats(
        f"authorization {{ users: [{{ nkey: {nkeys.from_seed(bytearray(seed)).public_key.decode()} }}] }}"
    )
    broker = Broker(Settings(urls=(server.url,), nkey=str(tmp_path / "seed")), "test")
    broker.start()
    try:
        async with asyncio.timeout(10):
            while "cannot be used" not in caplog.text:  # noqa: ASYNC110 - a log line is no event
                await asyncio.sleep(0.02)
            (tmp_path / "seed").write_bytes(seed)
            await broker.ready()
    finally:
        await broker.stop()
    assert f"No such file or directory: '{tmp_path / 'seed'}'" in caplog.text


async def test_certificates_that_are_missing_are_named(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker(Settings(urls=("tls://127.0.0.1:1",), ca="/missing/ca.pem"), "test")
    broker.start()
    with pytest.raises(Unavailable, match="the event broker cannot be reached"):
        await asyncio.wait_for(broker.publish(event()), 4)
    await broker.stop()
    assert "TLS with /missing/ca.pem: [Errno 2] No such file or directory" in caplog.text

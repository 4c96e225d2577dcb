"""Rights of each component at a real nats-server: the mesh's own way through it, and everything else denied."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nats.errors
import pytest
from broker_process import BrokerProcess
from delivering import CLOCK, RECORDER, delivering, happened, publish, until
from publishing import SHOP

from mesh.contract.model import Contract
from mesh.errors import StatusError
from mesh.events.broker import authorization, nkey_files
from mesh.events.broker.authorization import User
from mesh.events.broker.broker import Broker, Settings, inbox_of
from mesh.events.broker.nats_connection import BROKER_ERRORS, DeniedError, Outgoing
from mesh.events.broker.streams import Retention
from mesh.events.consume.consumers import ConsumerError, consumers_of, ensure
from mesh.events.rights import EVERYTHING, service_rights

SERVICES = {"recorder": [RECORDER], "clock": [CLOCK], "shop": [SHOP]}


@dataclass
class Closed:
    """A closed server, and its keys."""

    server: BrokerProcess
    keys: Path

    def settings(self, name: str, retention: Retention | None = None) -> Settings:
        return Settings(
            urls=(self.server.url,),
            nkey=str(nkey_files.path_of(self.keys, name)),
            inbox=inbox_of(name),
            retention=retention or Retention(),
        )

    @asynccontextmanager
    async def connected(self, name: str, retention: Retention | None = None) -> AsyncIterator[Broker]:
        broker = Broker(self.settings(name, retention), name)
        broker.start()
        try:
            await asyncio.wait_for(broker.ready(), 10)
            yield broker
        finally:
            await broker.stop()


@pytest.fixture
def closed(contract: Contract, new_nats: Callable[..., BrokerProcess], tmp_path: Path) -> Closed:
    """A server that accepts the operator and three services of tests/protos."""
    nkey_files.ensure(tmp_path, [*SERVICES, "operator"])
    rights = {name: service_rights(contract, name, serves) for name, serves in SERVICES.items()}
    users = [
        User(name, nkey_files.public(tmp_path, name), one.publish, one.subscribe)
        for name, one in {**rights, "operator": EVERYTHING}.items()
    ]
    return Closed(new_nats(authorization.block(users)), tmp_path)


async def test_a_client_without_a_key_connects_to_nothing(closed: Closed, tmp_path: Path) -> None:
    nkey_files.ensure(tmp_path, ["stranger"])
    stranger = closed.settings("stranger")
    anonymous = dataclasses.replace(stranger, nkey="")
    for settings in (anonymous, dataclasses.replace(anonymous, user="recorder", password="x"), stranger):
        with pytest.raises(nats.errors.Error, match="Authorization Violation"):
            await Broker(settings, "stranger").make_streams()


async def test_services_publish_and_receive_with_their_rights(
    contract: Contract, closed: Closed, caplog: pytest.LogCaptureFixture
) -> None:
    """Also the streams are made by a service: a broker that lost its disk gets them back."""
    seen: list[str] = []
    ticks: list[object] = []

    async def on_happened(request: object, context: object) -> object:
        from google.protobuf.empty_pb2 import Empty

        seen.append(request.key)  # type: ignore[attr-defined]
        if request.key == "bad":  # type: ignore[attr-defined]
            raise ValueError("bad")
        return Empty()

    async def every_second(request: object, context: object) -> object:
        from google.protobuf.empty_pb2 import Empty

        ticks.append(request)
        return Empty()

    async with (
        delivering(contract, closed.settings("recorder"), {"on_happened": on_happened}, name="recorder") as replica,
        delivering(
            contract, closed.settings("clock"), {"every_second": every_second}, serves=CLOCK, name="clock"
        ) as clock,
    ):
        await publish(replica.broker, *(happened(f"k{number}", number) for number in range(20)), happened("bad"))
        await until(lambda: len(set(seen)) == 21 and len(ticks) >= 2)
        await until(lambda: seen.count("bad") > 1)  # its attempt records are read and written
        assert clock.broker.connection is not None
    assert "denies" not in caplog.text


@dataclass(frozen=True)
class Forged:
    """One act that the service ``recorder`` or another one has no right to."""

    who: str
    subject: str
    body: Mapping[str, object] | None = None


FORGED = {
    "an event of another service": Forged("clock", "events.delivery-v1-Happened.0.k"),
    "an event of any type": Forged("recorder", "events.events-v1-Ordered.0.k"),
    "a redriven event": Forged("shop", "events.redo.delivery-v1-Recorder.OnHappened.0.0.k"),
    "a redriven event to oneself": Forged("recorder", "events.redo.delivery-v1-Recorder.OnHappened.0.0.k"),
    "a change": Forged("recorder", "changes.shop.orders.0.k"),
    "a tick": Forged("recorder", "ticks.delivery-v1-Clock.EverySecond"),
    "a schedule": Forged("recorder", "schedules.delivery-v1-Clock.EverySecond"),
    "a dead letter": Forged("clock", "dead.delivery-v1-Recorder.OnHappened"),
    "an attempt record": Forged("clock", "tries.delivery-v1-Recorder-OnHappened-0.1"),
    "a heartbeat": Forged("clock", "mesh.replicas.recorder"),
    "an acknowledgement": Forged("clock", "$JS.ACK.EVENTS.delivery-v1-Recorder-OnHappened-0.1.1.1.1.1"),
    "deleting a stream": Forged("recorder", "$JS.API.STREAM.DELETE.EVENTS"),
    "purging a stream": Forged("recorder", "$JS.API.STREAM.PURGE.EVENTS", {}),
    "changing a stream": Forged("recorder", "$JS.API.STREAM.UPDATE.EVENTS", {"name": "EVENTS"}),
    "making a stream": Forged("recorder", "$JS.API.STREAM.CREATE.MINE", {"name": "MINE", "subjects": ["x"]}),
    "deleting a message": Forged("recorder", "$JS.API.STREAM.MSG.DELETE.EVENTS", {"seq": 1}),
    "reading dead letters": Forged("clock", "$JS.API.STREAM.MSG.GET.DEAD", {"seq": 1}),
    "reading events directly": Forged("recorder", "$JS.API.DIRECT.GET.EVENTS", {"seq": 1}),
    "a snapshot": Forged("recorder", "$JS.API.STREAM.SNAPSHOT.EVENTS", {"deliver_subject": "x"}),
    "reading another's consumer": Forged("clock", "$JS.API.CONSUMER.MSG.NEXT.EVENTS.delivery-v1-Recorder-OnHappened-0"),
    "making another's consumer": Forged("clock", "$JS.API.CONSUMER.CREATE.EVENTS.delivery-v1-Recorder-OnHappened-0"),
    "deleting a consumer": Forged("recorder", "$JS.API.CONSUMER.DELETE.EVENTS.delivery-v1-Recorder-OnHappened-0"),
    "an ephemeral consumer": Forged("recorder", "$JS.API.CONSUMER.CREATE.EVENTS"),
    "listing streams": Forged("recorder", "$JS.API.STREAM.NAMES"),
    "the account": Forged("recorder", "$JS.API.INFO"),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
async def test_a_service_has_no_other_right(forged: Forged, closed: Closed, caplog: pytest.LogCaptureFixture) -> None:
    async with closed.connected("operator") as operator, closed.connected(forged.who) as broker:
        connection = await broker.ready()
        before = await held(operator)
        if forged.subject.startswith("$JS.API."):
            with pytest.raises(DeniedError, match="denies this service the right"):
                await connection.request(forged.subject.removeprefix("$JS.API."), forged.body)
        elif forged.subject.startswith(("$JS.ACK.", "mesh.")):
            await connection.publish(forged.subject, b"+ACK")
        else:
            with pytest.raises(StatusError, match="denies this service the right to publish on"):
                await broker.store(Outgoing(forged.subject, {}, b"forged"))
        await until(lambda: "the event broker denies this service the right to publish on" in caplog.text)
        assert forged.subject.lower() in caplog.text.lower()
        assert await held(operator) == before


async def held(operator: Broker) -> dict[str, int]:
    """Return the number of messages of each stream."""
    js = (await operator.ready()).js
    return {info.config.name or "": info.state.messages for info in await js.streams_info()}


@pytest.mark.parametrize("subject", [">", "_INBOX.>", "_INBOX.clock.>", "events.>", "$JS.API.>", "mesh.replicas.clock"])
async def test_a_service_listens_to_nobody_else(subject: str, closed: Closed, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[bytes] = []

    async def hear(data: bytes) -> None:
        heard.append(data)

    async with closed.connected("operator") as operator, closed.connected("recorder") as broker:
        await (await broker.ready()).subscribe(subject, hear)
        await until(lambda: f"the right to subscribe to {subject.lower()}" in caplog.text.lower())
        connection = await operator.ready()
        await connection.publish(subject.replace(">", "x"), b"secret")
        await connection.flush(5)
        await (await broker.ready()).flush(5)
        assert heard == []


async def test_a_denied_batch_names_its_first_denied_message(closed: Closed) -> None:
    async with closed.connected("recorder") as broker:
        good = Outgoing("events.delivery-v1-Happened.0.k", {}, b"")
        bad = good._replace(subject="events.events-v1-Ordered.0.k")
        stored = await (await broker.ready()).store([good, good, good, bad, good, good])
    assert stored.number == 3
    assert stored.error is not None
    assert stored.error.message == "the event broker denies this service the right to publish on " + bad.subject


async def test_a_denied_consumer_is_an_error_that_names_it(contract: Contract, closed: Closed) -> None:
    (consumer, *_) = consumers_of([contract.services[RECORDER]])
    async with closed.connected("clock") as broker:
        with pytest.raises((ConsumerError, *BROKER_ERRORS), match="denies this service the right"):
            await ensure(await broker.ready(), consumer)


async def test_only_an_operator_changes_the_settings_of_a_stream(
    closed: Closed, caplog: pytest.LogCaptureFixture
) -> None:
    shorter = Retention(age=3600.0)

    async def age() -> float:
        async with closed.connected("operator", shorter) as operator:
            return float((await (await operator.ready()).js.stream_info("EVENTS")).config.max_age or 0)

    async with closed.connected("recorder"):
        pass
    async with closed.connected("recorder", shorter) as broker:
        assert "the stream EVENTS has other settings than [events] of mesh.toml (max_age)" in caplog.text
        info = await (await broker.ready()).request("STREAM.INFO.EVENTS")
        assert info["config"]["max_age"] == 7 * 86400 * 10**9
    assert await age() == 3600.0


def test_the_configuration_holds_no_secret(closed: Closed) -> None:
    seeds = [file.read_text() for file in closed.keys.glob("*.nkey")]
    assert len(seeds) == len(SERVICES) + 1
    text = closed.server.configuration()
    assert not any(seed in text for seed in seeds)
    assert {file.stat().st_mode & 0o777 for file in closed.keys.glob("*.nkey")} == {0o600}
    assert json.dumps("events.delivery-v1-Happened.*.*") in text


def test_keys_are_made_once(tmp_path: Path) -> None:
    nkey_files.ensure(tmp_path / "keys", ["a"])
    first = nkey_files.public(tmp_path / "keys", "a")
    nkey_files.ensure(tmp_path / "keys", ["a", "b"])
    assert nkey_files.public(tmp_path / "keys", "a") == first
    assert first.startswith("U")
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700

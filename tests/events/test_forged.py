"""Forged messages at a real nats-server: each reaches no function, and becomes one dead letter with the reason.

The forger is whoever stores what no right prevents: the operator of a shared broker, or a server that was taken over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from delivering import CLOCK, RECORDER, delivering, happened, until
from google.protobuf.empty_pb2 import Empty

from mesh.contract.model import Contract
from mesh.events.broker.broker import Broker, Settings
from mesh.events.broker.nats_connection import NatsConnection, Outgoing
from mesh.events.cloudevents import MESSAGE_ID, Event
from mesh.events.consume.consumers import consumers_of
from mesh.events.consume.dead_letters import DeadLetter, read_dead_letter
from mesh.events.consume.verification import EventVerifier, UnsignedPolicy
from mesh.events.signatures import OPERATOR, SIGNATURE, EventSigner, SignedMessage, VerificationKey, Verifier, key_id
from mesh.events.subjects import event_subject

NAMES = ("recorder", "clock", "other", OPERATOR)
KEYS = {name: Ed25519PrivateKey.generate() for name in NAMES}
STRANGER = Ed25519PrivateKey.generate()


def find(name: str, id_: str) -> VerificationKey | None:
    key = KEYS.get(name)
    return VerificationKey(key.public_key()) if key is not None and key_id(key.public_key()) == id_ else None


def verifier(unsigned: UnsignedPolicy | None = None) -> EventVerifier:
    publishers = {"delivery.v1.Happened": {"recorder"}, "delivery.v1.Noted": {"recorder", "other"}}
    hosts = {RECORDER: "recorder", CLOCK: "clock"}
    return EventVerifier(Verifier(find), publishers, hosts, unsigned or UnsignedPolicy())


def signed(message: Outgoing, name: str = "recorder", key: Ed25519PrivateKey | None = None) -> Outgoing:
    (signature,) = EventSigner(name, key or KEYS[name]).sign([SignedMessage(*message)])
    return message._replace(headers={**message.headers, SIGNATURE: signature})


def outgoing(event: Event) -> Outgoing:
    return Outgoing(event.subject, event.to_headers(), event.data)


def event(**attributes: Any) -> Event:
    return happened("k", 1, **{"source": "recorder", **attributes})


def last() -> Outgoing:
    """Return a message that is delivered."""
    return signed(outgoing(happened("k", 2, source="recorder")))


def with_header(message: Outgoing, **headers: str) -> Outgoing:
    return message._replace(headers={**message.headers, **{name.replace("_", "-"): v for name, v in headers.items()}})


@dataclass
class Function:
    seen: list[int] = field(default_factory=list)

    async def __call__(self, request: Any, _: Any) -> Empty:
        self.seen.append(request.number)
        return Empty()


REDO = f"events.redo.delivery-v1-Recorder.OnHappened.0.{event().subject.split('.')[2]}.k"
NOTED = event_subject("delivery.v1.Noted", "k", "k")

FORGED: dict[str, tuple[Callable[[], Outgoing], str]] = {
    "no signature": (lambda: outgoing(event()), "it has no signature"),
    "an unknown key": (lambda: signed(outgoing(event()), "recorder", STRANGER), "which is not known here"),
    "a service that may not publish it": (
        lambda: signed(outgoing(event(source="clock")), "clock"),
        "the contract does not let clock publish delivery.v1.Happened",
    ),
    "a forged source": (
        lambda: signed(outgoing(event()), "clock"),
        "its source is 'recorder', and clock signed it",
    ),
    "a tampered body": (lambda: signed(outgoing(event()))._replace(data=event(id="x").data + b"\x10\x07"), "changed"),
    "another key": (lambda: with_header(signed(outgoing(event())), ce_subject="victim"), "changed"),
    "another id": (lambda: with_header(signed(outgoing(event())), ce_id="another"), "changed"),
    "an id in two spellings": (
        lambda: with_header(signed(outgoing(event())), CE_ID="another"),
        "a header occurs twice",
    ),
    "another hop count": (lambda: with_header(signed(outgoing(event(hops=3))), mesh_hops="1"), "changed"),
    "another time": (lambda: with_header(signed(outgoing(event())), ce_time="2020-01-01T00:00:00Z"), "changed"),
    "the event of another subject": (
        lambda: signed(outgoing(event(type="delivery.v1.Noted")))._replace(subject=event().subject),
        "changed",
    ),
    "another type on the subject": (
        lambda: signed(Outgoing(event().subject, event(type="delivery.v1.Noted").to_headers(), event().data)),
        "it is a delivery.v1.Noted, on the subject of delivery.v1.Happened",
    ),
    "a copied event that is redriven": (
        lambda: signed(outgoing(event()))._replace(subject=REDO),
        "changed",
    ),
    "a redrive by a service": (
        lambda: signed(outgoing(event())._replace(subject=REDO)),
        "only an operator may redrive or replay; recorder signed it",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "reason"), FORGED.values(), ids=FORGED)
async def test_what_was_forged_is_one_dead_letter(
    make: Callable[[], Outgoing], reason: str, contract: Contract, nats_url: str
) -> None:
    function = Function()
    async with stored(contract, nats_url, function, make(), last()) as (letters):
        assert function.seen == [2]
        ((_, letter),) = letters
        assert letter.reason == ("malformed" if "twice" in reason else "refused")
        assert reason in letter.error
        assert letter.attempts == 0


async def test_who_may_publish_is_delivered(contract: Contract, nats_url: str) -> None:
    function = Function()
    by_hand = signed(outgoing(event(source=OPERATOR)), OPERATOR)
    redriven = signed(outgoing(event())._replace(subject=REDO), OPERATOR)
    async with stored(contract, nats_url, function, by_hand, redriven, last()):
        assert function.seen == [1, 1, 2]


async def test_a_copy_under_another_message_id_has_its_effect_once(contract: Contract, nats_url: str) -> None:
    """The broker drops copies by ``Nats-Msg-Id``, which is not signed. The id of the event is signed."""
    original = signed(outgoing(event()))
    copy = with_header(original, **{MESSAGE_ID: "other"})
    ids: list[str] = []

    async def function(_: Any, context: Any) -> Empty:
        ids.append(str(context.metadata["ce-id"]))
        return Empty()

    async with stored(contract, nats_url, function, original, copy, last()):
        assert ids[0] == ids[1] == original.headers["ce-id"]  # the inbox takes one (test_inbox)


async def test_unsigned_events_of_other_programs_and_of_before_the_upgrade(
    contract: Contract, nats_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    function = Function()
    other, before = outgoing(happened("k", 1, source="crm")), outgoing(happened("k", 3, source="recorder"))
    policy = UnsignedPolicy(sources={"crm"})
    async with stored(contract, nats_url, function, other, before, last(), policy=policy) as letters:
        assert function.seen == [1, 2]
        assert [letter.error for _, letter in letters] == ["it has no signature"]
        assert [line for line in caplog.messages if "signed_since" in line and "redrive --all --unsigned" in line]
    function = Function()
    later = UnsignedPolicy(before=4e9)
    again = before._replace(headers={**before.headers, MESSAGE_ID: "again"})
    forged = with_header(signed(outgoing(event())), ce_id="forged")
    done = signed(outgoing(happened("k", 4, source="recorder")))
    async with stored(contract, nats_url, function, again, forged, done, policy=later) as letters:
        assert function.seen[-2:] == [3, 4]  # what the consumer had before is acknowledged
        assert "changed" in letters[-1][1].error


async def test_ticks_are_signed_by_the_service_with_the_schedule(contract: Contract, nats_url: str) -> None:
    ticks: list[Any] = []

    async def every_second(request: Any, _: Any) -> Empty:
        ticks.append(request)
        return Empty()

    settings = Settings(urls=(nats_url,))
    forged = Outgoing("ticks.delivery-v1-Clock.EverySecond", {"mesh-tick-due": "2026-11-30T00:00:00+00:00"}, b"")
    async with (
        delivering(
            contract, settings, {"every_second": every_second}, serves=CLOCK, name="clock", verifier=verifier(),
            signer=EventSigner("clock", KEYS["clock"]),
        ) as replica,
    ):  # fmt: skip
        await until(lambda: len(ticks) >= 2)
        link = await replica.broker.ready()
        plain = Broker(settings, "forger")
        plain.start()
        await plain.store(forged)
        await plain.store(signed(forged._replace(headers={**forged.headers, "mesh-tick-due": "2020-01-01T00:00:00Z"})))
        await plain.stop()
        async with asyncio.timeout(20):
            while (await link.js.stream_info("DEAD")).state.messages < 2:  # noqa: ASYNC110 - of the broker
                await asyncio.sleep(0.05)
        letters = [await link.js.get_msg("DEAD", number) for number in (1, 2)]
    assert [read_dead_letter(one.headers or {}).error for one in letters] == [
        "it has no signature",
        "it is a tick of clock, and recorder signed it",
    ]
    assert all(tick.time.ToDatetime().year == 2026 and tick.time.ToDatetime().second >= 0 for tick in ticks)


@contextlib.asynccontextmanager
async def stored(
    contract: Contract, url: str, function: Any, *messages: Outgoing, policy: UnsignedPolicy | None = None
) -> AsyncIterator[list[tuple[int, DeadLetter]]]:
    """Store messages by hand, deliver them, and give the dead letters once the last message has been delivered."""
    settings = Settings(urls=(url,))
    plain = Broker(settings, "forger")
    plain.start()
    try:
        link = await plain.ready()
        for message in messages:
            error = (await link.store([message])).error
            assert error is None
        async with delivering(contract, settings, {"on_happened": function}, verifier=verifier(policy)) as replica:
            await replica.broker.ready()
            await _all_decided(link, contract, len(messages))
            state = (await link.js.stream_info("DEAD")).state
            found = [await link.js.get_msg("DEAD", number) for number in range(1, state.last_seq + 1)]
            yield [(one.seq or 0, read_dead_letter(one.headers or {})) for one in found]
    finally:
        await plain.stop()


async def _all_decided(link: NatsConnection, contract: Contract, count: int) -> None:
    """Wait until the broker has an acknowledgement of every message."""
    names = [one.name for one in consumers_of([contract.services[RECORDER]]) if "OnHappened" in one.name]
    async with asyncio.timeout(20):
        while True:
            infos = [await link.request(f"CONSUMER.INFO.EVENTS.{name}") for name in names]
            if not any("error" in one for one in infos):
                left = sum(one["num_pending"] + one["num_ack_pending"] for one in infos)
                if not left and sum(one["delivered"]["consumer_seq"] for one in infos) >= count:
                    return
            await asyncio.sleep(0.05)

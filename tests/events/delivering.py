"""Replica that delivers from a real nats-server to test functions in a real sidecar."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.empty_pb2 import Empty
from hosting import open_layer

from mesh.call import Layer
from mesh.contract.model import Contract
from mesh.events.broker.broker import Broker, Settings
from mesh.events.cloudevents import Event
from mesh.events.consume.delivery import Delivery, DeliverySettings
from mesh.events.consume.verification import EventVerifier, UnsignedPolicy
from mesh.events.signatures import OPERATOR, EventSigner, VerificationKey, Verifier
from mesh.function import Functions
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.sidecar import ServiceContext, Sidecar

RECORDER = "delivery.v1.Recorder"
CLOCK = "delivery.v1.Clock"


KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
"""The operator's key in tests, the same in every process."""
SIGNER = EventSigner(OPERATOR, KEY)
VERIFIER = EventVerifier(Verifier(lambda *_: VerificationKey(KEY.public_key())), {}, {}, UnsignedPolicy())


class Replica:
    """One replica of a service: sidecar, broker and delivery."""

    def __init__(self, broker: Broker, delivery: Delivery) -> None:
        self.broker = broker
        self.delivery = delivery


@asynccontextmanager
async def broker_at(url: str | Settings, signer: EventSigner = SIGNER) -> AsyncIterator[Broker]:
    broker = Broker(Settings(urls=(url,)) if isinstance(url, str) else url, "test", signer)
    broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


@asynccontextmanager
async def delivering(
    contract: Contract,
    url: str | Settings,
    functions: dict[str, Any],
    *,
    name: str = "recorder",
    serves: str = RECORDER,
    settings: DeliverySettings | None = None,
    database: Any = None,
    concurrency_limit: ConcurrencyLimit | None = None,
    drain: float = 5.0,
    trace: Layer = open_layer,
    verifier: EventVerifier = VERIFIER,
    signer: EventSigner = SIGNER,
) -> AsyncIterator[Replica]:
    """Host the functions (by name; missing ones do nothing) and deliver to them."""

    async def nothing(request: Any, context: Any) -> Empty:
        return Empty()

    module = types.ModuleType(f"delivered_{uuid4().hex}")
    defaults = dict.fromkeys(("on_happened", "on_noted", "every_second", "often"), nothing)
    module.__dict__.update({**defaults, **functions})
    sys.modules[module.__name__] = module
    service = contract.services[serves]
    context = ServiceContext("recorder", channel=None, blocking=None, database=database)
    layers = {"trace": trace, "authenticate": open_layer, "authorize": open_layer}
    sidecar = Sidecar(
        contract,
        [serves],
        Functions(module.__name__, [service]),
        context,
        **layers,
        concurrency_limit=concurrency_limit or ConcurrencyLimit(1000, 1000),
    )
    try:
        async with broker_at(url, signer) as broker:
            delivery = Delivery(broker, name, [service], sidecar.deliveries, settings or DeliverySettings(), verifier)
            delivery.start()
            try:
                yield Replica(broker, delivery)
            finally:
                await delivery.stop(drain)
    finally:
        del sys.modules[module.__name__]


def happened(key: str, number: int = 0, what: str = "", **attributes: Any) -> Event:
    from delivery.v1 import delivery_pb2 as pb

    data = pb.Happened(key=key, number=number, what=what).SerializeToString()
    told = {"id": uuid4().hex, "type": "delivery.v1.Happened", "source": "test", "key": key, "time": datetime.now(UTC)}
    return Event(**{**told, "data": data, **attributes})


async def publish(broker: Broker, *events: Event) -> None:
    await broker.ready()
    await asyncio.gather(*(broker.publish(event) for event in events))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that notifies nobody."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - state of several parts
            await asyncio.sleep(0.01)


async def dead_letters(broker: Broker) -> list[Any]:
    """Return the messages of the stream of dead letters."""
    link = await broker.ready()
    state = (await link.js.stream_info("DEAD")).state
    return [await link.js.get_msg("DEAD", sequence) for sequence in range(max(1, state.first_seq), state.last_seq + 1)]

"""Peer: consumers of events as a Python team would write them, with FastStream or with nats-py alone.

    python nats_consumers.py (faststream-push | faststream-pull | bare) NATS-URL SUBJECT TALLY

Each reads a stream through a durable consumer with explicit acknowledgement, as its documentation shows. FastStream is
traced by its own ``NatsTelemetryMiddleware`` and exports to ``OTEL_EXPORTER_OTLP_ENDPOINT``; nats-py is not traced.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import nats
import uvloop
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig
from notes.v1 import notes_pb2 as pb
from tally import Tally

STREAM = "PEERS"
BATCH = 100


async def faststream(kind: str, url: str, subject: str, called: Tally) -> None:
    """Serve until killed."""
    from faststream import FastStream
    from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
    from faststream.nats.opentelemetry import NatsTelemetryMiddleware
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    broker = NatsBroker(url, middlewares=[NatsTelemetryMiddleware(tracer_provider=provider)], logger=None)

    async def decode(message: NatsMessage) -> pb.Noted:
        return pb.Noted.FromString(message.body)

    # As in its documentation; a larger batch would be waited for until it is full.
    pull: dict[str, Any] = {"pull_sub": PullSub(batch_size=10)} if kind == "faststream-pull" else {}

    @broker.subscriber(subject, stream=JStream(STREAM, declare=False), durable=kind, decoder=decode, **pull)
    async def on_noted(event: pb.Noted) -> None:
        called.note(event.number)

    app = FastStream(broker, logger=None)

    @app.after_startup
    async def ready() -> None:
        print("ready", flush=True)

    await app.run()


async def bare(url: str, subject: str, called: Tally) -> None:
    """Serve until killed, with two pulls in progress as JetStream's documentation advises.

    nats-py's own ``fetch`` of several messages waits until it has them all, which adds latency to a slow stream.
    """
    client = await nats.connect(url)
    js = client.jetstream()
    await js.add_consumer(STREAM, ConsumerConfig(durable_name="bare", filter_subject=subject, max_ack_pending=1000))
    inbox, left = client.new_inbox(), 0

    async def more() -> None:
        nonlocal left
        left += BATCH
        request = json.dumps({"batch": BATCH, "expires": 600 * 10**9}).encode()
        await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.bare", request, inbox)

    async def take(message: Msg) -> None:
        nonlocal left
        if not message.reply:
            return  # a status
        called.note(pb.Noted.FromString(message.data).number)
        await message.ack()
        left -= 1
        if left <= BATCH:
            await more()

    await client.subscribe(inbox, cb=take)
    await more()
    await more()
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Run the kind of consumer that the command line names."""
    kind, url, subject, tally = sys.argv[1:]
    called = Tally(tally)
    uvloop.run(bare(url, subject, called) if kind == "bare" else faststream(kind, url, subject, called))


if __name__ == "__main__":
    main()

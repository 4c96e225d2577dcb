"""What a Python team would write by hand to be called for events: FastStream, or nats-py alone.

    python nats_consumers.py (faststream-push | faststream-pull | bare) NATS-URL SUBJECT TALLY

Each reads a stream through a durable consumer with explicit acknowledgement, as its documentation shows. FastStream is
traced by its own ``NatsTelemetryMiddleware`` and exports to ``OTEL_EXPORTER_OTLP_ENDPOINT``; nats-py alone is not traced.
"""

from __future__ import annotations

import sys
from typing import Any

import nats
import nats.errors
import uvloop
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

    pull: dict[str, Any] = {"pull_sub": PullSub(batch_size=BATCH)} if kind == "faststream-pull" else {}

    @broker.subscriber(subject, stream=JStream(STREAM, declare=False), durable=kind, decoder=decode, **pull)
    async def on_noted(event: pb.Noted) -> None:
        called.note(event.number)

    app = FastStream(broker, logger=None)

    @app.after_startup
    async def ready() -> None:
        print("ready", flush=True)

    await app.run()


async def bare(url: str, subject: str, called: Tally) -> None:
    """Serve until killed."""
    client = await nats.connect(url)
    subscription = await client.jetstream().pull_subscribe(subject, durable="bare", stream=STREAM)
    print("ready", flush=True)
    while True:
        try:
            messages = await subscription.fetch(BATCH, timeout=5)
        except nats.errors.TimeoutError:
            continue
        for message in messages:
            called.note(pb.Noted.FromString(message.data).number)
            await message.ack()


def main() -> None:
    """Run the kind that the command line names."""
    kind, url, subject, tally = sys.argv[1:]
    called = Tally(tally)
    uvloop.run(bare(url, subject, called) if kind == "bare" else faststream(kind, url, subject, called))


if __name__ == "__main__":
    main()

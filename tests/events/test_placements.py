"""Events in every placement of a function: one suite for the event loop, a thread and a worker process."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_asyncio
from broker_process import BrokerProcess
from delivering import happened, publish, until
from placed import QUICK, Placed, placed
from telemetry_parts import HttpCollector

from mesh.contract.model import Contract
from mesh.events.broker import broker
from mesh.events.broker.nats_connection import Outgoing
from mesh.events.cloudevents import MESSAGE_ID
from mesh.events.consume.outcome import RetryLimits
from mesh.events.publish import relay
from mesh.telemetry import Telemetry, configure
from mesh.telemetry.logs import JsonFormatter

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module", params=["loop", "process"])
def place(request: pytest.FixtureRequest) -> str:
    """Placement of ``async def`` functions; only those have transactions."""
    return str(request.param)


@pytest.fixture
def meeting(tmp_path: Path) -> Path:
    (tmp_path / "meeting").mkdir()
    return tmp_path / "meeting"


@pytest.fixture(scope="module")
def own_nats() -> Iterator[str]:
    server = BrokerProcess()
    server.start()
    yield server.url
    server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "postgresql"])
async def recorder(
    request: pytest.FixtureRequest,
    contract: Contract,
    place: str,
    own_nats: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Placed]:
    """One replica for all tests that have keys of their own; its relay does not look, it has to be told."""
    folder = tmp_path_factory.mktemp("recorder")
    url = f"sqlite:///{folder}/r.db"
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        name = f"recorder_{folder.name}_{place}"
        server.psql(f"CREATE DATABASE {name}")
        url = str(server.get_uri(name))
    client = await nats.connect(own_nats)
    for stream in await client.jetstream().streams_info():
        await client.jetstream().delete_stream(stream.config.name)
    await client.close()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(relay, "POLL_INTERVAL", 600.0)
        async with placed(contract, place, own_nats, url, folder) as running:
            yield running


# -- effects --


async def test_an_event_that_comes_twice_has_its_effect_once(recorder: Placed) -> None:
    event = happened("copied", 1)
    await publish(recorder.broker, event)
    await recorder.broker.store(Outgoing(event.subject, {**event.to_headers(), MESSAGE_ID: "again"}, event.data))
    await publish(recorder.broker, happened("copied", 2))  # of the same key: when it is there, the copy has been
    assert await recorder.wrote("copied", 2) == [1, 2]


async def test_what_was_rolled_back_is_tried_again_and_then_a_dead_letter(recorder: Placed) -> None:
    await publish(recorder.broker, happened("back", 1, "roll back"))
    letter = await recorder.letter("back")
    assert (letter.code, letter.attempts, letter.error) == ("UNAVAILABLE", 3, "after the write")
    assert await recorder.wrote("back", 0) == []


async def test_a_second_transaction_that_writes_is_refused(recorder: Placed) -> None:
    await publish(recorder.broker, happened("two", 1, "twice"))
    letter = await recorder.letter("two")
    assert (letter.code, letter.attempts) == ("FAILED_PRECONDITION", 1)
    assert "delivery.v1.Recorder/OnHappened writes in a second transaction" in letter.error
    assert await recorder.wrote("two", 1) == [1]


# -- publishing --


@pytest.mark.parametrize("way", ["both", "publish"])
async def test_what_a_delivery_publishes(recorder: Placed, way: str) -> None:
    """``both``: with the row, in its transaction; ``publish``: by itself."""
    number = 77 if way == "both" else 78
    await publish(recorder.broker, happened(way, number, way, hops=4))
    made = await recorder.noted(number)
    assert await recorder.wrote(way, 1) == [number]
    assert made.headers["ce-source"] == "recorder"
    assert made.headers["mesh-hops"] == "5"


async def test_what_the_contract_denies_is_not_published(recorder: Placed) -> None:
    await publish(recorder.broker, happened("undeclared", 1, "undeclared"), happened("large", 1, "large"))
    undeclared, large = await recorder.letter("undeclared"), await recorder.letter("large")
    assert undeclared.code == "FAILED_PRECONDITION"
    assert "delivery.v1.Recorder does not declare it" in undeclared.error
    assert large.code == "INVALID_ARGUMENT"
    assert "has 1000004 bytes" in large.error


async def test_a_broker_that_is_away_is_said(
    contract: Contract,
    place: str,
    new_nats: Callable[..., Any],
    tmp_path: Path,
    meeting: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The event was taken before the broker went away; what its function publishes finds it away."""
    monkeypatch.setattr(broker, "RECONNECT_TIMEOUT", 0.2)  # the method has 2 s, as long as a publication waits
    server = new_nats()
    async with placed(contract, place, server.url, f"sqlite:///{tmp_path}/r.db", meeting) as recorder:
        await publish(recorder.broker, happened("first", 2, "publish meets"))
        await until((meeting / "first").exists)
        server.kill()
        while recorder.broker.connection is not None:  # noqa: ASYNC110 - it tells nobody that it is gone
            await asyncio.sleep(0.01)
        (meeting / "second").touch()
        records: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("mesh.events").addHandler(handler)
        try:
            await until(lambda: any("the event broker cannot be reached" in text for text in records))
        finally:
            logging.getLogger("mesh.events").removeHandler(handler)
        assert await recorder.wrote("first", 0) == []
        await asyncio.to_thread(server.start)
        assert await recorder.wrote("first", 1) == [2]


# -- traces, hops and logs --


@pytest_asyncio.fixture(loop_scope="module")
async def telemetry(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Telemetry, HttpCollector]]:
    collector = HttpCollector()
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    made = configure("recorder", version="1", default_endpoint=collector.url)
    yield made, collector
    await made.shutdown(0.5)
    collector.stop()


async def spans(telemetry: Telemetry, collector: HttpCollector, *wanted: str) -> dict[str, Any]:
    """Return name → span, once all of them are there."""
    async with asyncio.timeout(20):
        while True:
            await asyncio.to_thread(telemetry.flush)
            found = {span.name: span for span in collector.all()}
            if found.keys() >= set(wanted):
                return found
            await asyncio.sleep(0.02)


async def test_publications_and_deliveries_are_linked(
    contract: Contract, place: str, nats_url: str, tmp_path: Path, meeting: Path, telemetry: tuple[Telemetry, Any]
) -> None:
    made, collector = telemetry
    url = f"sqlite:///{tmp_path}/r.db"
    parts = {"trace": made.inbound, "outbound": made.outbound, "spans": made.export_worker_span}
    publication = "publish delivery.v1.Noted"
    first, second = "delivery.v1.Recorder/OnHappened", "delivery.v1.Recorder/OnNoted"
    async with placed(contract, place, nats_url, url, meeting, **parts) as recorder:
        for count, way in enumerate(("both", "publish"), 1):
            collector.requests.clear()
            await publish(recorder.broker, happened("k", count, way, traceparent=PARENT))
            await recorder.wrote("k", count)
            found = await spans(made, collector, first, second, publication)
            [link] = found[first].links
            assert (link.trace_id.hex(), link.span_id.hex()) == tuple(PARENT.split("-")[1:3])
            assert found[publication].trace_id == found[first].trace_id
            assert found[publication].parent_span_id == found[first].span_id
            [link] = found[second].links
            assert (link.trace_id, link.span_id) == (found[publication].trace_id, found[publication].span_id)
            assert found[second].trace_id != found[first].trace_id


@pytest.mark.parametrize("place", ["thread", "thread of a process"])
async def test_a_function_in_a_thread(
    contract: Contract,
    place: str,
    nats_url: str,
    tmp_path: Path,
    meeting: Path,
    telemetry: tuple[Telemetry, HttpCollector],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its outbound calls have its trace and its hops, and its log lines its trace id."""
    made, collector = telemetry
    url = f"sqlite:///{tmp_path}/r.db"
    parts = {"trace": made.inbound, "outbound": made.outbound, "spans": made.export_worker_span}
    handler = logging.StreamHandler()  # a worker has its own
    handler.setFormatter(JsonFormatter("recorder"))
    logging.getLogger("services.recorder").addHandler(handler)
    try:
        async with placed(contract, place, nats_url, url, meeting, **parts) as recorder:
            await publish(recorder.broker, happened("k", 1, hops=4))
            await until(lambda: bool(recorder.onward))
            found = await spans(made, collector, "delivery.v1.Recorder/OnHappened")
    finally:
        logging.getLogger("services.recorder").removeHandler(handler)
    [onward] = recorder.onward
    assert onward.metadata.wire(b"mesh-hops") == b"5"
    delivery = found["delivery.v1.Recorder/OnHappened"]
    traceparent = onward.metadata.wire(b"traceparent") or b""
    assert traceparent.decode().split("-")[1] == delivery.trace_id.hex()
    lines = [line for line in capfd.readouterr().err.splitlines() if "called for k 1" in line]
    assert [json.loads(line)["trace_id"] for line in lines] == [delivery.trace_id.hex()]


# -- what only a process does --


async def test_a_worker_that_ends_after_the_effect_does_not_double_it(recorder: Placed) -> None:
    if recorder.pool is None:
        pytest.skip("its end would be that of this process")
    await publish(recorder.broker, happened("once", 1, "once"), happened("once", 2))
    assert await recorder.wrote("once", 2) == [1, 2]


async def test_an_event_that_ends_its_worker_costs_the_others_no_try(
    contract: Contract, nats_url: str, tmp_path: Path, meeting: Path
) -> None:
    """Eight events meet in a worker, and the ninth ends it. One try is all that they have."""
    url = f"sqlite:///{tmp_path}/r.db"
    settings = replace(QUICK, limits=RetryLimits(attempts=1, first_delay=0.01, max_delay=0.05))
    async with placed(contract, "process", nats_url, url, meeting, deliveries=settings) as recorder:
        innocent = [happened(f"k{number}", 9, " meets") for number in range(8)]
        await publish(recorder.broker, *innocent, happened("bad", 9, "crash meets"))
        letter = await recorder.letter("bad")
        for event in innocent:
            assert await recorder.wrote(event.key, 1) == [9]
    assert (letter.code, letter.attempts, letter.reason) == ("UNAVAILABLE", 1, "1 attempts failed, the maximum")
    assert letter.error == "the worker process that ran this function ended (signal SIGKILL)"


async def test_a_pool_without_room_costs_no_try(
    contract: Contract, nats_url: str, tmp_path: Path, meeting: Path
) -> None:
    """One runs, one waits, and the others are refused. One try is all that they have."""
    url = f"sqlite:///{tmp_path}/r.db"
    settings = replace(QUICK, limits=RetryLimits(attempts=1, first_delay=0.01, max_delay=0.05))
    tight = {"min": 1, "max": 1, "concurrency": 1, "queue": 1}
    async with placed(contract, "process", nats_url, url, meeting, deliveries=settings, workers=tight) as recorder:
        events = [happened(f"k{number}", 1, "slow") for number in range(5)]
        await publish(recorder.broker, *events)
        for event in events:
            assert await recorder.wrote(event.key, 1) == [1]

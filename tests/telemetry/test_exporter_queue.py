"""The collector is slow, refuses, hangs or is gone: calls go on, memory is bounded, drops are counted, stops end."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from time import monotonic

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from telemetry_parts import HttpCollector, call_of

from mesh.call import Call
from mesh.telemetry import Telemetry
from mesh.telemetry.exporter_queue import UNREACHABLE_TIMEOUT, ExporterLog, ExporterQueue

Start = Callable[..., Telemetry]


async def nothing(call: Call) -> None:
    """Answer OK."""


async def calls(telemetry: Telemetry, count: int) -> None:
    for _ in range(count):
        await telemetry.inbound(call_of(), nothing)


async def test_a_collector_that_never_answers(start: Start, collector: HttpCollector) -> None:
    collector.answer = 0
    telemetry = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_MAX_QUEUE_SIZE="100", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10"
    )
    await calls(telemetry, 10)
    assert collector.asked.wait(5)
    begun = monotonic()
    await calls(telemetry, 1000)
    assert monotonic() - begun < 2
    [queue] = telemetry._queues
    assert len(queue._queue) == 100
    assert telemetry.dropped["queue_full"] == 900
    begun = monotonic()
    await telemetry.shutdown(0.5)
    assert monotonic() - begun < 2
    assert telemetry.dropped["already_shutdown"] == 100
    assert len(queue._queue) == 0


async def test_a_collector_that_is_gone(start: Start, collector: HttpCollector) -> None:
    collector.stop()
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="10")
    await calls(telemetry, 20)
    begun = monotonic()
    await telemetry.shutdown(0.5)
    assert monotonic() - begun < 2
    assert telemetry.exported == 0
    assert sum(telemetry.dropped.values()) <= 20  # what is inside the exporter at that moment is its own


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_a_collector_that_is_gone_gets_a_second_and_no_more(
    start: Start, collector: HttpCollector, protocol: str
) -> None:
    collector.stop()
    telemetry = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_EXPORTER_OTLP_PROTOCOL=protocol, OTEL_METRICS_EXPORTER="otlp"
    )
    await calls(telemetry, 20)
    begun = monotonic()
    await telemetry.shutdown()
    assert monotonic() - begun < 2.5  # of the five that one which answers would get


async def test_a_slow_collector_that_has_answered_gets_its_time(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    await calls(telemetry, 1)
    assert telemetry.flush()
    collector.delay = UNREACHABLE_TIMEOUT + 0.2
    await calls(telemetry, 5)
    await telemetry.shutdown()
    assert telemetry.exported == 6


async def test_a_grpc_collector_that_is_gone(start: Start, collector: HttpCollector) -> None:
    collector.stop()
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    await calls(telemetry, 20)
    begun = monotonic()
    await telemetry.shutdown(0.5)
    assert monotonic() - begun < 2
    assert telemetry.exported == 0


async def test_a_collector_that_refuses_is_told_once(
    start: Start, collector: HttpCollector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.answer = 400
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10")
    for _ in range(5):
        await calls(telemetry, 10)
        assert telemetry.flush()
    assert telemetry.dropped["export_failed"] == 50
    told = [record.getMessage() for record in caplog.records if record.name == "mesh.telemetry"]
    assert len(told) == 1
    assert "could not be exported" in told[0]
    assert "400" in told[0]
    collector.answer = 200
    await calls(telemetry, 10)
    assert telemetry.flush()
    assert telemetry.exported == 10
    await telemetry.shutdown()
    told = [record.getMessage() for record in caplog.records if record.name == "mesh.telemetry"]
    assert len(told) == 2  # a last word about what the first line could not know


async def test_shutdown_exports_what_is_left_and_may_be_repeated(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    await calls(telemetry, 7)
    await telemetry.shutdown()
    await telemetry.shutdown()
    assert len(collector.all()) == 7
    await calls(telemetry, 1)  # a straggler after the stop
    assert telemetry.dropped["already_shutdown"] == 1


async def test_full_batches_leave_at_once_and_the_rest_after_the_delay(start: Start, collector: HttpCollector) -> None:
    telemetry = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10",
        OTEL_BSP_SCHEDULE_DELAY="600000",
    )
    await calls(telemetry, 25)
    assert collector.asked.wait(5)
    [queue] = telemetry._queues
    with queue._idle:
        assert queue._idle.wait_for(lambda: len(queue._queue) == 5 and not queue._busy, 5)
    assert telemetry.flush()
    assert [len(request.resource_spans[0].scope_spans[0].spans) for request in collector.requests] == [10, 10, 5]


async def test_a_batch_of_one_leaves_at_once(start: Start, collector: HttpCollector) -> None:
    start_with = {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1", "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **start_with)
    await calls(telemetry, 1)
    assert collector.asked.wait(5)


class Broken(SpanExporter):
    """Fails in every way an exporter can."""

    def __init__(self) -> None:
        self.done = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002 - an exporter's signature
        raise RuntimeError("exporters may raise")

    def shutdown(self) -> None:
        self.done.set()
        raise RuntimeError("even here")


def test_an_exporter_that_raises_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    exporter = Broken()
    queue = ExporterQueue(exporter, ExporterLog(), {}, 10)
    for _ in range(3):
        queue.put(ReadableSpan("one"))
        assert queue.force_flush(5000)
    assert queue.dropped["export_failed"] == 3
    queue.close(1)
    assert exporter.done.is_set()
    assert "exporters may raise" in caplog.text


def test_the_exporters_reason_is_kept() -> None:
    exporter_log = ExporterLog()
    log = logging.getLogger("tests.exporter")
    log.propagate = False
    log.addHandler(exporter_log)
    log.warning("Transient error %s encountered", "refused")
    log.error("Failed to export spans batch due to timeout, max retries or shutdown.")
    assert exporter_log.last == "Transient error refused encountered"


async def test_a_functions_spans_and_ours_share_one_buffer(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_MAX_QUEUE_SIZE="5")
    collector.answer = 0

    async def function(call: Call) -> None:
        for _ in range(20):
            trace.get_tracer("function").start_span("own").end()

    await telemetry.inbound(call_of(), function)
    await telemetry.shutdown(0.2)
    assert telemetry.dropped["queue_full"] >= 10


def test_a_process_ends_though_its_collector_hangs(collector: HttpCollector) -> None:
    collector.answer = 0
    code = """
        import asyncio, os, sys
        from mesh.telemetry import configure
        from telemetry_parts import call_of

        async def main():
            telemetry = configure("registration", version="1")
            async def nothing(call): pass
            await telemetry.inbound(call_of(), nothing)
            await telemetry.shutdown(0.3)
            print(telemetry.dropped)

        asyncio.run(main())
    """
    begun = monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert monotonic() - begun < 15
    assert json.loads(done.stdout.replace("'", '"'))["queue_full"] == 0

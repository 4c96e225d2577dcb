"""Bounded queue of finished spans: a thread exports them in batches, and dropped spans are counted.

``put`` never blocks and never fails. A span that comes while the queue is full is dropped. The settings are those of
the SDK's batch processor (``OTEL_BSP_*``).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY as SUPPRESS  # the only name that the API has for it
from opentelemetry.context import attach, set_value
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from mesh.telemetry import otel_environment
from mesh.telemetry.otlp_encoder import Encoder
from mesh.telemetry.otlp_exporter import sender
from mesh.telemetry.span import Span

__all__ = ["UNREACHABLE_TIMEOUT", "ExporterLog", "ExporterQueue", "run_bounded"]

log = logging.getLogger("mesh.telemetry")

REPORT_INTERVAL = 60.0
"""Seconds between two log lines about dropped spans."""
UNREACHABLE_TIMEOUT = 1.0
"""Seconds that a shutdown waits at most for a collector that did not take the last batch, or has had none yet."""


class ExporterLog(logging.Handler):
    """Log handler for the exporters' own messages, several for every failing batch: keeps the last with a reason."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message if it names a reason. "… due to timeout, max retries or shutdown" names none."""
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - an odd record must not break what logs it
            text = str(record.msg)
        if not self.last or "error" in text or "code:" in text:
            self.last = text


class ExporterQueue(SpanProcessor):
    """Span processor that exports in batches from a thread of its own. The first span starts the thread.

    Args:
        exporter: The exporter. It may block, and may fail.
        exporter_log: The handler of the exporter's own log messages.
        environ: ``OTEL_BSP_*``.
        delay: Default for ``OTEL_BSP_SCHEDULE_DELAY``, milliseconds.

    Attributes:
        last_export_succeeded: The collector took the last batch.
        processed: Numbers of spans: handed to the exporter (``""``), or dropped before, by reason: ``queue_full``,
            ``already_shutdown``, ``unreadable`` (see ``refuse``).
        exports: Numbers of spans that the exporter took (``""``) and did not take (``export_failed``).
    """

    def __init__(
        self,
        exporter: SpanExporter,
        exporter_log: ExporterLog,
        environ: Mapping[str, str],
        delay: float,
    ) -> None:
        self.last_export_succeeded = False
        self.processed = {"": 0, "queue_full": 0, "already_shutdown": 0, "unreadable": 0}
        self.exports = {"": 0, "export_failed": 0}
        self._exporter = exporter
        self._sender = sender(exporter)
        self._encoder = Encoder()
        self._exporter_log = exporter_log
        self._delay = otel_environment.number(environ, "OTEL_BSP_SCHEDULE_DELAY", delay) / 1000
        self._max_queue_size = int(otel_environment.number(environ, "OTEL_BSP_MAX_QUEUE_SIZE", 2048))
        batch_size = int(otel_environment.number(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512))
        self._batch_size = min(self._max_queue_size, batch_size)
        self._queue: deque[Span | ReadableSpan] = deque()
        self._wake = threading.Event()
        self._idle = threading.Condition()
        self._busy = False
        self._flushing = 0
        self._closing = False
        self._abandoned = False
        self._thread: threading.Thread | None = None
        self._reported_at = -REPORT_INTERVAL
        self._reported = 0

    @property
    def dropped(self) -> dict[str, int]:
        """Reason → number of spans that did not arrive."""
        return {reason: count for reason, count in (*self.processed.items(), *self.exports.items()) if reason}

    def refuse(self) -> None:
        """Count a span of another process that cannot be decoded."""
        self.processed["unreadable"] += 1

    def put(self, span: Span | ReadableSpan) -> None:
        """Take a finished span: a ``Span``, or one of the SDK's."""
        queue = self._queue
        waiting = len(queue)
        if waiting >= self._max_queue_size or self._closing:
            self.processed["already_shutdown" if self._closing else "queue_full"] += 1
            return
        queue.append(span)
        if self._thread is None:
            self._start_thread()
        if waiting + 1 >= self._batch_size and not self._wake.is_set():
            self._wake.set()

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span that the SDK has ended."""
        context = span.context
        if context is not None and context.trace_flags.sampled:
            self.put(span)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Export everything that is in the queue now. Return whether that was done in time."""
        deadline = monotonic() + timeout_millis / 1000
        self._flushing += 1
        try:
            with self._idle:
                while self._queue or self._busy:
                    self._wake.set()
                    left = deadline - monotonic()
                    if left <= 0:
                        return False
                    self._idle.wait(left)
            return True
        finally:
            self._flushing -= 1

    def close(self, timeout: float) -> None:
        """Export the rest for at most ``timeout`` seconds. Spans that are left then are counted as dropped.

        A collector that did not take the last batch gets ``UNREACHABLE_TIMEOUT`` seconds.
        """
        timeout = timeout if self.last_export_succeeded else min(timeout, UNREACHABLE_TIMEOUT)
        deadline = monotonic() + timeout
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
        self._abandoned = True
        left = len(self._queue)
        if left:
            self.processed["already_shutdown"] += left
            self._queue.clear()
        self._report(last=True)
        run_bounded(self._exporter.shutdown, max(0.1, deadline - monotonic()))

    def shutdown(self) -> None:
        """Do nothing. The SDK's provider calls this, but the queue is shared: ``close`` ends it."""

    def _start_thread(self) -> None:
        with self._idle:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mesh-telemetry", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        # The exporter's own requests to the collector belong to no trace.
        attach(set_value(SUPPRESS, value=True))
        while not self._closing:
            full = self._wake.wait(self._delay)
            self._wake.clear()
            # Woken by a full batch, it exports full batches only. Else a busy component would send many small ones.
            self._export_while(self._batch_size if full and not self._flushing else 1)
        self._export_while(1)

    def _export_while(self, waiting: int) -> None:
        while len(self._queue) >= waiting and not self._abandoned:
            self._busy = True
            self._export([self._queue.popleft() for _ in range(min(self._batch_size, len(self._queue)))])
            self._report()
            with self._idle:
                self._busy = False
                self._idle.notify_all()

    def _export(self, batch: list[Span | ReadableSpan]) -> None:
        done, lost = False, 0
        self.processed[""] += len(batch)  # before the export: its outcome has a count of its own (semantic conventions)
        try:
            done, lost = self._send(batch)
        except Exception as error:  # noqa: BLE001 - a failing exporter must not end the thread
            self._exporter_log.last = f"{type(error).__name__}: {error}"
        self.last_export_succeeded = done
        failed = lost if done else len(batch)
        self.exports[""] += len(batch) - failed
        self.exports["export_failed"] += failed

    def _send(self, batch: list[Span | ReadableSpan]) -> tuple[bool, int]:
        if self._sender is not None:
            body, lost = self._encoder.encode(batch)
            return self._sender(body), lost
        spans = [span.readable() if isinstance(span, Span) else span for span in batch]
        return self._exporter.export(spans) is SpanExportResult.SUCCESS, 0

    def _report(self, *, last: bool = False) -> None:
        dropped = self.dropped
        total = sum(dropped.values())
        if total == self._reported or (not last and monotonic() - self._reported_at < REPORT_INTERVAL):
            return
        log.warning(
            "%d spans could not be exported since the last report (%s)%s",
            total - self._reported,
            ", ".join(f"{reason}: {count}" for reason, count in dropped.items() if count),
            f"; the exporter says: {self._exporter_log.last}" if self._exporter_log.last else "",
        )
        self._reported_at = monotonic()
        self._reported = total


def run_bounded(function: Callable[[], object], timeout: float) -> bool:
    """Run a function that may hang. Return whether it ended within ``timeout`` seconds."""

    def quietly() -> None:
        try:
            function()
        except Exception:
            log.exception("stopping the exporter failed")

    thread = threading.Thread(target=quietly, name="mesh-telemetry-stop", daemon=True)
    thread.start()
    thread.join(timeout)
    return not thread.is_alive()

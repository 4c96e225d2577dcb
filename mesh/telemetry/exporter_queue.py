"""Finished spans on their way out: a bounded buffer, a thread that exports, a count of what was dropped.

Putting a span in never blocks and never fails; when the buffer is full the span is counted and left out. The settings
are those of the SDK's batch processor (``OTEL_BSP_*``).
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

__all__ = ["ABSENT", "Batch", "Quiet", "run_bounded"]

log = logging.getLogger("mesh.telemetry")

SAY_AGAIN = 60.0
"""Seconds between two log lines about dropped spans."""
ABSENT = 1.0
"""Seconds that a stop waits, at most, for a collector that has not answered the last time, or not yet."""


class Quiet(logging.Handler):
    """Stands in for the exporters' own log lines, several for every failing batch: keeps the last that says why."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text, if it names a reason ("… due to timeout, max retries or shutdown" names none)."""
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - an odd record must not break what logs it
            text = str(record.msg)
        if not self.last or "error" in text or "code:" in text:
            self.last = text


class Batch(SpanProcessor):
    """Exports finished spans in batches from a thread of its own, which starts with the first span.

    Args:
        exporter: Where they go; may block, and may fail.
        quiet: Where the exporter's own log lines end up.
        environ: ``OTEL_BSP_*``.
        delay: Default for ``OTEL_BSP_SCHEDULE_DELAY``, milliseconds.

    Attributes:
        answered: The collector took the last batch.
        processed: Spans handed to the exporter (``""``), and those that were not, by reason: ``queue_full``,
            ``already_shutdown``, ``unreadable`` (see ``refuse``).
        exports: Spans that the exporter took (``""``), and those that it did not: ``export_failed``.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        quiet: Quiet,
        environ: Mapping[str, str],
        delay: float,
    ) -> None:
        self.answered = False
        self.processed = {"": 0, "queue_full": 0, "already_shutdown": 0, "unreadable": 0}
        self.exports = {"": 0, "export_failed": 0}
        self._exporter = exporter
        self._sender = sender(exporter)
        self._encoder = Encoder()
        self._quiet = quiet
        self._delay = otel_environment.number(environ, "OTEL_BSP_SCHEDULE_DELAY", delay) / 1000
        self._most = int(otel_environment.number(environ, "OTEL_BSP_MAX_QUEUE_SIZE", 2048))
        self._size = min(self._most, int(otel_environment.number(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)))
        self._queue: deque[Span | ReadableSpan] = deque()
        self._wake = threading.Event()
        self._idle = threading.Condition()
        self._busy = False
        self._flushing = 0
        self._closing = False
        self._abandoned = False
        self._thread: threading.Thread | None = None
        self._said = -SAY_AGAIN
        self._told = 0

    @property
    def dropped(self) -> dict[str, int]:
        """Reason → spans that did not arrive."""
        return {reason: count for reason, count in (*self.processed.items(), *self.exports.items()) if reason}

    def refuse(self) -> None:
        """Count a span that is none any more: what another process told of it cannot be read."""
        self.processed["unreadable"] += 1

    def put(self, span: Span | ReadableSpan) -> None:
        """Take a finished span of ours or of the SDK's."""
        queue = self._queue
        waiting = len(queue)
        if waiting >= self._most or self._closing:
            self.processed["already_shutdown" if self._closing else "queue_full"] += 1
            return
        queue.append(span)
        if self._thread is None:
            self._begin()
        if waiting + 1 >= self._size and not self._wake.is_set():
            self._wake.set()

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span that the SDK has ended."""
        context = span.context
        if context is not None and context.trace_flags.sampled:
            self.put(span)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Export everything that is in the buffer now; return whether that was done in time."""
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
        """Export what is left, for at most ``timeout`` seconds; what is not out by then is counted as dropped.

        A collector that does not answer gets ``ABSENT`` seconds.
        """
        timeout = timeout if self.answered else min(timeout, ABSENT)
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
        """Do nothing: the SDK's provider calls this, but the buffer is shared; ``close`` ends it."""

    def _begin(self) -> None:
        with self._idle:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mesh-telemetry", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        # What the exporter does to reach the collector is no part of anyone's trace.
        attach(set_value(SUPPRESS, value=True))
        while not self._closing:
            full = self._wake.wait(self._delay)
            self._wake.clear()
            # Woken by a full batch: only full ones, or a busy component would send many small ones.
            self._export_while(self._size if full and not self._flushing else 1)
        self._export_while(1)

    def _export_while(self, waiting: int) -> None:
        while len(self._queue) >= waiting and not self._abandoned:
            self._busy = True
            self._export([self._queue.popleft() for _ in range(min(self._size, len(self._queue)))])
            self._report()
            with self._idle:
                self._busy = False
                self._idle.notify_all()

    def _export(self, batch: list[Span | ReadableSpan]) -> None:
        done, lost = False, 0
        self.processed[""] += len(batch)  # now: what becomes of the export is another count (semantic conventions)
        try:
            done, lost = self._send(batch)
        except Exception as error:  # noqa: BLE001 - an exporter that fails must not end the thread
            self._quiet.last = f"{type(error).__name__}: {error}"
        self.answered = done
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
        if total == self._told or (not last and monotonic() - self._said < SAY_AGAIN):
            return
        log.warning(
            "%d spans could not be exported since the last report (%s)%s",
            total - self._told,
            ", ".join(f"{reason}: {count}" for reason, count in dropped.items() if count),
            f"; the exporter says: {self._quiet.last}" if self._quiet.last else "",
        )
        self._said = monotonic()
        self._told = total


def run_bounded(function: Callable[[], object], timeout: float) -> bool:
    """Run a function that may hang, for at most ``timeout`` seconds; return whether it came to its end."""

    def quietly() -> None:
        try:
            function()
        except Exception:
            log.exception("stopping the exporter failed")

    thread = threading.Thread(target=quietly, name="mesh-telemetry-stop", daemon=True)
    thread.start()
    thread.join(timeout)
    return not thread.is_alive()

"""JSON logs on standard error: one object a line, with the ids of the current trace and span.

Every record becomes a line, whatever it holds. Logging never raises into the code that logs.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson
from opentelemetry import trace

from mesh.text import can_encode, text_of

__all__ = ["JsonFormatter", "install"]

_RECORD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes of every record. All others were given with ``extra=``."""
_KEYS = frozenset({"time", "level", "logger", "message", "service", "trace_id", "span_id", "exception"})
_VERBOSE_LOGGERS = ("alembic",)
"""Loggers of libraries that log their internals as INFO. They log from WARNING on."""
_HEADER_LOGGERS = (
    "opentelemetry.baggage", "opentelemetry.trace.propagation.tracecontext", "opentelemetry.trace.span",
)  # fmt: skip
"""Loggers that warn of each malformed member of a caller's ``baggage``, ``tracestate`` or ``traceparent``. One request
could write hundreds of lines."""
_LINE_ENDS = {ord(char): f"\\u{ord(char):04x}" for char in "\x7f\x85\u2028\u2029"}
"""Characters that JSON does not escape, and that readers may take for the end of a line."""


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON.

    Keys: ``time`` (RFC 3339, UTC, microseconds), ``level``, ``logger``, ``message``, ``service``; ``trace_id`` and
    ``span_id`` (hex) inside a span; ``exception`` (traceback text) if there is one. Values given with ``extra=`` keep
    their names. A name that is taken gets a ``_`` at its end.

    Args:
        service: The component's name.
        stream: Destination of the lines. Characters that its encoding lacks are escaped. None: nothing is escaped.
    """

    def __init__(self, service: str, stream: TextIO | None = None) -> None:
        super().__init__()
        self._service = service
        self._stream = stream

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="microseconds")
            .replace("+00:00", "Z"),
            "level": str(record.levelname),
            "logger": str(record.name),
            "message": _message(record),
            "service": self._service,
        }
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            fields["trace_id"] = f"{context.trace_id:032x}"
            fields["span_id"] = f"{context.span_id:016x}"
        exception = _exception(record)
        if exception:
            fields["exception"] = exception
        for key, value in vars(record).items():
            if key not in _RECORD_ATTRIBUTES:
                fields[f"{key}_" if key in _KEYS else key] = value
        line = _json(fields)
        if line.isascii() or self._stream is None or can_encode(self._stream, line):
            return line
        return json.dumps(orjson.loads(line))


def install(service: str, level: str = "INFO", stream: TextIO | None = None) -> logging.Handler:
    """Send every logger's records of ``level`` and above to ``stream`` (None: stderr) as JSON lines.

    Handlers of the root logger are removed. Warnings of the ``warnings`` module become records too.

    Raises:
        ValueError: There is no such level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"no log level {level!r}; known are DEBUG, INFO, WARNING, ERROR, CRITICAL")
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(service, stream))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    for name in _VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    for name in _HEADER_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)
    return handler


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except BaseException:  # noqa: BLE001 - wrong arguments or a broken __str__
        return f"{text_of(record.msg)} (arguments that do not fit: {text_of(record.args)})"


def _exception(record: logging.LogRecord) -> str:
    try:
        if record.exc_info and record.exc_info[1] is not None:
            return "".join(traceback.format_exception(record.exc_info[1]))
    except BaseException:  # noqa: BLE001 - the same
        return "an exception that could not be printed"
    return record.exc_text or record.stack_info or ""


def _json(fields: dict[str, Any]) -> str:
    try:
        line = orjson.dumps(fields, default=text_of, option=orjson.OPT_NON_STR_KEYS).decode()
    except BaseException:  # noqa: BLE001 - a value that contains itself, half a surrogate pair: every value becomes text
        return json.dumps({text_of(key): text_of(value) for key, value in fields.items()})
    return line.translate(_LINE_ENDS)

"""One JSON object a line, whatever is logged."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from telemetry_parts import call_of

from mesh.call import Call
from mesh.telemetry import Telemetry
from mesh.telemetry.logs import JsonFormatter, install


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    found = io.StringIO()
    yield found
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line(stream: io.StringIO) -> None:
    install("registration", "info", stream)
    logging.getLogger("services.registration").info("user %s\nregistered", 7, extra={"user": 7, "level": "mine"})
    logging.getLogger("services.registration").debug("too quiet")
    [line] = lines(stream)
    at = line.pop("time")
    assert datetime.fromisoformat(at).tzinfo is not None
    assert at.endswith("Z")
    assert line == {
        "level": "INFO",
        "logger": "services.registration",
        "message": "user 7\nregistered",
        "service": "registration",
        "user": 7,
        "level_": "mine",
    }


async def test_a_line_names_its_span(stream: io.StringIO, start: Callable[..., Telemetry]) -> None:
    telemetry = start()
    install("registration", "INFO", stream)
    seen: list[trace.SpanContext] = []

    async def function(call: Call) -> None:
        seen.append(trace.get_current_span().get_span_context())
        logging.getLogger("f").info("inside")

    await telemetry.inbound(call_of(), function)
    logging.getLogger("f").info("outside")
    inside, outside = lines(stream)
    assert inside["trace_id"] == f"{seen[0].trace_id:032x}"
    assert inside["span_id"] == f"{seen[0].span_id:016x}"
    assert "trace_id" not in outside


def test_an_exception_is_one_line(stream: io.StringIO) -> None:
    install("registration", "INFO", stream)
    try:
        {}["7"]
    except KeyError:
        logging.getLogger("f").exception("failed")
    [line] = lines(stream)
    assert line["exception"].startswith("Traceback")
    assert line["exception"].rstrip().endswith("KeyError: '7'")


@pytest.mark.parametrize(
    "record",
    [
        {"msg": "%s and %s", "args": ("one",)},
        {"msg": "%d", "args": ("text",)},
        {"msg": Unprintable(), "args": None},
        {"msg": "%s", "args": (Unprintable(),)},
        {"msg": "half \ud800 a pair", "args": None},
        {"msg": "x", "args": None, "more": {1, 2}},
        {"msg": "x", "args": None, "more": {(1, 2): 3}},
        {"msg": "x", "args": None, "more": Unprintable()},
        {"msg": "x", "args": None, "more": b"\xff"},
        {"msg": "x", "args": None, "exc_info": (RuntimeError, None, None)},
        {"msg": "x", "args": None, "exc_info": (RuntimeError, Unprintable(), None)},
        {"msg": "x", "args": None, "levelname": None, "name": None},
    ],
)
def test_odd_records_are_lines_too(record: dict[str, Any]) -> None:
    line = JsonFormatter("registration").format(logging.makeLogRecord(record))
    assert "\n" not in line
    line.encode()
    assert json.loads(line)["service"] == "registration"


def test_a_value_that_holds_itself() -> None:
    circle: list[Any] = []
    circle.append(circle)
    line = JsonFormatter("registration").format(logging.makeLogRecord({"msg": "x", "circle": circle}))
    assert json.loads(line)["message"] == "x"


@given(st.text(), st.recursive(st.none() | st.floats() | st.binary() | st.text(), st.lists, max_leaves=5))
def test_any_text_and_any_value(message: str, value: Any) -> None:
    line = JsonFormatter("registration").format(logging.makeLogRecord({"msg": message, "more": value}))
    assert len(line.splitlines()) == 1
    told = json.loads(line, parse_constant=pytest.fail)
    assert told["service"] == "registration"


def test_a_library_that_talks_of_itself_is_heard_from_warnings_on(stream: io.StringIO) -> None:
    install("registration", "INFO", stream)
    logging.getLogger("alembic.runtime.migration").info("Context impl SQLiteImpl.")
    logging.getLogger("alembic.runtime.migration").warning("a warning")
    assert [line["message"] for line in lines(stream)] == ["a warning"]


def test_malformed_headers_of_a_caller_write_no_lines(stream: io.StringIO) -> None:
    install("login", "DEBUG", stream)
    members = ",".join(["x"] * 150)
    for header, value in (
        ("baggage", members),
        ("tracestate", members),
        ("traceparent", "0" * 1000),
        ("baggage", "a=b," * 4096),
    ):
        carrier = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", header: value}
        propagate.extract(carrier, context=Context())
    assert stream.getvalue() == ""


def test_an_unknown_level_is_said() -> None:
    with pytest.raises(ValueError, match="no log level 'loud'; known are DEBUG"):
        install("registration", "loud")

"""``traceparent`` is parsed as OpenTelemetry's propagator parses it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mesh.trace_context import format_traceparent, parse_span_context, parse_traceparent

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"

hexadecimal = st.text("0123456789abcdefABCDEFg", max_size=34)
headers = st.one_of(
    st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=80),
    st.builds("-".join, st.lists(hexadecimal, min_size=3, max_size=6)),
    st.builds(
        "{}-{:032x}-{:016x}-{:02x}{}".format,
        st.sampled_from(["00", "01", "cc", "fe", "ff", "0", "000"]),
        st.integers(0, 2**128 - 1),
        st.integers(0, 2**64 - 1),
        st.integers(0, 255),
        st.sampled_from(["", "-", "-more", " ", "\t", ".x", "0"]),
    ),
)


@given(headers)
@example(f"00-{TRACE}-{SPAN}-01")
@example(f"  00-{TRACE}-{SPAN}-01  ")
@example(f"00-{'0' * 32}-{SPAN}-01")
@example(f"00-{TRACE}-{'0' * 16}-01")
@example(f"cc-{TRACE}-{SPAN}-01-what-comes-later")
@example(f"cc-{TRACE}-{SPAN}-01" + "-x" * 300)
def test_the_same_as_the_apis_propagator(header: str) -> None:
    theirs = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": header})).get_span_context()
    ours = parse_traceparent(header.encode())
    assert (ours is not None) == theirs.is_valid
    if ours is not None:
        assert ours.context() == theirs


@pytest.mark.parametrize(
    "header", ["", "00", f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN}", f"ff-{TRACE}-{SPAN}-01"]
)
def test_what_is_not_valid_is_ignored(header: str) -> None:
    assert parse_traceparent(header.encode()) is None


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 255))
def test_a_written_header_is_read_back_with_the_flags_that_are_defined(trace: int, span: int, flags: int) -> None:
    parsed = parse_traceparent(format_traceparent(trace, span, flags))
    assert parsed is not None
    assert (parsed.trace_id, parsed.span_id, parsed.flags) == (trace, span, flags & 0b11)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "ff-" + "1" * 32 + "-" + "1" * 16 + "-01",
        "nonsense",
        "é\udc80",
        "00-" + "A" * 32 + "-" + "b" * 16 + "-01",
    ],
)
def test_an_invalid_traceparent_names_no_span(text: str) -> None:
    assert parse_span_context(text, "") is None


def test_the_span_that_two_values_name() -> None:
    found = parse_span_context("00-" + "a" * 32 + "-" + "b" * 16 + "-01", "x=1")
    assert found is not None
    assert (found.trace_id, found.span_id, found.is_remote) == (int("a" * 32, 16), int("b" * 16, 16), True)
    assert found.trace_state.get("x") == "1"

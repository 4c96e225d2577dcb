"""Our quick way of reading and writing ``traceparent`` is OpenTelemetry's own, only quicker."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mesh.call import Metadata
from mesh.telemetry.recorder import Recorder
from mesh.telemetry.span import Constant
from mesh.telemetry.trace_context import Propagation, parse_traceparent

recorder = Recorder(TracerProvider(shutdown_on_exit=False), (), "1.2.3")

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


@given(
    st.lists(
        st.tuples(st.sampled_from([b"traceparent", b"tracestate", b"baggage", b"x"]), st.binary(max_size=60)),
        max_size=6,
    )
)
@example([(b"traceparent", f"00-{TRACE}-{SPAN}-01".encode()), (b"tracestate", b"\xff=,=,a=1")])
@example([(b"baggage", b"a=%ff,b=" + b"x" * 9000), (b"baggage", b"=,;,c=\xc3\xa4")])
def test_no_header_breaks_a_call(pairs: list[tuple[bytes, bytes]]) -> None:
    propagation = Propagation()
    parent, context = propagation.extract(Metadata.from_wire(pairs))
    span = recorder.start("a.B/C", SpanKind.SERVER, Constant({}), parent, context)
    out = Metadata()
    propagation.inject(span, set_span_in_context(span, context), out)
    sent = parse_traceparent(out.wire(b"traceparent") or b"")
    assert sent is not None
    assert (sent.trace_id, sent.span_id) == (span.trace_id, span.span_id)
    if parent is not None:
        assert sent.trace_id == parent.trace_id

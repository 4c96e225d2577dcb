"""Context propagation: no header breaks a call, and the trace goes on."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, set_span_in_context

from mesh.call import Metadata
from mesh.telemetry.propagation import CallerTrace, Propagation
from mesh.telemetry.recorder import Recorder
from mesh.telemetry.span import Constant
from mesh.trace_context import parse_traceparent

recorder = Recorder(TracerProvider(shutdown_on_exit=False), (), "1.2.3")

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


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


@pytest.mark.parametrize(
    "more", [(), ((b"baggage", b"a=1"),), ((b"tracestate", b"a=1"),)], ids=["alone", "baggage", "state"]
)
@pytest.mark.parametrize("flags", ["00", "01"])
def test_a_linked_span_is_the_one_that_the_caller_names(more: tuple[tuple[bytes, bytes], ...], flags: str) -> None:
    header = (b"traceparent", f"00-{TRACE}-{SPAN}-{flags}".encode())
    span = Propagation(CallerTrace.LINK).caller_span(Metadata.from_wire([header, *more]))
    assert span is not None
    assert (span.trace_id, span.span_id, span.trace_flags) == (int(TRACE, 16), int(SPAN, 16), int(flags))
    assert span.is_remote
    assert span.trace_state.to_header() == ("a=1" if more and more[0][0] == b"tracestate" else "")
    assert Propagation(CallerTrace.LINK).caller_span(Metadata.from_wire(more)) is None

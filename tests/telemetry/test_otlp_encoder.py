"""Our encoder writes what the SDK's writes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.span import TraceState

from mesh.telemetry.otlp_encoder import Encoder
from mesh.telemetry.recorder import Recorder
from mesh.telemetry.span import Constant, Span
from mesh.trace_context import ParentSpan

provider = TracerProvider(resource=Resource({"service.name": "registration"}), shutdown_on_exit=False)
recorder = Recorder(provider, (), "1.2.3")

texts = st.text(st.characters(exclude_categories=()))
"""Half surrogate pairs too."""
values = st.one_of(
    st.text(max_size=200),
    texts,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(),
    st.floats(allow_nan=False),
    st.lists(st.text(), max_size=3),
    st.binary(max_size=9),
)
attributes = st.dictionaries(st.text(min_size=1, max_size=40), values, max_size=6)
parents = st.builds(
    ParentSpan,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.just(1),
    st.one_of(st.none(), st.just(TraceState([("a", "1")]))),
    st.booleans(),
)


@st.composite
def spans(draw: Any) -> Span:
    constant = draw(attributes)
    span = Span(
        recorder,
        draw(st.text(max_size=150) | texts),
        draw(st.sampled_from([SpanKind.SERVER, SpanKind.CLIENT])),
        Constant(constant) if draw(st.booleans()) else constant,
        draw(st.integers(1, 2**128 - 1)),
        draw(st.integers(1, 2**64 - 1)),
        1,
        None,
        parent := draw(st.none() | parents),
        True,  # noqa: FBT003 - by position, as the recorder does
    )
    span.state = parent.state if parent else None
    own = draw(st.none() | attributes)
    span.attributes = own if own is None or draw(st.booleans()) else Constant(own)
    if draw(st.booleans()):
        span.set_status(draw(st.sampled_from([StatusCode.OK, StatusCode.ERROR])), draw(texts))
    if draw(st.booleans()):
        span.add_event("happened", {"a": 1})
    span.stop()
    return span


def by_id(request: ExportTraceServiceRequest) -> dict[bytes, Any]:
    return {
        span.span_id: (resource.resource, scope.scope, scope.schema_url, span)
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }


def unordered(told: dict[bytes, Any]) -> dict[bytes, Any]:
    for _, _, _, span in told.values():
        pairs = sorted(span.attributes, key=lambda pair: pair.key)
        del span.attributes[:]
        span.attributes.extend(pairs)
    return told


@given(st.lists(spans(), max_size=4, unique_by=lambda span: span.span_id))
def test_the_same_as_the_sdk(batch: list[Span]) -> None:
    encoder = Encoder()
    for _ in range(2):  # the second time from what it kept
        body, lost = encoder.encode(batch)
        assert lost == 0
        ours = ExportTraceServiceRequest.FromString(body)
        theirs = encode_spans([span.readable() for span in batch])
        assert unordered(by_id(ours)) == unordered(by_id(theirs))


def test_a_functions_spans_travel_with_ours() -> None:
    ours = recorder.start("ours", SpanKind.SERVER, Constant({}), None, None)  # type: ignore[arg-type]
    ours.stop()
    theirs: Any = provider.get_tracer("function").start_span("theirs")
    theirs.end()
    body, _ = Encoder().encode([ours, theirs, ours])
    names = [
        span.name
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert names == ["ours", "ours", "theirs"]


def test_a_span_that_cannot_be_encoded_is_counted_and_the_others_go() -> None:
    good = recorder.start("good", SpanKind.SERVER, Constant({}), None, None)  # type: ignore[arg-type]
    good.stop()
    odd = recorder.start("odd", SpanKind.SERVER, Constant({}), None, None)  # type: ignore[arg-type]
    odd.attributes = {"half": "\ud800"}
    odd.events = "nonsense"  # type: ignore[assignment]
    odd.stop()
    body, lost = Encoder().encode([odd, good])
    assert lost == 1
    assert len(by_id(ExportTraceServiceRequest.FromString(body))) == 1


def ended(name: str) -> Any:
    """A span of ours that has ended."""
    span = recorder.start(name, SpanKind.SERVER, Constant({}), None, None)  # type: ignore[arg-type]
    span.stop()
    return span


def of_a_function(name: str) -> Any:
    span: Any = provider.get_tracer("function").start_span(name)
    span.set_status(StatusCode.ERROR, "why \ud800")
    span.end()
    return span


@pytest.mark.parametrize("made", [ended, of_a_function])
def test_a_text_that_is_no_utf_8_is_replaced(made: Any) -> None:
    failed = ended("failed")
    failed.status, failed.message = StatusCode.ERROR, "why \ud800"
    body, lost = Encoder().encode([ended("good"), made("half \ud800"), failed])
    spans = [span for *_, span in by_id(ExportTraceServiceRequest.FromString(body)).values()]
    assert (lost, sorted(span.name for span in spans)) == (0, ["failed", "good", "half ?"])
    assert {span.status.message for span in spans if span.status.code == StatusCode.ERROR.value} == {"why ?"}


def test_spans_that_the_sdk_cannot_encode_are_counted_and_the_others_go() -> None:
    odd = [ended("before 1970"), of_a_function("after 2554")]
    odd[0].finish = -1
    odd[1]._end_time = 2**70
    good = of_a_function("good")
    body, lost = Encoder().encode([*odd, good, ended("ours")])
    names = {span.name for *_, span in by_id(ExportTraceServiceRequest.FromString(body)).values()}
    assert (lost, names) == (2, {"good", "ours"})

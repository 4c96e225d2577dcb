"""What the trace context of a client does to the traces of the edge: it cannot turn them off unless it is trusted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from telemetry_parts import HttpCollector, Request, call_of

from mesh.call import Call
from mesh.errors import Unauthenticated
from mesh.telemetry import Telemetry
from mesh.telemetry.propagation import CallerTrace

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
UNSAMPLED = (b"traceparent", f"00-{TRACE}-{SPAN}-00".encode())
Start = Callable[..., Telemetry]


async def refuse(_: Call) -> None:
    raise Unauthenticated("wrong password")


async def ask(telemetry: Telemetry, kind: str, *pairs: tuple[bytes, bytes]) -> None:
    if kind == "http":
        request = Request(verb="POST", path="/v1/sessions")
        for pair in pairs:
            request.metadata.append(*pair)
        layer, call = telemetry.http, request
    else:
        layer, call = telemetry.inbound, call_of(*pairs)
    with pytest.raises(Unauthenticated):
        await layer(call, refuse)


@pytest.mark.parametrize("kind", ["http", "grpc"])
@pytest.mark.parametrize("callers", [CallerTrace.LINK, CallerTrace.RESTART])
async def test_a_client_cannot_switch_the_trace_of_a_refused_login_off(
    start: Start, collector: HttpCollector, callers: CallerTrace, kind: str
) -> None:
    telemetry = start(callers=callers, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    await ask(telemetry, kind, UNSAMPLED, (b"baggage", b"user=forged"))
    assert telemetry.flush()
    (span,) = collector.all()
    assert span.trace_id.hex() != TRACE
    assert not span.parent_span_id
    links = [(link.trace_id.hex(), link.span_id.hex()) for link in span.links]
    assert links == ([(TRACE, SPAN)] if callers is CallerTrace.LINK else [])


@pytest.mark.parametrize("kind", ["http", "grpc"])
async def test_a_trusted_client_decides(start: Start, collector: HttpCollector, kind: str) -> None:
    telemetry = start(callers=CallerTrace.TRUST, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    await ask(telemetry, kind, UNSAMPLED)
    await ask(telemetry, kind, (b"traceparent", f"00-{TRACE}-{SPAN}-01".encode()))
    assert telemetry.flush()
    (span,) = collector.all()
    assert (span.trace_id.hex(), span.parent_span_id.hex(), list(span.links)) == (TRACE, SPAN, [])


@pytest.mark.parametrize("header", [b"", b"00-x", f"00-{'0' * 32}-{SPAN}-01".encode(), b"\xff"])
async def test_a_malformed_context_is_no_link(start: Start, collector: HttpCollector, header: bytes) -> None:
    telemetry = start(callers=CallerTrace.LINK, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    await ask(telemetry, "http", (b"traceparent", header))
    assert telemetry.flush()
    (span,) = collector.all()
    assert list(span.links) == []

"""The three layers, seen by a real collector."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from telemetry_parts import METHOD, FakeMethod, GrpcCollector, HttpCollector, Request, attributes, call_of

from mesh.call import Call, chain
from mesh.errors import Internal, NotFound, RemoteError, StatusError, Unavailable
from mesh.layers.recover import recover
from mesh.telemetry import Telemetry

Start = Callable[..., Telemetry]
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())


async def nothing(call: Call) -> None:
    """Answer OK."""


async def test_a_call_through_three_services_is_one_trace(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    tracer = trace.get_tracer("services.registration")

    async def far(call: Call) -> None:
        await telemetry.inbound(call_of(*call.metadata.pairs, method=FakeMethod("/login.v1.Login/Set")), nothing)

    async def function(call: Call) -> None:
        with tracer.start_as_current_span("work"):
            await telemetry.outbound(call_of(method=FakeMethod("/login.v1.Login/Set")), far)

    async def route(call: Call) -> None:
        request: Any = call
        request.route = "/v1/users/{id}"
        await telemetry.outbound(call_of(), lambda out: telemetry.inbound(call_of(*out.metadata.pairs), function))
        request.status = 201

    request = Request(verb="POST")
    await telemetry.http(request, route)
    assert telemetry.flush()

    edge = collector.one("POST /v1/users/{id}")
    spans = {(span.name, span.kind): span for span in collector.all()}
    to_registration = spans["registration.v1.Registration/Register", Span.SPAN_KIND_CLIENT]
    registration = spans["registration.v1.Registration/Register", Span.SPAN_KIND_SERVER]
    work = spans["work", Span.SPAN_KIND_INTERNAL]
    to_login = spans["login.v1.Login/Set", Span.SPAN_KIND_CLIENT]
    login = spans["login.v1.Login/Set", Span.SPAN_KIND_SERVER]
    line = [edge, to_registration, registration, work, to_login, login]
    assert len(collector.all()) == len(line)
    assert {span.trace_id for span in line} == {edge.trace_id}
    assert [span.parent_span_id for span in line] == [b"", *(span.span_id for span in line[:-1])]
    assert edge.kind == Span.SPAN_KIND_SERVER
    for outer, inner in itertools.pairwise(line):
        assert outer.start_time_unix_nano <= inner.start_time_unix_nano <= inner.end_time_unix_nano
        assert inner.end_time_unix_nano <= outer.end_time_unix_nano + 1_000_000  # two clocks: the SDK's and ours
    assert (b"x-trace-id", edge.trace_id.hex().encode()) in request.headers
    named = f"00-{edge.trace_id.hex()}-{edge.span_id.hex()}-01".encode()
    assert (b"traceresponse", named) in request.headers
    assert login.flags & 0x300 == 0x300  # the parent is remote, and that is known
    assert to_login.flags & 0x300 == 0x100


async def test_over_grpc_too(start: Start, grpc_collector: GrpcCollector) -> None:
    telemetry = start(
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=grpc_collector.url,
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_HEADERS="api-key=s3cret",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment=test,service.version=9",
        OTEL_SERVICE_NAME="other",
    )
    await telemetry.inbound(call_of(TRACEPARENT), nothing)
    assert telemetry.flush()
    span = grpc_collector.one("registration.v1.Registration/Register")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(span) == {
        "rpc.system.name": "grpc",
        "rpc.method": "registration.v1.Registration/Register",
        "rpc.response.status_code": "OK",
    }
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert grpc_collector.headers[0]["api-key"] == "s3cret"
    [scope] = grpc_collector.requests[0].resource_spans[0].scope_spans
    assert (scope.scope.name, scope.scope.version) == ("mesh", "1.2.3")
    resource = attributes(grpc_collector.requests[0].resource_spans[0].resource)
    assert resource["service.name"] == "other"
    assert resource["service.version"] == "9"
    assert resource["deployment.environment"] == "test"


async def test_the_component_names_the_service(start: Start, collector: HttpCollector) -> None:
    telemetry = start(component="login", default_endpoint=collector.url)
    await telemetry.inbound(call_of(), nothing)
    assert telemetry.flush()
    resource = attributes(collector.requests[0].resource_spans[0].resource)
    assert (resource["service.name"], resource["service.version"]) == ("login", "1.2.3")


async def test_standard_variables_win_over_the_default_endpoint(start: Start, collector: HttpCollector) -> None:
    telemetry = start(default_endpoint=collector.url, OTEL_TRACES_EXPORTER="none")
    await telemetry.inbound(call_of(), nothing)
    assert telemetry.flush()
    await telemetry.shutdown()
    assert collector.all() == []


async def test_gzip(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_EXPORTER_OTLP_COMPRESSION="gzip")
    await telemetry.inbound(call_of(), nothing)
    assert telemetry.flush()
    assert collector.headers[0]["content-encoding"] == "gzip"
    assert collector.headers[0]["content-type"] == "application/x-protobuf"
    assert len(collector.all()) == 1


@pytest.mark.parametrize(
    ("error", "server", "client"),
    [
        (NotFound("no user 7"), False, True),
        (Unavailable("not now"), True, True),
        (Internal("internal error"), True, True),
        (StatusError.of(7, "no"), False, True),
    ],
)
async def test_only_a_servers_own_faults_are_errors_of_its_span(
    start: Start, collector: HttpCollector, error: StatusError, *, server: bool, client: bool
) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)

    async def fail(call: Call) -> None:
        raise error

    for layer in (telemetry.inbound, telemetry.outbound):
        with pytest.raises(StatusError) as caught:
            await layer(call_of(), fail)
        assert caught.value is error
    assert telemetry.flush()
    for kind, failed in ((Span.SPAN_KIND_SERVER, server), (Span.SPAN_KIND_CLIENT, client)):
        [span] = [span for span in collector.all() if span.kind == kind]
        told = attributes(span)
        assert told["rpc.response.status_code"] == error.code.name
        assert told.get("error.type") == (error.code.name if failed else None)
        assert (span.status.code == Status.STATUS_CODE_ERROR) is failed
        assert span.status.message == (error.message if failed else "")
        assert not span.events


async def test_a_bug_is_recorded_with_its_traceback_though_the_caller_sees_nothing(
    start: Start, collector: HttpCollector
) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)

    async def bug(call: Call) -> None:
        raise KeyError("secret of the inside")

    with pytest.raises(Internal) as caught:
        await chain(telemetry.inbound, recover, bug)(call_of())
    assert "secret" not in caught.value.message
    assert telemetry.flush()
    [span] = collector.all()
    [event] = span.events
    told = attributes(event)
    assert event.name == "exception"
    assert (told["exception.type"], told["exception.message"]) == ("KeyError", "'secret of the inside'")
    assert "in bug" in told["exception.stacktrace"]
    assert span.status.message == "KeyError: 'secret of the inside'"
    assert span.start_time_unix_nano <= event.time_unix_nano <= span.end_time_unix_nano


async def test_an_answer_made_from_an_exception_is_no_bug(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)

    async def answer(call: Call) -> None:
        raise NotFound("no such user") from KeyError("7")

    with pytest.raises(NotFound):
        await telemetry.inbound(call_of(), answer)
    assert telemetry.flush()
    [span] = collector.all()
    assert not span.events
    assert span.status.code == Status.STATUS_CODE_UNSET


async def test_a_remote_failure_has_its_own_code(start: Start, collector: HttpCollector) -> None:
    class StubError(RemoteError, Exception):
        status = NotFound("gone")

    async def fail(call: Call) -> None:
        raise StubError

    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    with pytest.raises(StubError):
        await telemetry.outbound(call_of(), fail)
    assert telemetry.flush()
    [span] = collector.all()
    assert attributes(span)["rpc.response.status_code"] == "NOT_FOUND"


async def test_cancellation_is_recorded_and_goes_on(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    begun = asyncio.Event()

    async def forever(call: Call) -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(telemetry.inbound(call_of(), forever))  # type: ignore[arg-type]
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert telemetry.flush()
    [span] = collector.all()
    assert attributes(span)["rpc.response.status_code"] == "CANCELLED"
    assert span.status.code == Status.STATUS_CODE_UNSET  # nobody here did anything wrong


async def test_the_callers_context_does_not_stay(start: Start) -> None:
    telemetry = start()
    await telemetry.inbound(call_of(TRACEPARENT), nothing)
    assert not trace.get_current_span().get_span_context().is_valid


async def test_http_attributes(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)

    async def route(call: Call) -> None:
        request: Any = call
        request.route, request.status = "/v1/users/{id}", 200

    await telemetry.http(Request(TRACEPARENT, (b"user-agent", b"curl/8")), route)
    assert telemetry.flush()
    [span] = collector.all()
    assert span.name == "GET /v1/users/{id}"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(span) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/v1/users/{id}",
        "url.path": "/v1/users/7",
        "url.scheme": "http",
        "server.address": "api.example.org",
        "server.port": 8080,
        "client.address": "192.0.2.7",
        "client.port": 50123,
        "network.protocol.version": "2",
        "user_agent.original": "curl/8",
    }


@pytest.mark.parametrize(("set_by_edge", "expected", "failed"), [(0, 404, False), (405, 405, False), (502, 502, True)])
async def test_a_refused_request_is_traced_and_names_its_trace(
    start: Start, collector: HttpCollector, set_by_edge: int, expected: int, *, failed: bool
) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)

    async def refuse(call: Call) -> None:
        call.status = set_by_edge  # type: ignore[attr-defined]
        raise NotFound("no such route")

    request = Request(verb="BREW", path="/coffee")
    with pytest.raises(NotFound):
        await telemetry.http(request, refuse)
    assert telemetry.flush()
    [span] = collector.all()
    told = attributes(span)
    assert span.name == "HTTP"
    assert (told["http.request.method"], told["http.request.method_original"]) == ("_OTHER", "BREW")
    assert told["http.response.status_code"] == expected
    assert (span.status.code == Status.STATUS_CODE_ERROR) is failed
    assert told.get("error.type") == (str(expected) if failed else None)
    assert dict(request.headers)[b"x-trace-id"].decode() == span.trace_id.hex()


async def test_what_a_function_tells_the_current_span_is_kept(start: Start, collector: HttpCollector) -> None:
    telemetry = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="4",
        OTEL_SPAN_EVENT_COUNT_LIMIT="2",
        OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT="12",
    )
    other = trace.SpanContext(1, 2, is_remote=True)

    async def function(call: Call) -> None:
        span = trace.get_current_span()
        assert span.is_recording()
        for at in range(5):
            span.set_attribute(f"own.{at}", "0123456789abcdef")
        for at in range(5):
            span.add_event("step", {"at": at})
        span.add_link(other, {"why": "because"})
        span.set_status(trace.StatusCode.ERROR, "said by the function")

    await telemetry.inbound(call_of(), function)
    assert telemetry.flush()
    [span] = collector.all()
    told = attributes(span)
    assert len(told) == 4
    assert told["rpc.response.status_code"] == "OK"
    assert told["own.0"] == "0123456789ab"
    assert span.dropped_attributes_count == 4
    assert (len(span.events), span.dropped_events_count) == (2, 3)
    assert span.links[0].span_id.hex() == "0000000000000002"
    assert span.status.message == "said by the function"


@pytest.mark.parametrize(
    ("limit", "value"), [("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "5"), ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1")]
)
async def test_limits_hold_for_our_own_attributes(
    start: Start, collector: HttpCollector, limit: str, value: str
) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **{limit: value})
    await telemetry.inbound(call_of(), nothing)
    assert telemetry.flush()
    [span] = collector.all()
    told = attributes(span)
    if limit.endswith("LENGTH_LIMIT"):
        assert told["rpc.method"] == "regis"
    else:
        assert (len(told), span.dropped_attributes_count) == (1, 2)


async def test_sampled_off_travels_and_nothing_is_exported(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_TRACES_SAMPLER="always_off")
    seen: list[bytes | None] = []

    async def function(call: Call) -> None:
        assert not trace.get_current_span().is_recording()
        with trace.get_tracer("function").start_as_current_span("own"):
            out = call_of()
            await telemetry.outbound(out, nothing)
            seen.append(out.metadata.wire(b"traceparent"))

    await telemetry.inbound(call_of(TRACEPARENT), function)
    await telemetry.inbound(call_of(), function)
    assert telemetry.flush()
    await telemetry.shutdown()
    assert [header is not None and header.endswith(b"-00") for header in seen] == [True, True]
    assert seen[0] is not None
    assert seen[0].startswith(f"00-{TRACE}".encode())
    assert collector.all() == []


@pytest.mark.parametrize(
    ("sampler", "argument", "parent", "sampled"),
    [
        ("parentbased_always_on", "", None, True),
        ("parentbased_always_on", "", b"01", True),
        ("parentbased_always_on", "", b"00", False),
        ("parentbased_always_off", "", None, False),
        ("parentbased_always_off", "", b"01", True),
        ("parentbased_traceidratio", "0", None, False),
        ("parentbased_traceidratio", "0", b"01", True),
        ("traceidratio", "0", b"01", False),
        ("traceidratio", "1", b"00", True),
        ("always_on", "", b"00", True),
    ],
)
async def test_samplers(
    start: Start, collector: HttpCollector, sampler: str, argument: str, parent: bytes | None, *, sampled: bool
) -> None:
    telemetry = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_TRACES_SAMPLER=sampler, OTEL_TRACES_SAMPLER_ARG=argument
    )
    pairs = [] if parent is None else [(b"traceparent", f"00-{TRACE}-{PARENT}-".encode() + parent)]
    await telemetry.inbound(call_of(*pairs), nothing)
    assert telemetry.flush()
    assert len(collector.all()) == sampled


async def test_baggage_and_tracestate_pass_through(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    out = call_of()

    async def function(call: Call) -> None:
        assert baggage.get_baggage("tenant") == "blue"
        await telemetry.outbound(out, nothing)

    pairs = (TRACEPARENT, (b"tracestate", b"a=1"), (b"tracestate", b"b=2"), (b"baggage", b"tenant=blue"))
    await telemetry.inbound(call_of(*pairs), function)
    assert telemetry.flush()
    assert out.metadata.wire(b"baggage") == b"tenant=blue"
    assert out.metadata.wire(b"tracestate") == b"a=1,b=2"
    assert {span.trace_state for span in collector.all()} == {"a=1,b=2"}
    assert {span.trace_id.hex() for span in collector.all()} == {TRACE}


async def test_a_disabled_sdk_still_passes_the_context_on(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SDK_DISABLED="true")
    out = call_of()
    await telemetry.inbound(call_of(TRACEPARENT), lambda _: telemetry.outbound(out, nothing))
    await telemetry.http(Request(), nothing)
    await telemetry.shutdown()
    assert out.metadata.wire(b"traceparent") == TRACEPARENT[1]
    assert collector.requests == []


async def test_without_a_collector_calls_still_have_ids(start: Start) -> None:
    telemetry = start()
    request = Request()
    await telemetry.http(request, nothing)
    assert len(dict(request.headers)[b"x-trace-id"]) == 32
    await telemetry.shutdown()


async def test_paths_that_a_caller_invents_do_not_fill_the_memory(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_MAX_QUEUE_SIZE="5000")
    for at in range(2100):
        await telemetry.inbound(call_of(method=FakeMethod(f"/no/{at}")), nothing)
    assert telemetry.flush()
    assert len({span.name for span in collector.all()}) == 2001
    assert METHOD.path


async def test_a_span_made_in_a_thread_has_the_right_parent(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)

    def blocking() -> None:
        with trace.get_tracer("function").start_as_current_span("in a thread"):
            trace.get_current_span().set_attribute("thread", value=True)

    async def function(call: Call) -> None:
        await asyncio.to_thread(blocking)

    await telemetry.inbound(call_of(), function)
    assert telemetry.flush()
    ours = collector.one("registration.v1.Registration/Register")
    assert collector.one("in a thread").parent_span_id == ours.span_id


async def test_a_tracer_made_before_configure_and_used_as_a_decorator(start: Start, collector: HttpCollector) -> None:
    tracer = trace.get_tracer("module level")

    @tracer.start_as_current_span("decorated")
    async def helper() -> None:
        await asyncio.sleep(0)

    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    await telemetry.inbound(call_of(), lambda _: helper())
    assert telemetry.flush()
    assert collector.one("decorated").parent_span_id == collector.one("registration.v1.Registration/Register").span_id

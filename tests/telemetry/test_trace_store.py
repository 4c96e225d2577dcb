"""The store keeps the last traces, and its door takes what exporters send."""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from mesh.telemetry import otlp_receiver
from mesh.telemetry.otlp_receiver import Receiver
from mesh.telemetry.trace_store import Store


def text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def span(trace: int, number: int, parent: int = 0, **more: Any) -> Span:
    return Span(
        trace_id=trace.to_bytes(16, "big"),
        span_id=number.to_bytes(8, "big"),
        parent_span_id=parent.to_bytes(8, "big") if parent else b"",
        start_time_unix_nano=more.pop("start", number * 1000),
        end_time_unix_nano=more.pop("end", number * 1000 + 500),
        name=more.pop("name", f"span {number}"),
        **more,
    )


def request(*spans: Span, service: str = "edge") -> ExportTraceServiceRequest:
    resource = Resource(attributes=[text("service.name", service)])
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=spans)])]
    )


class Answer:
    def __init__(self, sent: list[Any]) -> None:
        self.status: int = sent[0]["status"]
        self.headers = dict(sent[0]["headers"])
        self.body: bytes = sent[1]["body"]

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


async def ask(app: Receiver, method: str, path: str, *chunks: bytes, query: bytes = b"", **headers: str) -> Answer:
    parts = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    parts.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Any] = []

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()],
    }
    await app(scope, receive, send)
    return Answer(sent)


async def post(app: Receiver, *chunks: bytes, **headers: str) -> Answer:
    return await ask(app, "POST", "/v1/traces", *chunks, **{"content_type": "application/x-protobuf", **headers})


async def test_what_is_sent_is_shown() -> None:
    app = Receiver(Store())
    array = AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue(bool_value=True)]))
    child = span(
        0xAB,
        2,
        1,
        kind=Span.SPAN_KIND_CLIENT,
        status=Status(code=Status.STATUS_CODE_ERROR, message="no"),
        attributes=[text("a", "b"), KeyValue(key="list", value=array), KeyValue(key="nothing", value=AnyValue())],
        events=[Span.Event(name="exception", time_unix_nano=2100, attributes=[text("exception.type", "KeyError")])],
        links=[Span.Link(trace_id=b"\1" * 16, span_id=b"\2" * 8)],
    )
    body = request(child, span(0xAB, 1, name="GET /v1/users/{id}", end=9000)).SerializeToString()
    answer = await post(app, body[:10], body[10:])
    assert answer.status == 200
    assert ExportTraceServiceResponse.FromString(answer.body) == ExportTraceServiceResponse()
    packed = gzip.compress(request(span(0xCD, 1, start=1)).SerializeToString())
    assert (await post(app, packed, content_encoding="gzip")).status == 200

    [first, second] = (await ask(app, "GET", "/traces")).json["traces"]
    assert first == {
        "trace_id": f"{0xAB:032x}",
        "name": "GET /v1/users/{id}",
        "service": "edge",
        "start": 1000,
        "duration": 8000,
        "spans": 2,
        "error": True,
    }
    assert second["trace_id"] == f"{0xCD:032x}"
    assert len((await ask(app, "GET", "/traces", query=b"limit=1")).json["traces"]) == 1

    trace = (await ask(app, "GET", f"/traces/{0xAB:032x}")).json
    assert [one["span_id"] for one in trace["spans"]] == [f"{1:016x}", f"{2:016x}"]
    assert trace["spans"][0]["parent_id"] is None
    assert trace["spans"][1] == {
        "span_id": f"{2:016x}",
        "parent_id": f"{1:016x}",
        "name": "span 2",
        "kind": "client",
        "service": "edge",
        "scope": "",
        "start": 2000,
        "end": 2500,
        "error": True,
        "message": "no",
        "attributes": {"a": "b", "list": [1, True], "nothing": None},
        "events": [{"name": "exception", "time": 2100, "attributes": {"exception.type": "KeyError"}}],
        "links": [{"trace_id": "01" * 16, "span_id": "02" * 8}],
    }


async def test_the_beginning_of_an_id_is_enough() -> None:
    store = Store()
    app = Receiver(store)
    store.add(request(span(0xAB << 120, 1), span(0xAC << 120, 1)))
    assert (await ask(app, "GET", "/traces/ab")).json["trace_id"].startswith("ab")
    assert (await ask(app, "GET", "/traces/AC")).json["trace_id"].startswith("ac")
    assert (await ask(app, "GET", "/traces/a")).json == {"message": "2 traces begin with 'a'"}
    gone = await ask(app, "GET", "/traces/ff")
    assert (gone.status, gone.json) == (404, {"message": "no trace begins with 'ff'"})


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"\xff\xff", {}, 400),
        (b"{}", {"content_type": "application/json"}, 415),
        (b"not gzip", {"content_encoding": "gzip"}, 400),
        (gzip.compress(b"x" * 100)[:-20], {"content_encoding": "gzip"}, 400),
        (b"", {"content_encoding": "br"}, 415),
        (b"x" * 300, {}, 413),
        (gzip.compress(b"\0" * 10_000), {"content_encoding": "gzip"}, 413),
        (zlib.compress(b""), {"content_encoding": "deflate"}, 200),
    ],
    ids=["no protobuf", "JSON", "no gzip", "half gzip", "brotli", "too long", "a bomb", "deflate"],
)
async def test_what_it_refuses(
    body: bytes, headers: dict[str, str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp_receiver, "MAX_BODY_SIZE", 200)
    answer = await post(Receiver(Store()), body, **headers)
    assert answer.status == status
    assert status == 200 or answer.json["message"]


@pytest.mark.parametrize(
    ("method", "path", "query", "status"),
    [
        ("GET", "/", b"", 404),
        ("GET", "/tracesx", b"", 404),
        ("GET", "/v1/traces", b"", 405),
        ("POST", "/traces", b"", 405),
        ("GET", "/traces", b"limit=many", 400),
    ],
)
async def test_other_paths_and_methods(method: str, path: str, query: bytes, status: int) -> None:
    assert (await ask(Receiver(Store()), method, path, query=query)).status == status


async def test_who_asks_right_after_a_response_waits_for_the_rest() -> None:
    """Each component exports for itself: the sidecar's span, here, comes first."""
    app = Receiver(Store())
    now = time.time_ns()
    root = span(7, 1, start=now - 3, end=now, kind=Span.SPAN_KIND_SERVER)
    call = span(7, 2, parent=1, start=now - 2, end=now, kind=Span.SPAN_KIND_CLIENT)
    inner = span(7, 3, parent=2, start=now - 1, end=now, kind=Span.SPAN_KIND_SERVER)
    asking = asyncio.create_task(ask(app, "GET", f"/traces/{7:032x}", query=b"wait=9"))
    for sent in (inner, root, call):
        await asyncio.sleep(0)
        assert not asking.done()
        await post(app, request(sent).SerializeToString())
    answer = await asyncio.wait_for(asking, 5)
    assert [one["name"] for one in answer.json["spans"]] == ["span 1", "span 2", "span 3"]


@pytest.mark.parametrize(
    ("spans", "whole"),
    [
        ([], False),
        ([{"number": 1}], True),
        ([{"number": 2, "parent": 1}], False),
        ([{"number": 1, "kind": Span.SPAN_KIND_CLIENT}], False),
        ([{"number": 1, "kind": Span.SPAN_KIND_CLIENT, "status": Status(code=Status.STATUS_CODE_ERROR)}], True),
        ([{"number": 1, "kind": Span.SPAN_KIND_CLIENT}, {"number": 2, "parent": 1}], True),
    ],
)
def test_a_trace_is_whole_when_nothing_is_seen_to_be_missing(spans: list[dict[str, Any]], *, whole: bool) -> None:
    store = Store()
    store.add(request(*(span(7, **one, end=5000) for one in spans)))
    assert store.is_complete(f"{7:032x}", now=6000) is whole
    assert store.is_complete(f"{7:032x}", now=6000 + 10**10) is bool(spans)  # then there will be nothing more


async def test_the_list_waits_as_long_as_it_is_told() -> None:
    app = Receiver(Store())
    began = asyncio.get_running_loop().time()
    assert (await ask(app, "GET", "/traces", query=b"wait=1")).json == {"traces": []}
    assert asyncio.get_running_loop().time() - began >= 0.99
    assert (await ask(app, "GET", "/traces", query=b"wait=x")).status == 400


async def test_spans_without_valid_ids_are_refused_and_told() -> None:
    store = Store()
    answer = await post(Receiver(store), request(Span(trace_id=b"short", span_id=b"x"), span(1, 1)).SerializeToString())
    response = ExportTraceServiceResponse.FromString(answer.body)
    assert response.partial_success.rejected_spans == 1
    assert store.spans == 1


async def test_lifespan() -> None:
    sent: list[Any] = []
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await Receiver(Store())({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3000))), st.integers(1, 8))
def test_it_never_grows_beyond_its_bounds(adds: list[tuple[int, int, int]], most: int) -> None:
    store = Store(max_spans=most, max_bytes=6000)
    for trace, number, size in adds:
        store.add(request(span(trace, number, name="x" * size)))
        traces = store.traces()
        assert store.spans == sum(one["spans"] for one in traces) <= most
        assert 0 <= store.size <= 6000
        assert (store.size == 0) == (store.spans == 0)


def test_the_oldest_trace_goes_first_and_a_retried_export_counts_once() -> None:
    store = Store(max_spans=3)
    store.add(request(span(1, 1)))
    store.add(request(span(2, 1)))
    store.add(request(span(1, 2)))
    store.add(request(span(1, 2)))
    assert store.spans == 3
    store.add(request(span(3, 1)))
    assert {one["trace_id"][-1] for one in store.traces()} == {"1", "3"}


def test_linked_traces_are_found_from_both_sides() -> None:
    store = Store()
    store.add(request(span(1, 1), service="shop"))
    store.add(request(span(2, 2, links=[Span.Link(trace_id=span(1, 1).trace_id, span_id=span(1, 1).span_id)])))
    publisher, delivery = (store.trace(span(number, number).trace_id.hex()) for number in (1, 2))
    assert publisher is not None
    assert delivery is not None
    assert (publisher["from"], [one["trace_id"] for one in publisher["to"]]) == ([], [delivery["trace_id"]])
    assert ([one["trace_id"] for one in delivery["from"]], delivery["to"]) == ([publisher["trace_id"]], [])


async def test_without_the_secret_of_the_run_nothing_is_taken_or_shown() -> None:
    app = Receiver(Store(), "right")
    body = request(span(0xAB, 1)).SerializeToString()
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "right"},
        {"authorization": "Basic right"},
    ):
        refused = await post(app, body, **headers)
        assert (refused.status, refused.headers[b"www-authenticate"]) == (401, b"Bearer")
        refused = await ask(app, "GET", "/traces", **headers)
        assert refused.status == 401
        assert refused.json == {"message": "the trace store needs the secret of this `mesh up`: use `mesh trace`"}
    assert (await post(app, body, authorization="Bearer right")).status == 200
    assert len((await ask(app, "GET", "/traces", authorization="Bearer right")).json["traces"]) == 1

"""Permits are held for work and not for clients: bodies are read before, responses written after, streams apart."""

from __future__ import annotations

import asyncio
import struct

import grpc
import pytest
from grpc_edge import grpc_edge
from raw_h2 import frame, raw_client
from streaming import edge as streaming_edge
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from mesh.call import current
from mesh.edge import OptionalLayers
from mesh.edge import app as edge_app
from mesh.edge.calls import HttpCall, share_keys
from mesh.edge.grpc import passthrough
from mesh.layers.concurrency import ConcurrencyLimit


def frame_of(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return an HTTP/2 frame (RFC 9113, 4.1)."""
    return struct.pack("!IBBI", len(payload), kind, flags, stream)[1:] + payload


@pytest.fixture
def pb():
    from conformance.v1 import conformance_pb2

    return conformance_pb2


JSON = {"content_type": b"application/json", "te": None}
GET = {"method": b"GET", "content_type": None, "te": None, "end": True}


async def test_a_request_whose_body_is_not_complete_holds_no_permit(running):
    running.concurrency_limit.limit = 1
    async with raw_client(running.address) as client:
        for _ in range(20):
            client.data(client.request("/v1/books", **JSON), b'{"title":')
        assert (await client.answer(client.request("/v1/books", **GET))).http == 200
        assert (running.concurrency_limit.in_flight, running.concurrency_limit.waiting) == (0, 0)


async def test_a_unary_grpc_call_without_its_request_holds_no_permit(contract, pb):
    async with grpc_edge(contract, concurrency=1) as edge, raw_client(edge.address) as client:
        for _ in range(20):
            client.data(client.request(), frame(b"")[:3])
        answer = await client.call(frame(pb.EchoRequest(text="a").SerializeToString()))
        assert answer.status == 0


async def test_the_response_is_written_after_the_permit_was_released(running):
    """Over HTTP/2 with a window of zero the response stays in the edge."""
    running.concurrency_limit.limit = 1
    host, _, port = running.address.rpartition(":")
    path = b"/v1/books"
    head = b"\x82\x86\x04" + bytes([len(path)]) + path + b"\x01\x01x"
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame_of(4, 0, 0, struct.pack("!HI", 4, 0)))
    writer.write(frame_of(1, 5, 1, head))
    async with asyncio.timeout(10):
        kind = -1
        while kind != 1:  # HEADERS: the response is there, and its DATA cannot be sent
            length, kind = struct.unpack("!IB", b"\0" + await reader.readexactly(4))
            await reader.readexactly(5 + length)
    assert running.concurrency_limit.in_flight == 0
    assert (await running.request("GET", "/v1/books")).status == 200
    writer.close()


async def test_who_calls_is_known_before_the_limit_is_asked(running):
    running.concurrency_limit.limit = 0
    assert (await running.json("DELETE", "/v1/books/1", authorization="Bearer forged")).status == 401
    assert (await running.json("DELETE", "/v1/books/1", authorization="Bearer ada")).status == 429


async def test_streams_hold_no_permit_and_have_a_limit_of_their_own(contract):
    async with streaming_edge(contract, "process", stream_limit=ConcurrencyLimit(1, 0)) as running:
        async with raw_client(running.address) as client:
            options = {**GET, "headers": [(b"accept", b"application/x-ndjson")]}
            held = client.request("/s/count/-1?room=stepwise", **options)
            await running.seen.begun.wait()
            answer = await client.answer(client.request("/s/count/1", **options))
            assert answer.http == 429
            assert answer.headers[b"retry-after"] == b"1"
            with pytest.raises(InvalidStatus) as refused:
                async with connect(f"ws://{running.address}/s/rooms/r/chat", proxy=None):
                    pass
            assert refused.value.response.status_code == 429
            client.reset(held)
            async with asyncio.timeout(5):
                await running.seen.cancelled.wait()
        async with connect(f"ws://{running.address}/s/rooms/r/chat", proxy=None):
            pass


async def test_a_grpc_stream_is_refused_by_the_limit_of_streams_only(contract, pb):
    from conformance.v1 import conformance_pb2_grpc

    async with grpc_edge(contract, streams=0) as edge, grpc.aio.insecure_channel(edge.address) as channel:
        stub = conformance_pb2_grpc.EchoStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ServerStream(pb.EchoRequest(count=1)).read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.Unary(pb.EchoRequest(text="a"))).text == "a"


async def test_the_timeout_of_the_edge_caps_unary_grpc_callers_but_no_stream(contract, pb):
    from conformance.v1 import conformance_pb2_grpc

    async with grpc_edge(contract, timeout=10.0) as edge, grpc.aio.insecure_channel(edge.address) as channel:
        stub = conformance_pb2_grpc.EchoStub(channel)
        assert (await stub.Unary(pb.EchoRequest(), timeout=3600)).remaining.seconds <= 10
        streamed = await stub.ServerStream(pb.EchoRequest(count=1), timeout=3600).read()
        assert streamed.remaining.seconds > 3000


async def test_an_edge_that_can_serve_nobody_is_not_ready_but_alive(running, monkeypatch):
    running.concurrency_limit.limit = 1
    waiting = asyncio.create_task(running.request("GET", "/v1/behave/sleep"))
    async with asyncio.timeout(5):
        await running.library.started.wait()
    assert (await running.request("GET", "/v1/books")).status == 429
    assert (await running.request("GET", "/healthz")).status == 200  # for a moment a full edge is a busy one
    monkeypatch.setattr(edge_app, "OVERLOAD_DELAY", 0.0)
    reply = await running.request("GET", "/healthz")
    assert (reply.status, reply.json) == (503, {"status": "overloaded"})
    assert (await running.request("GET", "/livez")).status == 200
    assert (await waiting).status == 504
    assert (await running.request("GET", "/healthz")).status == 200


@pytest.mark.parametrize(
    ("host", "network", "seen"),
    [
        ("1.2.3.4", "1.2.3.4", "1.2.3.4"),
        ("2001:db8::1", "2001:db8::/64", "2001:db8::1"),
        ("2001:db8::ffff:1", "2001:db8::/64", "2001:db8::ffff:1"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64", "2001:db8:0:1::1"),
        ("::ffff:1.2.3.4", "1.2.3.4", "1.2.3.4"),
        ("fe80::1%eth0", "fe80::/64", "fe80::1%eth0"),
    ],
)
async def test_shares_are_those_of_connection_client_user_and_target(contract, host, network, seen):
    scope = {"headers": [], "raw_path": b"/", "query_string": b"", "client": (host, 7)}
    call = HttpCall(scope, None, None)
    outbound = HttpCall(scope, None, None)
    outbound.method = contract.methods["/conformance.v1.Echo/Unary"]
    assert outbound.client_address == seen  # as functions see it
    token = current.set(call)
    try:
        assert share_keys(outbound) == ((host, 7), network, None, "conformance.v1.Echo")
    finally:
        current.reset(token)


async def test_health_checks_have_a_reserve_and_watches_a_limit(contract, pb, monkeypatch):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    monkeypatch.setattr(passthrough, "MAX_BUILTIN_STREAMS", 2)
    async with grpc_edge(contract, concurrency=0, streams=0) as edge:  # noqa: SIM117 - too long
        async with grpc.aio.insecure_channel(edge.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
            for watch in watches:
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await health.Watch(health_pb2.HealthCheckRequest()).read()
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_reflection_stream_ends(contract, monkeypatch):
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    monkeypatch.setattr(passthrough, "REFLECTION_TIMEOUT", 0.5)
    async with grpc_edge(contract) as edge, grpc.aio.insecure_channel(edge.address) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert (await call.read()).list_services_response.service
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_built_in_services_can_be_turned_off(contract, opened):
    async with opened(docs=False) as edge:
        assert (await edge.request("GET", "/docs")).status == 404
        assert (await edge.request("GET", "/openapi.json")).status == 404
        assert (await edge.request("GET", "/livez")).status == 200
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with grpc_edge(contract, layers=OptionalLayers(builtin=frozenset())) as edge:  # noqa: SIM117 - too long
        async with grpc.aio.insecure_channel(edge.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

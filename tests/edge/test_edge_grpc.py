"""Native gRPC through the edge's port: a stock client, the edge, a real sidecar."""

from __future__ import annotations

import asyncio
import http.client
import json

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.rpc import status_pb2
from grpc_edge import MAX, grpc_edge
from raw_h2 import frame, raw_client

from mesh.auth import identify
from mesh.auth.service_tokens import EDGE, Signer
from mesh.errors import AlreadyExists

LIBRARY = "/edge.v1.Library"


@pytest.fixture
def pb():
    from conformance.v1 import conformance_pb2

    return conformance_pb2


@pytest.fixture(params=["ngh2", "grpcio"])
async def edge(request, contract):
    async with grpc_edge(contract, transport=request.param) as running:
        yield running


@pytest.fixture
async def channel(edge):
    async with dial(edge.address) as opened:
        yield opened


@pytest.fixture
def stub(channel):
    from conformance.v1 import conformance_pb2_grpc

    return conformance_pb2_grpc.EchoStub(channel)


def dial(address, **options):
    limits = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(address, options=limits, **options)


async def failure(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def drained(stream):
    return [message async for message in stream]


async def test_all_four_kinds(stub, pb, edge):
    assert (await stub.Unary(pb.EchoRequest(text="ü", payload=b"\0\xff"))).payload == b"\0\xff"
    answers = await drained(stub.ServerStream(pb.EchoRequest(text="s", count=3)))
    assert [(answer.text, answer.index) for answer in answers] == [("s", 0), ("s", 1), ("s", 2)]
    joined = await stub.ClientStream(iter([pb.EchoRequest(text="a"), pb.EchoRequest(text="b")]))
    assert (joined.text, joined.index) == ("a,b", 2)
    answers = await drained(stub.Bidi(iter([pb.EchoRequest(text="a"), pb.EchoRequest(text="b")])))
    assert [answer.text for answer in answers] == ["a", "b"]
    assert edge.traced == [
        (f"/conformance.v1.Echo/{name}", "OK") for name in ("Unary", "ServerStream", "ClientStream", "Bidi")
    ]


async def test_both_directions_at_once(stub, pb):
    call = stub.Bidi()
    for text in ("one", "two", "three"):  # each response is read before the next request is written
        await call.write(pb.EchoRequest(text=text))
        assert (await call.read()).text == text
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_bytes_pass_untouched(contract):
    """Fields that are in no contract, in an order that no encoder writes, are forwarded unchanged."""
    sent = b"\xf8\x7f\x01" + b"\x0a\x03abc" + b"\x0a\x01z"
    seen = []

    async def keep(call):
        seen.append(await call.receive_one())
        await call.send(b"\xff no message at all")

    async with grpc_edge(contract, functions=keep) as edge, dial(edge.address) as channel:
        assert await channel.unary_unary(f"{LIBRARY}/GetBook")(sent) == b"\xff no message at all"
        assert seen == [sent]


async def test_metadata_both_ways(stub, pb):
    metadata = (("x-echo-a", "1"), ("x-echo-a", "2"), ("x-echo-b-bin", b"\x00\xff"))
    for call in (
        stub.Unary(pb.EchoRequest(), metadata=metadata),
        stub.ServerStream(pb.EchoRequest(count=1), metadata=metadata),
        stub.ClientStream(iter([pb.EchoRequest()]), metadata=metadata),
        stub.Bidi(iter([pb.EchoRequest()]), metadata=metadata),
    ):
        headers = await call.initial_metadata()
        assert headers.get_all("x-echo-a") == ["1", "2"]
        assert headers.get_all("x-echo-b-bin") == [b"\x00\xff"]
        await (drained(call) if hasattr(call, "read") else call)
        trailers = await call.trailing_metadata()
        assert trailers.get_all("x-echo-a-trailer") == ["1", "2"]
        assert trailers.get_all("x-echo-b-trailer-bin") == [b"\x00\xff"]
        assert await call.code() is grpc.StatusCode.OK


async def test_status_and_details_both_before_and_after_messages(stub, pb):
    fail = pb.Failure(code=9, message="no ñandú: 100% at 10:30", details=True)
    for call in (
        stub.Unary(pb.EchoRequest(fail=fail)),
        stub.ClientStream(iter([pb.EchoRequest(fail=fail)])),
        drained(stub.ServerStream(pb.EchoRequest(count=2, fail=fail))),
        drained(stub.Bidi(iter([pb.EchoRequest(), pb.EchoRequest(fail=fail)]))),
    ):
        error = await failure(call)
        assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, fail.message)
        rich = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
        assert (rich.code, rich.message) == (9, fail.message)
        assert [detail.TypeName() for detail in rich.details] == ["google.rpc.BadRequest"]


async def test_details_of_a_type_that_the_edge_does_not_know(contract):
    unknown = any_pb2.Any(type_url="type.example/not.known.Here", value=b"\x08\x01")

    async def fail(call):
        raise AlreadyExists("it is there", details=[unknown])

    async with grpc_edge(contract, functions=fail) as edge, dial(edge.address) as channel:
        error = await failure(channel.unary_unary(f"{LIBRARY}/GetBook")(b""))
        rich = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
        assert list(rich.details) == [unknown]


async def test_a_bug_of_a_function_says_nothing(stub, pb):
    error = await failure(stub.Unary(pb.EchoRequest(fail=pb.Failure(code=0, message="secret"))))
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")


async def test_the_callers_deadline_reaches_the_function(stub, pb):
    answer = await stub.Unary(pb.EchoRequest(), timeout=5)
    assert 3 < answer.remaining.ToNanoseconds() / 1e9 < 5.2  # grpcio rounds up
    answer = await stub.Slow(pb.EchoRequest(), timeout=5)  # its method allows 500 ms
    assert 0 < answer.remaining.ToNanoseconds() / 1e9 <= 0.5
    assert (await stub.Unary(pb.EchoRequest())).remaining.seconds in {9, 10}  # the edge's default for unary calls
    (streamed,) = await drained(stub.ServerStream(pb.EchoRequest(count=1)))
    assert not streamed.HasField("remaining")  # a stream may stay open


async def test_an_expired_deadline_names_no_address(stub, pb, edge):
    error = await failure(stub.Slow(pb.EchoRequest(sleep_ms=10_000)))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "127.0.0.1" not in error.details()
    assert edge.traced == [("/conformance.v1.Echo/Slow", "DEADLINE_EXCEEDED")]


async def test_a_cancel_reaches_the_function(stub, pb):
    from apps import echo

    echo.log.clear()
    unary = stub.Unary(pb.EchoRequest(text="u", sleep_ms=60_000))
    stream = stub.ServerStream(pb.EchoRequest(text="s", sleep_ms=60_000, count=2))
    bidi = stub.Bidi()
    await bidi.write(pb.EchoRequest(text="b"))
    await bidi.read()
    await stub.Unary(pb.EchoRequest())  # calls of one connection start in order
    for call in (unary, stream, bidi):
        call.cancel()
    async with asyncio.timeout(10):
        while set(echo.log) != {"cancelled u", "cancelled s", "cancelled bidi"}:  # noqa: ASYNC110 - another task's log
            await asyncio.sleep(0.01)


async def test_messages_up_to_the_limit(stub, pb):
    room = MAX - 100
    assert len((await stub.Unary(pb.EchoRequest(payload=b"x" * room))).payload) == room
    error = await failure(stub.Unary(pb.EchoRequest(payload=b"x" * (MAX + 1))))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX) in error.details()
    parts = [pb.EchoRequest(payload=bytes([index]) * room) for index in range(30)]  # together far above the limit
    assert len((await stub.ClientStream(iter(parts))).payload) == 30 * room
    assert len((await stub.Unary(pb.EchoRequest(answer_bytes=3_000_000))).payload) == 3_000_000


async def test_gzip(edge, pb):
    from conformance.v1 import conformance_pb2_grpc

    async with dial(edge.address, compression=grpc.Compression.Gzip) as channel:
        stub = conformance_pb2_grpc.EchoStub(channel)
        assert (await stub.Unary(pb.EchoRequest(payload=b"x" * 50_000))).payload == b"x" * 50_000
        answers = await drained(stub.ServerStream(pb.EchoRequest(answer_bytes=50_000, count=2)))
        assert [len(answer.payload) for answer in answers] == [50_000, 50_000]
        bomb = await failure(stub.Unary(pb.EchoRequest(payload=bytes(2 * MAX))))
        assert bomb.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("method", "who", "code"),
    [
        ("DeleteBook", None, "UNAUTHENTICATED"),
        ("DeleteBook", "forged", "UNAUTHENTICATED"),
        ("GetBook", "forged", "UNAUTHENTICATED"),
        ("DeleteBook", "ada", "OK"),
        ("ListSecrets", None, "UNAUTHENTICATED"),
        ("ListSecrets", "ada", "PERMISSION_DENIED"),
        ("ListSecrets", "owner", "OK"),
        ("Hidden", "owner", "PERMISSION_DENIED"),
        ("Hidden", None, "PERMISSION_DENIED"),
        ("Nothing", None, "UNIMPLEMENTED"),
    ],
)
async def test_who_may_call_what(contract, method, who, code):
    reached = []

    async def functions(call):
        reached.append(await call.receive_one())
        await call.send(b"")

    async with grpc_edge(contract, functions=functions) as edge, dial(edge.address) as channel:
        call = channel.unary_unary(f"{LIBRARY}/{method}")(
            b"", metadata=(("authorization", f"Bearer {who}"),) if who else ()
        )
        if code == "OK":
            await call
        else:
            assert (await failure(call)).code().name == code
        known = f"{LIBRARY}/{method}" in contract.methods
        assert edge.traced == [(f"{LIBRARY}/{method}" if known else "/_OTHER", code)]
        assert len(reached) == (code == "OK")


async def test_what_a_client_says_of_itself_goes_no_further(contract, tmp_path):
    from mesh.auth import key_files

    key_files.ensure(tmp_path, [EDGE])
    signer = Signer(EDGE, key_files.load(tmp_path, EDGE))
    async with grpc_edge(contract, identify(signer)) as edge, raw_client(edge.address) as client:
        spoofed = [
            (b"mesh-identity", b"forged"), (b"x-forwarded-for", b"10.0.0.1"), (b"forwarded", b"for=10.0.0.1"),
            (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), (b"tracestate", b"a=b"),
            (b"baggage", b"a=b"), (b"grpc-previous-rpc-attempts", b"3"), (b"authorization", b"Bearer ada"),
            (b"x-mine", b"kept"),
        ]  # fmt: skip
        stream = client.request(headers=spoofed)
        client.data(stream, frame(b""), end=True)
        assert (await client.answer(stream)).status == 0
        (metadata,) = edge.received
        assert [value for name, value in metadata.pairs if name == b"mesh-identity"] == [
            signer.token("/conformance.v1.Echo/Unary")
        ]
        assert metadata["authorization"] == "Bearer ada"  # kept by ``identify``, because it is valid
        assert metadata["x-mine"] == "kept"
        names = {name for name, _ in metadata.pairs}
        assert not names & {b"x-forwarded-for", b"forwarded", b"traceparent", b"tracestate", b"baggage"}
        assert b"grpc-previous-rpc-attempts" not in names


async def test_a_full_gate_refuses(contract, pb):
    async with grpc_edge(contract, concurrency=0) as edge, dial(edge.address) as channel:
        error = await failure(channel.unary_unary("/conformance.v1.Echo/Unary")(b""))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        health = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await health(b"") == b"\x08\x01"


async def test_without_a_sidecar_it_is_unavailable_and_no_address_leaks(contract, unused_tcp_port):
    async with (
        grpc_edge(contract, sidecar=f"127.0.0.1:{unused_tcp_port}") as edge,
        raw_client(edge.address) as client,
    ):
        for method in ("Unary", "Bidi"):
            answer = await client.call(frame(b""), path=f"/conformance.v1.Echo/{method}")
            assert answer.status == 14
            assert answer.message == "the service cannot be reached now; try again later"


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ([(b"grpc-timeout", b"soon")], frame(b""), 3),
        ([(b"grpc-encoding", b"br")], frame(b""), 12),
        ([], frame(b"", flag=2), 3),
        ([], frame(b"", flag=1), 3),
        ([], frame(b"abc")[:-1], 3),
        ([], b"", 12),
        ([], frame(b"") * 2, 12),
    ],
)
async def test_malformed_calls_are_refused_and_traced(contract, headers, body, status):
    async with grpc_edge(contract) as edge, raw_client(edge.address) as client:
        stream = client.request(headers=headers)
        client.data(stream, body, end=True)
        answer = await client.answer(stream)
        assert (answer.http, answer.status) == (200, status)
        assert answer.message
        assert edge.traced[0][0] == "/conformance.v1.Echo/Unary"
        assert edge.received == []


async def test_what_is_no_grpc_is_refused_as_http(contract):
    async with grpc_edge(contract) as edge, raw_client(edge.address) as client:
        stream = client.request(content_type=b"application/grpc+json", end=True)
        answer = await client.answer(stream)
        assert answer.http == 415
        assert b"application/grpc+proto" in answer.headers[b"accept-post"]
        stream = client.request(method=b"GET", end=True)
        answer = await client.answer(stream)
        assert (answer.http, answer.headers[b"allow"]) == (405, b"POST")

        def by_http_1():
            connection = http.client.HTTPConnection(*edge.address.split(":"), timeout=10)
            connection.request("POST", "/conformance.v1.Echo/Unary", frame(b""), {"content-type": "application/grpc"})
            response = connection.getresponse()
            found = response.status, response.read()
            connection.close()
            return found

        status, body = await asyncio.to_thread(by_http_1)
        assert status == 415
        assert "HTTP/2" in json.loads(body)["message"]


GRPC = b"application/grpc, application/grpc+proto"
CONNECT = b"application/json, application/proto"
WEB = b"application/grpc-web, application/grpc-web+proto, application/grpc-web-text, application/grpc-web-text+proto"
UNARY = "/conformance.v1.Echo/Unary"


@pytest.mark.parametrize("path", [UNARY, "/edge.v1.Library/GetBook", "/grpc.health.v1.Health/Check"])
@pytest.mark.parametrize("kind", [b"text/plain", b"application/connect+json", b"application/octet-stream", b"", None])
async def test_another_media_type_at_a_path_of_grpc_is_415(contract, path, kind):
    async with grpc_edge(contract) as edge, raw_client(edge.address) as client:
        answer = await client.call(b"{}", path=path, content_type=kind)
        said = json.loads(answer.body)
    assert (answer.http, answer.headers[b"accept-post"]) == (415, b", ".join((GRPC, WEB, CONNECT)))
    assert said["message"].startswith(
        f"{path} takes gRPC, gRPC-Web and Connect (application/json or application/proto), not "
    )
    assert ("; over HTTP it is GET /v1/" in said["message"]) is (path == "/edge.v1.Library/GetBook")


async def test_by_http_1_a_path_of_grpc_takes_grpc_web(contract):
    async with grpc_edge(contract) as edge:

        def post():
            connection = http.client.HTTPConnection(*edge.address.split(":"), timeout=10)
            connection.request("POST", UNARY, b"{}", {"content-type": "text/plain"})
            response = connection.getresponse()
            found = response.status, response.headers["accept-post"]
            connection.close()
            return found

        assert await asyncio.to_thread(post) == (415, b", ".join((WEB, CONNECT)).decode())


@pytest.mark.parametrize("verb", [b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"])
async def test_another_verb_at_a_path_of_grpc(contract, verb):
    async with grpc_edge(contract) as edge, raw_client(edge.address) as client:
        answer = await client.answer(client.request(UNARY, method=verb, content_type=None, end=True))
    expected = (204, b"OPTIONS, POST") if verb == b"OPTIONS" else (405, b"POST")
    assert (answer.http, answer.headers[b"allow"]) == expected


@pytest.mark.parametrize("path", ["/conformance.v1.Echo/Nothing", "/conformance.v1.Echo", "/edge.v1.Library/Hidden"])
async def test_what_is_no_path_of_grpc_stays_404(contract, path):
    async with grpc_edge(contract) as edge, raw_client(edge.address) as client:
        assert (await client.call(b"{}", path=path, content_type=b"text/plain")).http == 404


async def test_health_of_the_edge(contract):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with grpc_edge(contract, drain=5.0) as edge, dial(edge.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "conformance.v1.Echo", "edge.v1.Library"):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == 1
        assert (await failure(stub.Check(health_pb2.HealthCheckRequest(service="no")))).code().name == "NOT_FOUND"
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(edge.edge.stop())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await stopping


async def test_a_slow_reader_holds_the_function(contract):
    produced = []

    async def pour(call):
        await call.receive_one()
        while True:
            await call.send(b"x" * 20_000)
            produced.append(len(produced))

    async with grpc_edge(contract, functions=pour) as edge, raw_client(edge.address) as client:
        client.transport.pause_reading()
        client.data(client.request(f"{LIBRARY}/Watch"), frame(b""), end=True)
        async with dial(edge.address) as channel:
            same = 0
            while same < 20:  # round trips without progress
                before = len(produced)
                await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
                same = same + 1 if before and before == len(produced) else 0
        assert len(produced) * 20_000 < 8_000_000


async def test_a_stop_ends_what_does_not_end_in_grpcs_terms(contract, pb):
    from conformance.v1 import conformance_pb2_grpc

    async with grpc_edge(contract, drain=0.2) as edge, dial(edge.address) as channel:
        call = conformance_pb2_grpc.EchoStub(channel).Bidi()
        await call.write(pb.EchoRequest(text="a"))
        await call.read()
        await edge.edge.stop()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE

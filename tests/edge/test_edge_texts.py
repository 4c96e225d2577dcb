"""Every text that a function raises or sets goes through every wire as it is, or is refused where it is set.

The ways: a sidecar's own loop and its workers; our channel, grpcio as the mesh's channel and as a client from outside;
the edge's JSON and gRPC-Web.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import struct
import threading
from base64 import b64encode
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any, Self
from urllib.parse import unquote

import grpc
import grpc.aio
import pytest
from apps.texts import HEADER, REFUSED, TRAILER
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from grpc_edge import grpc_edge
from hosting import hosted, pool_of, working
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mesh.call import encode_pair
from mesh.contract.model import Contract
from mesh.rpc.client.channel import Channel
from mesh.rpc.client.target import Target
from mesh.text import utf8

EXAMPLES = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
HOSTS = ("loop", "workers")
RESOURCE_EXHAUSTED, FAILED_PRECONDITION = 8, 9

FIELDS = [
    "accept", "accept-encoding", "age", "allow", "authorization", "cache-control", "connection", "content-encoding",
    "content-language", "content-length", "content-location", "content-range", "content-type", "cookie", "date",
    "etag", "expect", "expires", "from", "grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-x", "host",
    "if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "keep-alive", "last-modified",
    "link", "location", "max-forwards", "pragma", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "range", "referer", "retry-after", "server", "set-cookie", "te", "trailer", "transfer-encoding", "upgrade",
    "user-agent", "vary", "via", "warning", "www-authenticate", ":status", ":path", "x-KÜ", "x-\u212a",
]  # fmt: skip
"""Names that HTTP or gRPC means something by, or that only look like names."""
TEXTS = st.lists(
    st.one_of(
        st.sampled_from([" ", "  ", "%", "%20", "\t", "\r\n", "\0", "\x7f", "<half>", "ü", "日本", "😀", "\xa0"]),
        st.text(max_size=5),
    ),
    max_size=8,
).map("".join)
KEYS = st.one_of(
    st.from_regex(r"[xX]-[a-zA-Z0-9_.-]{0,8}(-bin)?", fullmatch=True),
    st.text(max_size=8),
    st.sampled_from(FIELDS),
)
VALUES = st.one_of(TEXTS, st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20))


class Ways:
    """Everything that a text can go through, running."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ways")
        self._stack = AsyncExitStack()
        self.stubs: dict[tuple[str, str], Any] = {}
        self.outside: dict[str, Any] = {}
        self.edges: dict[str, str] = {}

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(60)

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _open(self) -> None:
        enter = self._stack.enter_async_context
        contract, app = self._contract, "apps.texts"
        addresses = {
            "loop": await enter(hosted(contract, app)),
            "workers": await enter(working(contract, pool_of(contract, app, min=1, max=1))),
        }
        for host, address in addresses.items():
            for transport in ("ngh2", "grpcio"):
                target = Target([address], transport=transport)
                self._stack.push_async_callback(target.close)
                self.stubs[host, transport] = conformance_pb2_grpc.EchoStub(Channel(target, contract))
            outside = await enter(grpc.aio.insecure_channel(address))
            self.outside[host] = self.stubs[host, "outside"] = conformance_pb2_grpc.EchoStub(outside)
            self.edges[host] = (await enter(grpc_edge(contract, sidecar=address))).address

    def post(self, host: str, path: str, kind: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        name, port = self.edges[host].rsplit(":", 1)
        connection = http.client.HTTPConnection(name, int(port), timeout=20)
        try:
            connection.request("POST", path, body, {"content-type": kind})
            response = connection.getresponse()
            return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def ways(contract: Contract) -> Iterator[Ways]:
    with Ways(contract) as running:
        yield running


async def _ended(method: Any, request: Any, metadata: Any = None) -> tuple[int, str]:
    """Return how a call of any kind ended."""
    try:
        call = method(request, metadata=metadata)
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code().value[0], error.details() or ""
    return 0, ""


async def _all_kinds(stub: Any, request: Any) -> list[tuple[int, str]]:
    single = [await _ended(method, request) for method in (stub.Unary, stub.ServerStream)]
    return single + [await _ended(method, iter([request])) for method in (stub.ClientStream, stub.Bidi)]


@given(TEXTS)
@example("there is no ")
@example("   ")
@example(" ü % ")
@example("a\r\n b")
@EXAMPLES
def test_a_status_message_arrives_as_it_was_raised(ways: Ways, text: str) -> None:
    said = utf8(text.replace("<half>", "\ud800"))
    request = pb.EchoRequest(fail=pb.Failure(code=FAILED_PRECONDITION, message=text))
    for way, stub in ways.stubs.items():
        assert ways.run(_all_kinds(stub, request)) == [(FAILED_PRECONDITION, said)] * 4, way
    for host in HOSTS:
        body = json.dumps({"fail": {"code": FAILED_PRECONDITION, "message": text}}).encode()
        status, _, answer = ways.post(host, "/v1/echo", "application/json", body)
        assert (status, json.loads(answer)["message"]) == (400, said)
        for method in ("Unary", "ServerStream"):
            assert _web_status(ways, host, method, request) == (str(FAILED_PRECONDITION), said)


def _web_status(ways: Ways, host: str, method: str, request: Any) -> tuple[str, str]:
    """Return status and message of a call by gRPC-Web, from the headers or the last frame."""
    message = request.SerializeToString()
    frame = struct.pack(">BI", 0, len(message)) + message
    _, told, body = ways.post(host, f"/conformance.v1.Echo/{method}", "application/grpc-web+proto", frame)
    while body:
        flag, length = struct.unpack(">BI", body[:5])
        if flag & 0x80:
            told = dict(line.split(": ", 1) for line in body[5 : 5 + length].decode("ascii").split("\r\n") if line)
        body = body[5 + length :]
    return told["grpc-status"], unquote(told.get("grpc-message", ""))


@given(KEYS, VALUES, st.sampled_from([HEADER, TRAILER]))
@example("x-a", "b ", TRAILER)
@example("x-a", "", TRAILER)
@example("etag", "1", TRAILER)
@example("X-Upper", "1", HEADER)
@example("x-a", "v" * 7000, TRAILER)
@EXAMPLES
def test_metadata_is_seen_or_refused_where_a_function_sets_it(ways: Ways, key: str, value: str, where: int) -> None:
    request = pb.EchoRequest(text=key, payload=value.encode(), count=where)
    for host, stub in ways.outside.items():
        answer, seen = ways.run(_metadata(stub.Unary, request, where))
        sent = value.encode() if key.endswith("-bin") else value
        assert answer.index == REFUSED or (key.lower(), sent) in seen, (host, key, value)
        body = json.dumps({"text": key, "payload": b64encode(value.encode()).decode(), "count": where}).encode()
        assert ways.post(host, "/v1/echo", "application/json", body)[0] == 200
    if where == TRAILER:
        for way, stub in ways.stubs.items():
            assert ways.run(_ended(stub.ServerStream, request)) == (0, ""), way


@pytest.mark.parametrize("key", FIELDS)
def test_a_field_of_http_is_metadata_or_refused(ways: Ways, key: str) -> None:
    for where in (HEADER, TRAILER):
        request = pb.EchoRequest(text=key, payload=b"1", count=where)
        for host, stub in ways.outside.items():
            answer, seen = ways.run(_metadata(stub.Unary, request, where))
            assert answer.index == REFUSED or (key.lower(), "1") in seen, (host, where)
    for way, stub in ways.stubs.items():
        assert ways.run(_ended(stub.ServerStream, request)) == (0, ""), way


async def _metadata(method: Any, request: Any, where: int) -> tuple[Any, list[tuple[str, Any]]]:
    call = method(request)
    answer = await call
    return answer, list(await (call.initial_metadata() if where == HEADER else call.trailing_metadata()))


@given(VALUES)
@example("a ")
@example(" ")
@example("")
@EXAMPLES
def test_metadata_of_an_onward_call_is_seen_or_refused_where_it_is_set(ways: Ways, value: str) -> None:
    try:
        encode_pair("x-seen", value)
    except ValueError:
        right = False
    else:
        right = True
    for host in HOSTS:
        for transport in ("ngh2", "grpcio"):
            calling = ways.stubs[host, transport].Unary
            if right:
                answer = ways.run(_call(calling, value))
                assert answer.text == repr({"x-seen": value}), (host, transport)
            else:
                with pytest.raises(ValueError, match="metadata 'x-seen' m"):
                    ways.run(_call(calling, value))


async def _call(method: Any, value: str) -> Any:
    return await method(pb.EchoRequest(), metadata=[("x-seen", value)])


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("transport", ["ngh2", "grpcio"])
@pytest.mark.parametrize("key", ["te", "connection", "content-type", "grpc-timeout", ":path", "Host", "x\u212a", ""])
def test_a_key_of_the_transport_is_refused_by_the_stub(ways: Ways, host: str, transport: str, key: str) -> None:
    async def call() -> None:
        await ways.stubs[host, transport].Unary(pb.EchoRequest(), metadata=[(key, "1")])

    with pytest.raises(ValueError, match="metadata key"):
        ways.run(call())


@pytest.mark.parametrize("transport", ["ngh2", "grpcio"])
def test_more_metadata_than_a_call_can_have_is_refused_by_the_stub(ways: Ways, transport: str) -> None:
    async def call(size: int) -> Any:
        return await ways.stubs["loop", transport].Unary(pb.EchoRequest(), metadata=[("x-seen", "v" * size)])

    assert ways.run(call(30_000)).text == repr({"x-seen": "v" * 30_000})
    with pytest.raises(ValueError, match="may be 32768 bytes"):
        ways.run(call(33_000))


@pytest.mark.parametrize("host", HOSTS)
def test_a_hundred_pairs_pass_and_far_too_many_are_a_status(ways: Ways, host: str) -> None:
    assert ways.run(_with_pairs(ways.outside[host], 300)) == (0, "")
    code, text = ways.run(_with_pairs(ways.outside[host], 1100))
    assert (code, text.partition(";")[0]) == (RESOURCE_EXHAUSTED, "the call has more than 1000 header fields")


def test_the_edge_says_too_many_pairs_as_a_status_too(ways: Ways) -> None:
    async def call() -> tuple[int, str]:
        async with grpc.aio.insecure_channel(ways.edges["loop"]) as channel:
            return await _with_pairs(conformance_pb2_grpc.EchoStub(channel), 1100)

    assert ways.run(call())[0] == RESOURCE_EXHAUSTED


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("method", ["ServerStream", "Unary"])
def test_a_status_finds_room_beside_all_the_metadata_that_a_function_may_set(
    ways: Ways, host: str, method: str
) -> None:
    fail = pb.Failure(code=FAILED_PRECONDITION, message="ü" * 3000, details=True)
    request = pb.EchoRequest(text="x-a", payload=b"v" * 7100, count=TRAILER, fail=fail)
    for way in ("outside", "ngh2", "grpcio"):
        for _ in range(20):  # grpcio refuses some answers above 8 KiB, by chance
            code, text = ways.run(_ended(getattr(ways.stubs[host, way], method), request))
            assert (code, text[0], text[-1]) == (FAILED_PRECONDITION, "ü", "…"), way


async def _with_pairs(stub: Any, count: int) -> tuple[int, str]:
    return await _ended(stub.Unary, pb.EchoRequest(), [(f"x-{number}", "1") for number in range(count)])

"""gRPC-Web through the edge: raw HTTP requests in both encodings, cut at any byte, and malformed requests."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import struct
from base64 import b64decode, b64encode
from itertools import pairwise

import pytest
from google.rpc import status_pb2
from grpc_edge import MAX, grpc_edge
from hypothesis import example, given
from hypothesis import strategies as st
from raw_h2 import frame, raw_client

from mesh.errors import InvalidArgument
from mesh.rpc.server.grpc_web import Base64Decoder, trailer_frame

ECHO = "/conformance.v1.Echo"
BINARY = "application/grpc-web+proto"
TEXT = "application/grpc-web-text+proto"


@pytest.fixture
def pb():
    from conformance.v1 import conformance_pb2

    return conformance_pb2


@pytest.fixture
async def edge(contract):
    async with grpc_edge(contract) as running:
        yield running


class Answer:
    """A response with its messages, and its trailers from the headers or the body."""

    def __init__(self, status, headers, body):
        self.http = status
        self.headers = {name.lower(): value for name, value in headers}
        media = self.headers["content-type"]
        if not media.startswith("application/grpc-web"):
            return
        if media.startswith("application/grpc-web-text"):
            body = b"".join(b64decode(body[at : at + 4], validate=True) for at in range(0, len(body), 4))
        self.messages = []
        self.trailers = None
        while body:
            flag, length = struct.unpack(">BI", body[:5])
            data, body = body[5 : 5 + length], body[5 + length :]
            assert len(data) == length
            assert self.trailers is None, "something follows the trailers"
            if flag == 0x80:
                lines = data.decode("ascii").removesuffix("\r\n").split("\r\n")
                self.trailers = dict(line.split(": ", 1) for line in lines)
            else:
                assert flag == ("grpc-encoding" in self.headers)
                self.messages.append(data)
        self.trailers_only = self.trailers is None
        self.ended = self.headers if self.trailers_only else self.trailers
        self.status = int(self.ended.get("grpc-status", "-1"))
        self.message = self.ended.get("grpc-message", "")


async def post(edge, method, body, media=BINARY, **headers):
    """Send a request over HTTP/1.1; a list as body is sent chunk by chunk."""
    sent = {"content-type": media, "x-grpc-web": "1"} | {key.replace("_", "-"): value for key, value in headers.items()}

    def ask():
        connection = http.client.HTTPConnection(*edge.address.split(":"), timeout=20)
        try:
            connection.request("POST", f"{ECHO}/{method}", iter(body) if isinstance(body, list) else body, sent)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    status, found, data = await asyncio.to_thread(ask)
    return Answer(status, found, data)


def encoded(media, data):
    return b64encode(data) if media.startswith("application/grpc-web-text") else data


@pytest.mark.parametrize("media", [BINARY, TEXT, "application/grpc-web", "application/grpc-web-text", BINARY.upper()])
async def test_unary(edge, pb, media):
    body = encoded(media, frame(pb.EchoRequest(text="ü", payload=b"\0\xff").SerializeToString()))
    answer = await post(edge, "Unary", body, media, x_echo_a="1", x_echo_b_bin="AP8")
    assert (answer.http, answer.status) == (200, 0)
    assert answer.headers["content-type"] == media.lower()
    (message,) = map(pb.EchoResponse.FromString, answer.messages)
    assert (message.text, message.payload) == ("ü", b"\0\xff")
    assert answer.headers["x-echo-a"] == "1"
    assert answer.trailers == {"grpc-status": "0", "x-echo-a-trailer": "1", "x-echo-b-trailer-bin": "AP8"}
    (metadata,) = edge.received
    assert "x-grpc-web" not in metadata
    assert edge.traced == [(f"{ECHO}/Unary", "OK")]


@pytest.mark.parametrize("media", [BINARY, TEXT])
async def test_server_stream(edge, pb, media):
    fail = pb.Failure(code=9, message="no ñandú", details=True)
    request = pb.EchoRequest(text="s", count=3, fail=fail).SerializeToString()
    answer = await post(edge, "ServerStream", encoded(media, frame(request)), media)
    assert [pb.EchoResponse.FromString(message).index for message in answer.messages] == [0, 1, 2]
    assert (answer.http, answer.trailers["grpc-status"]) == (200, "9")
    assert answer.message == "no %C3%B1and%C3%BA"
    rich = answer.trailers["grpc-status-details-bin"]
    assert status_pb2.Status.FromString(b64decode(rich + "=" * (-len(rich) % 4))).code == 9


async def test_requests_may_stream_too(edge, pb):
    requests = [frame(pb.EchoRequest(text=text).SerializeToString()) for text in ("a", "b")]
    (message,) = (await post(edge, "ClientStream", requests)).messages
    assert pb.EchoResponse.FromString(message).text == "a,b"
    assert len((await post(edge, "Bidi", requests)).messages) == 2


async def test_each_message_is_sent_as_it_comes(edge, pb):
    first, second = pb.EchoRequest(text="soon"), pb.EchoRequest(sleep_ms=60_000)
    body = frame(first.SerializeToString()) + frame(second.SerializeToString())
    reader, writer = await asyncio.open_connection(*edge.address.split(":"))
    writer.write(
        b"POST %b/Bidi HTTP/1.1\r\nhost: x\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
        % (ECHO.encode(), BINARY.encode(), len(body), body)
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert b"HTTP/1.1 200" in head
    assert b"trailer:" not in head.lower()
    await asyncio.wait_for(reader.readuntil(b"soon"), 10)  # while the function still waits
    writer.close()
    await writer.wait_closed()


async def test_over_http_2(edge, pb):
    async with raw_client(edge.address) as client:
        request = frame(pb.EchoRequest(count=2).SerializeToString())
        answer = await client.call(request, path=f"{ECHO}/ServerStream", content_type=BINARY.encode())
        found = Answer(answer.http, [("content-type", BINARY)], answer.body)
        assert (found.status, len(found.messages)) == (0, 2)
        assert answer.trailers is answer.headers  # a browser can read them
        assert answer.headers[b"content-type"] == BINARY.encode()


async def test_a_slow_reader_holds_the_function(contract):
    produced = []

    async def pour(call):
        await call.receive_one()
        while True:
            await call.send(b"x" * 20_000)
            produced.append(len(produced))

    async with grpc_edge(contract, functions=pour) as edge:
        reader, writer = await asyncio.open_connection(*edge.address.split(":"), limit=1000)
        writer.write(
            b"POST /edge.v1.Library/Watch HTTP/1.1\r\nhost: x\r\ncontent-type: %b\r\ncontent-length: 8\r\n\r\n%b"
            % (TEXT.encode(), b64encode(frame(b"")))
        )
        await reader.readuntil(b"\r\n\r\n")
        same = 0
        while same < 20:  # round trips without progress
            before = len(produced)
            assert (await post(edge, "Unary", frame(b""))).status == 0
            same = same + 1 if before and before == len(produced) else 0
        assert len(produced) * 20_000 < 16_000_000  # the kernel's socket buffers hold so much
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_goes_away_cancels_the_function(edge, pb):
    async with raw_client(edge.address) as client:
        request = frame(pb.EchoRequest(text="web", sleep_ms=60_000, count=1).SerializeToString())
        stream = client.request(f"{ECHO}/ServerStream", content_type=BINARY.encode())
        client.data(stream, request, end=True)
        async with asyncio.timeout(10):
            while not edge.received:  # noqa: ASYNC110 - the call passes two servers
                await asyncio.sleep(0.01)
        client.reset(stream)
        await asyncio.wait_for(edge.ended.wait(), 10)
        assert edge.traced == [(f"{ECHO}/ServerStream", "CANCELLED")]


async def test_a_refusal_has_its_status_in_the_headers(edge, pb):
    answer = await post(edge, "Unary", frame(pb.EchoRequest(fail=pb.Failure(code=5)).SerializeToString()))
    assert (answer.http, answer.status, answer.trailers_only) == (200, 5, True)
    assert answer.headers["content-length"] == "0"
    answer = await post(edge, "Nothing", frame(b""))
    assert (answer.status, answer.trailers_only) == (12, True)
    assert answer.headers["grpc-accept-encoding"] == "identity,gzip"
    answer = await post(edge, "Unary", frame(b""), authorization="Bearer forged")
    assert answer.status == 16


async def test_the_answer_is_in_the_form_that_is_accepted(edge, pb):
    body = frame(pb.EchoRequest(text="a").SerializeToString())
    answer = await post(edge, "Unary", body, BINARY, accept=TEXT)
    assert answer.headers["content-type"] == TEXT
    answer = await post(edge, "Unary", b64encode(body), TEXT, accept=BINARY)
    assert answer.headers["content-type"] == BINARY
    answer = await post(edge, "Unary", body, BINARY, accept="*/*")
    assert answer.headers["content-type"] == BINARY
    assert pb.EchoResponse.FromString(answer.messages[0]).text == "a"


@pytest.mark.parametrize("media", [BINARY, TEXT])
async def test_compressed_messages(edge, pb, media):
    packed = gzip.compress(pb.EchoRequest(payload=b"x" * 5000).SerializeToString())
    body = encoded(media, frame(packed, flag=1))
    answer = await post(edge, "Unary", body, media, grpc_encoding="gzip", grpc_accept_encoding="gzip")
    assert answer.headers["grpc-encoding"] == "gzip"
    assert pb.EchoResponse.FromString(gzip.decompress(answer.messages[0])).payload == b"x" * 5000
    answer = await post(edge, "Unary", body, media, grpc_encoding="gzip")
    assert pb.EchoResponse.FromString(answer.messages[0]).payload == b"x" * 5000


async def test_deadlines(edge, pb):
    body = frame(pb.EchoRequest().SerializeToString())
    answer = await post(edge, "Unary", body, grpc_timeout="5S")
    assert 3 < pb.EchoResponse.FromString(answer.messages[0]).remaining.ToNanoseconds() / 1e9 <= 5
    body = frame(pb.EchoRequest(sleep_ms=60_000).SerializeToString())
    assert (await post(edge, "Unary", body, grpc_timeout="50m")).status == 4


async def test_limits(edge, pb):
    answer = await post(edge, "Unary", frame(pb.EchoRequest(payload=b"x" * (MAX - 100)).SerializeToString()))
    assert answer.status == 0
    for media in (BINARY, TEXT):
        body = encoded(media, frame(b"x" * (MAX + 1)))
        assert (await post(edge, "Unary", body, media)).status == 8
    assert (await post(edge, "Unary", b"\0\xff\xff\xff\xff")).status == 8  # before it is read


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (b"\0\0\0\0\5abc", BINARY),
        (b"\0\0\0", BINARY),
        (frame(b"", flag=0x80), BINARY),
        (frame(b"", flag=1), BINARY),
        (frame(b"", flag=7), BINARY),
        (b"AAAAAAA", TEXT),
        (b"AAAA=AAA", TEXT),
        (b"====", TEXT),
        (b"AAAA\xff\xff\xff\xff", TEXT),
        (b"AAAA\r\nAA", TEXT),
        (b64encode(frame(b"abc"))[:-4], TEXT),
    ],
)
async def test_malformed_requests_are_refused_in_grpcs_terms(edge, body, media):
    answer = await post(edge, "Unary", body, media)
    assert (answer.http, answer.status, answer.messages) == (200, 3, [])
    assert answer.message.startswith("malformed")
    assert edge.traced == [(f"{ECHO}/Unary", "INVALID_ARGUMENT")]


async def test_other_forms_and_verbs_are_refused_as_http(edge):
    for media in ("application/grpc-web+json", "application/grpc-web+thrift", "application/grpc-webb"):
        assert (await post(edge, "Unary", b"{}", media)).http == 415
    async with raw_client(edge.address) as client:
        stream = client.request(f"{ECHO}/Unary", method=b"PUT", content_type=BINARY.encode(), end=True)
        answer = await client.answer(stream)
        assert (answer.http, answer.headers[b"allow"]) == (405, b"POST")


async def test_a_refused_client_that_still_sends_gets_its_answer(edge):
    pieces = [b"x" * 50_000] * 20
    answer = await post(edge, "Nothing", pieces)
    assert answer.status == 12


# -- the base64 of requests --


def padded_runs(parts):
    return b"".join(map(b64encode, parts))


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(0, 400), max_size=8))
@example([b"a", b"bc", b"def"], [1, 2, 3, 5])
def test_base64_may_be_cut_anywhere(parts, cuts):
    text = padded_runs(parts)
    decoder = Base64Decoder()
    edges = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    found = [decoder.feed(text[start:end]) for start, end in pairwise(edges)]
    found.append(decoder.feed(b"", end=True))
    assert b"".join(found) == b"".join(parts)


@given(st.binary(max_size=40), st.integers(0, 40))
def test_what_is_no_base64_is_refused(data, cut):
    decoder = Base64Decoder()
    try:
        found = decoder.feed(data[:cut]) + decoder.feed(data[cut:], end=True)
    except InvalidArgument:
        return
    whole = b"".join(b64decode(data[at : at + 4], validate=True) for at in range(0, len(data), 4))
    assert found == whole


def test_the_trailer_frame():
    pairs = [(b"grpc-status", b"0"), (b"x-a", b"1")]
    assert trailer_frame(pairs) == b"\x80\0\0\0\x18" + b"grpc-status: 0\r\nx-a: 1\r\n"

"""Requests that two readers could understand in two ways, or that are too large, byte by byte over a raw socket."""

from __future__ import annotations

import asyncio
import json

import ngh2
import pytest
from raw_h2 import raw_client

HEAD = b"POST /v1/books HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"


async def exchange(edge, data):
    """Send the bytes and return (status, body) of each answer until the connection closes or rests."""
    host, port = edge.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    await writer.drain()
    answers = []
    try:
        async with asyncio.timeout(5):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                answers.append((int(head.split()[1]), await reader.readexactly(length)))
                if b"connection: close" in head.lower() or len(answers) == data.count(b" HTTP/1.1\r\n"):
                    break
    except asyncio.IncompleteReadError as error:
        assert error.partial == b""  # noqa: PT017 - closed without a word
    finally:
        writer.close()
    return answers


SMUGGLED = b"GET /v1/secrets HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} " + SMUGGLED,
        HEAD + b"content-length: +2\r\n\r\n{}" + SMUGGLED,
        HEAD + b"content-length: 0x2\r\n\r\n{}" + SMUGGLED,
        HEAD + b"content-length: -1\r\n\r\n" + SMUGGLED,
        HEAD + b"content-length: \r\n\r\n" + SMUGGLED,
        HEAD + b"content-length : 2\r\n\r\n{}" + SMUGGLED,
        HEAD + b"transfer-encoding: identity\r\n\r\n" + SMUGGLED,
        HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"x-a: b\r\n c\r\n\r\n" + SMUGGLED,
        HEAD + b"x-a: b\rc\r\n\r\n" + SMUGGLED,
        HEAD + b"x-a: b\0c\r\n\r\n" + SMUGGLED,
        HEAD + b"x a: b\r\n\r\n" + SMUGGLED,
        HEAD + b": b\r\n\r\n" + SMUGGLED,
        HEAD + b"host: b\r\n\r\n" + SMUGGLED,
        b"GET /v1/books HTTP/1.1\r\n\r\n" + SMUGGLED,
        b"GET /v1/books HTTP/1.1\r\nhost:\r\n\r\n" + SMUGGLED,
        b"GET /v1/books HTTP/1.1\r\nhost: a b\r\n\r\n" + SMUGGLED,
        b"GET /v1/books HTTP/1.1\r\nhost: a/b@c\r\n\r\n" + SMUGGLED,
        b"GET /v1/books HTTP/1.1\r\nhost: a, b\r\n\r\n" + SMUGGLED,
        b"GET  /v1/books HTTP/1.1\r\nhost: a\r\n\r\n" + SMUGGLED,
        b"GET /v1/books x HTTP/1.1\r\nhost: a\r\n\r\n" + SMUGGLED,
        b"GET http://b/v1/books HTTP/1.1\r\nhost: a\r\n\r\n" + SMUGGLED,
        b"GET /v1/b\xc3\xbccher HTTP/1.1\r\nhost: a\r\n\r\n" + SMUGGLED,
        b"GET /v1/books#x HTTP/1.1\r\nhost: a\r\n\r\n" + SMUGGLED,
        b"GET /v1/books?title=%zz HTTP/1.1\r\nhost: a\r\n\r\n" + SMUGGLED,
        b"POST /v1/books HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    ],
)
async def test_what_is_ambiguous_is_refused_and_ends_the_connection(opened, request_):
    async with opened() as edge:
        answers = await exchange(edge, request_)
        assert [status for status, _ in answers] == [400]
        assert edge.library.calls == []
        assert edge.seen == []  # the listener itself refuses it


@pytest.mark.parametrize("encoding", [b"gzip, chunked", b"gzip"])
async def test_a_transfer_encoding_that_is_not_known(opened, encoding):
    async with opened() as edge:
        answers = await exchange(edge, HEAD + b"transfer-encoding: " + encoding + b"\r\n\r\n0\r\n\r\n" + SMUGGLED)
        assert answers[0][0] in (400, 501)
        assert len(answers) == 1
        assert edge.library.calls == []


@pytest.mark.parametrize("lengths", [b"content-length: 2\r\ncontent-length: 2", b"content-length: 2, 2"])
async def test_a_length_that_is_there_twice_alike_is_refused_with_a_reason(opened, lengths):
    async with opened() as edge:
        ((status, body),) = await exchange(edge, HEAD + lengths + b"\r\n\r\n{}")
        assert status == 400
        assert json.loads(body) == {"code": 3, "message": "send one `content-length`, a number of bytes", "details": []}
        assert edge.library.calls == []


async def test_pipelined_requests_are_answered_in_order(opened):
    async with opened() as edge:
        one = HEAD + b"content-length: 14\r\n\r\n" + b'{"title": "a"}'
        two = b"GET /v1/books?title=b HTTP/1.1\r\nhost: a\r\n\r\n"
        answers = await exchange(edge, one + two + one)
        assert answers == [(200, b'{"title":"a"}'), (200, b'{"title":"b"}'), (200, b'{"title":"a"}')]


@pytest.mark.parametrize(
    ("lines", "status", "text"),
    [
        (
            b"GET /v1/books?title=" + b"a" * 100 + b" HTTP/1.1\r\nhost: a",
            414,
            "path and query are longer than 100 bytes",
        ),
        (b"GET /v1/books HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 3000, 431, "the headers are larger than 3000 bytes"),
        (b"GET /v1/books HTTP/1.1\r\nhost: a" + b"\r\nx: y" * 90, 431, "the headers are larger than 3000 bytes"),
    ],
)
async def test_what_is_too_large_is_refused_with_a_reason(opened, lines, status, text):
    async with opened(max_uri=100, max_headers=3000) as edge:
        ((got, body),) = await exchange(edge, lines + b"\r\n\r\n")
        assert (got, json.loads(body)["message"]) == (status, text)
        assert edge.library.calls == []
        assert (await edge.request("GET", "/v1/books?title=" + "a" * 80)).status == 200


async def test_many_fields_are_refused_however_small(opened):
    async with opened() as edge:
        ((status, body),) = await exchange(edge, b"GET /v1/books HTTP/1.1\r\nhost: a" + b"\r\nx: y" * 100 + b"\r\n\r\n")
        assert (status, json.loads(body)["message"]) == (431, "there are more than 100 header fields")


async def test_a_long_body_of_a_refused_path_does_not_reset_the_answer(opened):
    async with opened(max_uri=100) as edge:
        reply = await edge.request("POST", "/v1/" + "a" * 100, b" " * 2_000_000)
        assert reply.status == 414


@pytest.mark.parametrize(
    ("path", "media", "status"),
    [
        ("/v1/nothing", b"application/json", 404),
        ("/v1/books", b"text/plain", 415),
        ("/edge.v1.Library/GetBook", b"text/plain", 415),
        ("/edge.v1.Library/Nothing", b"application/grpc-web", 200),
    ],
)
async def test_a_refused_body_that_comes_late_does_not_reset_the_answer_by_http_2(opened, path, media, status):
    """curl 7.88 takes RST_STREAM(NO_ERROR) behind the answer (RFC 9113, 8.1) for a stream without one."""
    async with opened() as edge, raw_client(edge.address) as client:
        stream = client.request(path, content_type=media, headers=[(b"content-length", b"2")], te=None)
        assert (await client.answer(client.request("/healthz", method=b"GET", content_type=None, end=True))).http == 200
        client.data(stream, b"{}", end=True)
        answer = await client.answer(stream)
    assert answer.http == status
    assert not [event for event in client.of(stream) if isinstance(event, ngh2.StreamReset)]


async def test_options_of_the_whole_server(opened):
    async with opened() as edge:
        reply = await edge.request("OPTIONS", "*")
        assert (reply.status, reply.body) == (204, b"")
        assert await exchange(edge, b"GET * HTTP/1.1\r\nhost: a\r\n\r\n") == [(400, b"")]

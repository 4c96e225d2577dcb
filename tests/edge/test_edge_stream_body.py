"""Bodies other than JSON, whole and streamed: HttpBody, protobuf, gzip and zstd."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.api.httpbody_pb2 import HttpBody
from hypothesis import given
from hypothesis import strategies as st
from stream.v1 import stream_pb2 as pb
from streaming import LIMIT, Running, edge, head, read_chunk, read_head

from mesh.edge.http import stream_coding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

JSON = "application/json"
PROTOBUF = "application/x-protobuf"


@pytest.fixture(params=["process", "sidecar"])
async def running(contract: Any, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    async with edge(contract, request.param) as found:
        yield found


# -- protobuf --


async def test_protobuf_in_and_out(running):
    item = pb.Item(number=1, text="ü", mood=pb.GOOD)
    for kind in (PROTOBUF, "application/protobuf"):
        reply = await running.ask("POST", "/s/echo", item.SerializeToString(), content_type=kind, accept=kind)
        assert (reply.status, reply.headers["content-type"]) == (200, kind)
        assert pb.Item.FromString(reply.body) == item
    reply = await running.ask("POST", "/s/echo", item.SerializeToString(), content_type=PROTOBUF)
    assert json.loads(reply.body) == {"number": "1", "text": "ü", "mood": "GOOD"}
    reply = await running.ask("POST", "/s/echo?$alt=proto", b'{"text":"a"}', content_type=JSON)
    assert pb.Item.FromString(reply.body) == pb.Item(text="a")


async def test_json_that_is_asked_for_otherwise(running):
    reply = await running.ask(
        "POST", "/s/echo?$alt=json;enum-encoding=int&$prettyPrint=true", b'{"mood":1}', content_type=JSON
    )
    assert reply.body == b'{\n  "mood": 1\n}'
    assert (await running.ask("POST", "/s/echo?$alt=media", b"{}", content_type=JSON)).status == 400
    assert (await running.ask("POST", "/s/echo?$prettyPrint=2", b"{}", content_type=JSON)).status == 400


async def test_bytes_that_are_no_message_are_400(running):
    reply = await running.ask("POST", "/s/echo", b"\xff\xff", content_type=PROTOBUF)
    assert reply.status == 400
    assert "stream.v1.Item" in json.loads(reply.body)["message"]


# -- HttpBody --


async def test_a_body_of_any_type(running):
    reply = await running.ask("PUT", "/s/files/a%2Fb", b"\x00\x01", content_type="image/png; x=y")
    assert json.loads(reply.body) == {"name": "a/b", "contentType": "image/png; x=y", "size": "2"}
    reply = await running.ask("PUT", "/s/files/c", b"none")
    assert json.loads(reply.body) == {"name": "c", "size": "4"}
    reply = await running.ask("POST", "/s/raw", b"{not json", content_type=JSON)
    assert (reply.body, reply.headers["content-type"]) == (b"{not json", JSON)
    reply = await running.ask("POST", "/s/raw?$alt=json", b"ab", content_type="text/plain")
    assert json.loads(reply.body) == {"contentType": "text/plain", "data": "YWI="}
    reply = await running.ask("POST", "/s/raw", b"ab", content_type="text/plain", accept="image/png")
    assert reply.headers["content-type"] == "text/plain"  # the function decides
    reply = await running.ask("POST", "/s/raw?$alt=proto", b"ab", content_type="text/plain")
    assert HttpBody.FromString(reply.body) == HttpBody(content_type="text/plain", data=b"ab")
    assert (await running.ask("PUT", "/s/files/a", b"x" * (LIMIT + 1))).status == 413


async def test_an_answer_of_any_type(running):
    reply = await running.ask("GET", "/s/pages/here")
    assert (reply.headers["content-type"], reply.body) == ("text/html; charset=utf-8", b"<p>here</p>")
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert (await running.ask("GET", "/s/pages/none")).headers["content-type"] == "application/octet-stream"
    assert (await running.ask("GET", "/s/pages/bad")).status == 500
    whole = await running.ask("HEAD", "/s/pages/here")
    assert (whole.headers["content-length"], whole.body) == ("11", b"")


async def test_a_download_in_pieces(running):
    reply = await running.ask("GET", "/s/large/40")
    assert (reply.status, reply.headers["content-type"], reply.whole) == (200, "application/x-tar", True)
    assert reply.body == b"".join(bytes([number]) * 65536 for number in range(40))
    assert (await running.ask("GET", "/s/large/0")).body == b""


async def test_a_download_that_fails_is_cut_off(running):
    reply = await running.ask("GET", "/s/large/2?fail=last")
    assert (reply.status, len(reply.body), reply.whole) == (200, 2 * 65536, False)


async def test_an_upload_in_pieces(running):
    data = bytes(range(256)) * 20_000  # 50 times the limit of a message
    reply = await running.ask("PUT", "/s/large/a%20b", data, content_type="application/x-tar")
    digest = hashlib.sha256(data).hexdigest()
    wanted = {"name": "a b", "contentType": "application/x-tar", "size": str(len(data)), "digest": digest}
    assert json.loads(reply.body) == wanted
    packed = gzip.compress(data)
    reply = await running.ask(
        "PUT", "/s/large/a%20b", packed, content_type="application/x-tar", content_encoding="gzip"
    )
    assert json.loads(reply.body) == wanted
    empty = json.loads((await running.ask("PUT", "/s/large/e", b"", content_type="a/b")).body)
    assert (empty["name"], empty["contentType"]) == ("e", "a/b")


# -- packed answers --


async def unpacked(running: Running, path: str, accept: str) -> tuple[Any, bytes]:
    reply = await running.ask("GET", path, accept_encoding=accept)
    match reply.headers.get("content-encoding"):
        case "gzip":
            return reply, gzip.decompress(reply.body)
        case "zstd":
            return reply, zstd.decompress(reply.body)
    return reply, reply.body


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("gzip", "gzip"), ("gzip, zstd", "zstd"), ("zstd;q=0.5, gzip", "gzip"), ("gzip;q=0", None), ("br", None),
        ("*", "zstd"), ("*;q=0.1, zstd;q=0", "gzip"), ("identity, gzip;q=0.5", None), ("x-gzip", "gzip"),
    ],
)  # fmt: skip
async def test_an_answer_is_packed_as_asked(running, accept, chosen):
    reply, body = await unpacked(running, "/s/pages/here?count=500", accept)
    assert reply.headers.get("content-encoding") == chosen
    assert body == b"<p>here</p>" * 500
    assert "accept-encoding" in reply.headers["vary"]
    assert int(reply.headers["content-length"]) == len(reply.body)


async def test_a_large_answer_is_packed_aside(running):
    reply, body = await unpacked(running, "/s/pages/here?count=8000", "gzip")
    assert len(body) == 88_000
    assert len(reply.body) < 2000


async def test_what_is_small_or_packed_already_stays(running):
    reply, _ = await unpacked(running, "/s/pages/here", "gzip")
    assert "content-encoding" not in reply.headers
    reply, _ = await unpacked(running, "/s/large/1", "gzip")
    assert "content-encoding" not in reply.headers


@pytest.mark.parametrize("accept", ["gzip", "zstd"])
async def test_each_item_of_a_packed_stream_leaves_at_once(running, accept):
    unpacker: Any = zlib.decompressobj(31) if accept == "gzip" else zstd.ZstdDecompressor()
    reader, writer = await running.connect()
    writer.write(head("GET", "/s/count/3?room=stepwise", accept="text/event-stream", accept_encoding=accept))
    running.seen.more.release()
    _, headers = await read_head(reader)
    assert headers["content-encoding"] == accept
    for number in range(1, 4):
        text = b""
        while not text.endswith(b"\n\n"):
            text += unpacker.decompress(await read_chunk(reader) or b"")
        assert json.loads(text.removeprefix(b"data: "))["number"] == str(number)
        running.seen.more.release()
    rest = b""
    while piece := await read_chunk(reader):
        rest += unpacker.decompress(piece)
    assert (rest, unpacker.eof) == (b"", True)
    writer.close()


# -- packed requests --


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "GZIP"])
async def test_a_packed_body(running, name):
    body = gzip.compress(b'{"text":') + gzip.compress(b'"a"}')  # two members are one body
    reply = await running.ask("POST", "/s/echo", body, content_type=JSON, content_encoding=name)
    assert json.loads(reply.body) == {"text": "a"}


async def test_a_bomb_is_413(running):
    body = gzip.compress(bytes(50_000_000))
    assert len(body) < LIMIT
    assert (await running.ask("POST", "/s/echo", body, content_type=JSON, content_encoding="gzip")).status == 413


@pytest.mark.parametrize("body", [b"{}", gzip.compress(b"{}", mtime=0)[:-4], gzip.compress(b"{}", mtime=0) + b"more"])
async def test_a_broken_packed_body_is_400(running, body):
    assert (await running.ask("POST", "/s/echo", body, content_type=JSON, content_encoding="gzip")).status == 400


@given(st.binary(max_size=300_000), st.lists(st.integers(1, 70_000), min_size=1))
def test_gunzip_in_any_pieces(data, sizes):
    packed = gzip.compress(data)
    unpacker = stream_coding.Gunzip()
    out = []
    at = 0
    for size in sizes * len(packed):
        if at >= len(packed):
            break
        for piece in unpacker.feed(packed[at : at + size]):
            assert len(piece) <= stream_coding.PIECE_SIZE
            out.append(piece)
        at += size
    unpacker.end()
    assert b"".join(out) == data

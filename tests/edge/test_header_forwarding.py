"""Headers across the edge: which of a request become metadata, which of a function become headers."""

from __future__ import annotations

import asyncio

import pytest

BEARER = "Bearer "


async def test_only_the_named_headers_go_on(opened):
    async with opened(metadata=["x-tenant", "accept-language", "x-raw-bin"]) as edge:
        headers = {
            "X-Tenant": "acme", "accept-language": "de", "x-other": "no", "x-raw-bin": "AAE", "cookie": "a=b",
            "mesh-identity": "forged", "grpc-timeout": "1n", "authorization": BEARER + "ada", "te": "trailers",
        }  # fmt: skip
        assert (await edge.request("GET", "/v1/books", headers=headers)).status == 200
        (call,) = edge.library.calls
        assert sorted(call.metadata.pairs) == [
            (b"accept-language", b"de"),
            (b"x-raw-bin", b"AAE"),
            (b"x-tenant", b"acme"),
        ]
        assert call.metadata["x-raw-bin"] == b"\x00\x01"
        assert call.metadata["x-tenant"] == "acme"


async def test_a_header_that_is_there_twice_goes_on_twice(opened):
    async with opened(metadata=["x-tag"]) as edge:
        host, port = edge.address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /v1/books HTTP/1.1\r\nhost: a\r\nx-tag: 1\r\nX-TAG: 2\r\nconnection: close\r\n\r\n")
        await writer.drain()
        assert b" 200 " in await reader.readline()
        await reader.read()
        writer.close()
        assert edge.library.calls[0].metadata.getall("x-tag") == ["1", "2"]


async def test_a_value_that_metadata_cannot_hold_is_refused(opened):
    async with opened(metadata=["x-tenant"]) as edge:
        reply = await edge.request("GET", "/v1/books", headers={"x-tenant": "ä"})
        assert (reply.status, reply.json["message"]) == (400, "the header `x-tenant` may hold only printable ASCII")
        assert edge.library.calls == []
        assert (await edge.request("GET", "/v1/books", headers={"x-other": "ä"})).status == 200


@pytest.mark.parametrize("path", ["/v1/behave/later", "/v1/behave/headers"])
async def test_a_function_sets_no_header_of_the_edge(opened, path):
    async with opened(cors=["https://a.example"]) as edge:
        reply = await edge.request("GET", path, headers={"origin": "https://a.example"})
        assert reply.headers["x-mine"] == "yes"
        assert reply.headers.get_all("x-trace-id") == ["0af7651916cd43dd8448eb211c80319c"]
        assert reply.headers.get_all("access-control-allow-origin") == ["https://a.example"]

"""The edge over real sockets: HTTP in, the function's answer out, and every way that it can be refused."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct

import pytest

from mesh.contract.model import Access
from mesh.edge.calls import HttpCall
from mesh.errors import Code, http_status
from mesh.rpc.server.clients.client_stream import CLIENT_STREAM, SERVER, ClientStream
from mesh.rpc.server.clients.limits import ClientLimits

BEARER = "Bearer "


async def test_a_get_is_a_call_and_its_answer_is_json(running):
    reply = await running.request("GET", "/v1/shelves/a%2Fb/books/2?inPrint=true&tags=x&tags=y")
    assert reply.status == 200
    assert reply.json == {"name": "shelves/a%2Fb/books/2", "inPrint": True, "tags": ["x", "y"]}
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["content-length"] == str(len(reply.body))
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["x-trace-id"]
    call = running.seen[0]
    assert (call.verb, call.status, call.route) == ("GET", 200, "/v1/{name=shelves/*/books/*}")
    assert call.scheme == "http"
    assert call.authority == running.address
    assert call.client.startswith("127.0.0.1:")
    assert call.method.name == "GetBook"


async def test_a_body_is_the_request(running):
    book = {"title": "Ü", "isbn": "9007199254740993", "author": {"name": "A"}, "pages": 7, "labels": {"a": "b"}}
    reply = await running.json("POST", "/v1/books", book)
    assert (reply.status, reply.json) == (200, book)
    assert running.seen[0].http_version == "1.1"


async def test_the_path_wins_over_the_body_and_only_the_named_field_is_answered(running):
    reply = await running.json("PATCH", "/v1/books/7?updateMask=title,inPrint&reason=why", {"name": "x", "title": "T"})
    assert (reply.status, reply.json) == (200, "T")


async def test_a_repeated_field_is_a_body_and_an_answer(running):
    reply = await running.json("PUT", "/v1/books/7/tags", ["a", "b"])
    assert reply.json == [{"name": "books/7", "title": "a"}, {"name": "books/7", "title": "b"}]
    reply = await running.json("PUT", "/v1/books/7/tags", [])
    assert (reply.status, reply.json) == (200, [])


async def test_an_empty_body_is_the_empty_message(running):
    assert (await running.request("POST", "/v1/books")).json == {}
    assert (await running.request("POST", "/v1/books", b"", {"content-type": "text/plain"})).json == {}
    assert (await running.json("POST", "/v1/books", {})).json == {}


async def test_verbs_of_every_kind(running):
    assert (await running.json("POST", "/v1/shelves/1/books/2:archive", {})).json == {"name": "shelves/1/books/2"}
    assert (await running.request("PURGE", "/v1/books?title=a")).json == {"title": "a"}
    assert (await running.request("REPORT", "/v1/any?title=b")).json == {"title": "b"}


async def test_head_is_get_without_a_body(running):
    whole = await running.request("GET", "/v1/books?title=a")
    head = await running.request("HEAD", "/v1/books?title=a")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]


async def test_options_says_what_is_allowed(running):
    reply = await running.request("OPTIONS", "/v1/books")
    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["allow"] == "GET, HEAD, OPTIONS, POST, PURGE"
    assert (await running.request("OPTIONS", "/nowhere")).status == 404


async def test_a_wrong_verb_is_told_which_are_right(running):
    reply = await running.request("PUT", "/v1/books", b"")
    assert reply.status == 405
    assert reply.headers["allow"] == "GET, HEAD, OPTIONS, POST, PURGE"
    text = "/v1/books takes GET, HEAD, OPTIONS, POST, PURGE, not PUT"
    assert reply.json == {"code": 12, "message": text, "details": []}
    assert running.seen[0].status == 405


async def test_an_unknown_route_is_404(running):
    reply = await running.request("GET", "/v1/nothing")
    assert reply.status == 404
    assert reply.json["code"] == Code.NOT_FOUND
    assert "/v1/nothing" in reply.json["message"]
    assert reply.headers["x-trace-id"]


async def test_a_method_without_a_route_is_not_reachable(running, contract):
    assert contract.methods["/edge.v1.Library/Hidden"].access is Access.INTERNAL
    assert (await running.json("POST", "/edge.v1.Library/Hidden", {})).status == 404


async def test_a_malformed_path_is_400(running):
    assert (await running.request("GET", "/v1/isbn/%zz")).status == 400  # the server's own refusal, without a body
    reply = await running.request("GET", "/v1/isbn/%ff")
    assert (reply.status, reply.json["code"]) == (400, 3)
    assert "UTF-8" in reply.json["message"]
    assert (await running.request("GET", "/v1/books?title=%zz")).status == 400


async def test_bad_json_is_told_where(running):
    reply = await running.request("POST", "/v1/books", b'{"title":\n  nope}', {"content-type": "application/json"})
    assert reply.status == 400
    assert "line 2, column " in reply.json["message"]


async def test_a_wrong_field_is_a_violation(running):
    reply = await running.json("POST", "/v1/books", {"author": {"born": "x"}})
    assert reply.status == 400
    (detail,) = reply.json["details"]
    assert detail["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    assert detail["fieldViolations"][0]["field"] == "author.born"
    assert detail["fieldViolations"][0]["description"].startswith("expected an integer from -2147483648 to 2147483647")


async def test_a_violation_in_the_body_field_is_named_from_the_request(running):
    reply = await running.json("PATCH", "/v1/books/1", {"author": {"age": 1}})
    assert reply.json["details"][0]["fieldViolations"] == [
        {"field": "book.author.age", "description": "there is no such field"}
    ]


@pytest.mark.parametrize(
    "media", ["application/json", "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"']
)
async def test_json_media_types(running, media):
    assert (await running.request("POST", "/v1/books", b"{}", {"content-type": media})).status == 200


@pytest.mark.parametrize(
    "media",
    ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", "application/jsonp"],
)
async def test_other_media_types_are_415(running, media):
    reply = await running.request("POST", "/v1/books", b"{}", {"content-type": media})
    assert reply.status == 415
    assert "application/json" in reply.json["message"]


async def test_a_body_without_a_type_or_in_an_unknown_coding_is_415(running):
    assert (await running.request("POST", "/v1/books", b"{}")).status == 415
    headers = {"content-type": "application/json", "content-encoding": "br"}
    reply = await running.request("POST", "/v1/books", b"{}", headers)
    assert (reply.status, reply.headers["accept-encoding"]) == (415, "gzip")


async def test_a_large_body_is_413_before_it_is_read(running):
    host, port = running.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/books HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10001\r\n\r\n"
    )
    await writer.drain()
    assert b" 413 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_a_large_body_of_unknown_length_is_413(running):
    def chunks():
        for _ in range(20):
            yield b" " * 1000

    reply = await running.request("POST", "/v1/books", chunks(), {"content-type": "application/json"})
    assert reply.status == 413
    assert "10000 bytes" in reply.json["message"]


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
async def test_every_code_has_its_status(running, code):
    reply = await running.request("GET", f"/v1/behave/{code.name}")
    assert reply.status == http_status(code)
    assert reply.json == {"code": int(code), "message": f"it is {code.name}", "details": []}
    assert ("www-authenticate" in reply.headers) == (reply.status == 401)
    assert ("retry-after" in reply.headers) == (reply.status in (429, 503))


async def test_details_are_json(running):
    reply = await running.request("GET", "/v1/behave/violations")
    assert reply.json["details"][0]["fieldViolations"][1] == {"field": "tags[0]", "description": "bad"}
    reply = await running.request("GET", "/v1/behave/busy")
    assert (reply.status, reply.headers["retry-after"]) == (429, "3")
    assert reply.json["details"] == [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2.500s"}]


async def test_nothing_of_the_inside_leaks(running, caplog):
    with caplog.at_level(logging.CRITICAL, "mesh"):
        for what in ("bug", "nan"):
            reply = await running.request("GET", f"/v1/behave/{what}")
            assert (reply.status, reply.json) == (500, {"code": 13, "message": "internal error", "details": []})
    reply = await running.request("GET", "/v1/behave/unreached")
    assert (reply.status, reply.json["message"]) == (503, "the service cannot be reached now; try again later")
    assert (await running.request("GET", "/v1/behave/closed")).json["message"] == "we are closed"


async def test_only_some_headers_of_a_function_go_on(running):
    reply = await running.request("GET", "/v1/behave/headers")
    assert reply.headers["location"] == "/v1/books/1"
    assert reply.headers.get_all("set-cookie") == ["a=1", "b=2"]
    assert reply.headers["x-mine"] == "yes"
    assert "server-secret" not in reply.headers
    assert "x-raw-bin" not in reply.headers


async def test_headers_of_a_function_that_fails_go_on_too(running):
    reply = await running.request("GET", "/v1/behave/later")
    assert (reply.status, reply.headers["retry-after"], reply.headers["x-mine"]) == (503, "77", "yes")


@pytest.mark.parametrize("begun", [b"", b"{"])
async def test_a_body_that_does_not_come_is_408(running, begun):
    running.edge.app._timeout = 0.05
    host, port = running.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    head = b"POST /v1/books HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n"
    writer.write(head + begun)
    await writer.drain()
    assert b" 408 " in await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    await writer.wait_closed()


async def test_no_request_header_becomes_metadata(running):
    await running.json("GET", "/v1/books", authorization=BEARER + "ada", **{"mesh-identity": "forged", "x-a": "b"})
    (call,) = running.library.calls
    assert call.metadata.pairs == []
    assert call.identity.subject == "ada"


async def test_access(running):
    reply = await running.request("DELETE", "/v1/books/1")
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert "authorization: Bearer" in reply.json["message"]
    assert (await running.json("DELETE", "/v1/books/1", authorization=BEARER + "ada")).status == 200
    reply = await running.json("GET", "/v1/secrets", authorization=BEARER + "ada")
    assert (reply.status, reply.json["message"]) == (403, "this is only for users with the role admin or owner")
    assert (await running.json("GET", "/v1/secrets", authorization=BEARER + "owner")).status == 200
    reply = await running.json("DELETE", "/v1/books/1", authorization=BEARER + "forged")
    assert (reply.status, reply.json["message"]) == (401, "the token is not valid")
    running.library.calls.clear()
    assert (await running.json("GET", "/v1/books", authorization=BEARER + "forged")).status == 200
    assert running.library.calls[0].identity is None


async def test_the_deadline_is_504(running):
    reply = await running.request("GET", "/v1/slow")
    assert (reply.status, reply.json["code"]) == (504, 4)
    assert running.library.cancelled.is_set()


async def test_a_full_gate_is_429(running):
    running.concurrency_limit.limit = 0
    reply = await running.request("GET", "/v1/books")
    assert (reply.status, reply.headers["retry-after"]) == (429, "1")


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame (RFC 9113, 4.1)."""
    return struct.pack("!IBBI", len(payload), kind, flags, stream)[1:] + payload


async def test_a_client_that_leaves_cancels_its_call(running):
    # By HTTP/2: h2corn does not say that an HTTP/1.1 client has gone before there is an answer to write.
    host, port = running.address.rsplit(":", 1)
    path = b"/v1/behave/sleep"
    head = b"\x82\x86\x04" + bytes([len(path)]) + path + b"\x01\x01x"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 5, 1, head))
        async with asyncio.timeout(5):
            await running.library.started.wait()
        connection.sendall(frame(3, 0, 1, struct.pack("!I", 8)))  # RST_STREAM CANCEL
        async with asyncio.timeout(2):
            await running.library.cancelled.wait()
            await running.ended.wait()
    assert running.seen[0].status == 499
    assert (await running.request("GET", "/v1/books")).status == 200


async def test_health(running):
    reply = await running.request("GET", "/healthz")
    assert (reply.status, reply.json) == (200, {"status": "serving"})
    assert running.seen == []
    running.edge.app.draining = True
    assert (await running.request("GET", "/healthz")).status == 503
    reply = await running.request("GET", "/livez")
    assert (reply.status, reply.json) == (200, {"status": "alive"})


async def test_many_requests_on_one_connection(running):
    host, port = running.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /v1/slow HTTP/1.1\r\nhost: x\r\n\r\n")  # long enough for the edge to watch its client
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 504 ")
    await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
    for index in range(50):
        writer.write(b"GET /v1/books?title=%d HTTP/1.1\r\nhost: x\r\n\r\n" % index)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert json.loads(await reader.readexactly(length)) == {"title": str(index)}
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("client", "expected"),
    [(("2001:db8::7", 50123), "[2001:db8::7]:50123"), (("192.0.2.7", 80), "192.0.2.7:80"), (None, "")],
)
async def test_the_address_of_a_client_can_be_read_back(client, expected):
    scope = {
        "method": "GET", "raw_path": b"/", "query_string": b"", "scheme": "http", "http_version": "2", "headers": [],
        "client": client,
    }  # fmt: skip
    call = HttpCall(scope, None, None)
    assert call.client == expected


@pytest.mark.parametrize(("version", "told"), [("1.1", True), ("2", False)])
async def test_only_http1_is_told_to_close_when_the_server_retires(version, told):
    sent = []

    async def send(event):
        sent.append(event)

    class Retiring:
        retiring, guard = True, None

    scope = {
        "headers": [], "raw_path": b"/", "query_string": b"", "http_version": version, "client": ("192.0.2.1", 7),
        SERVER: Retiring(),
    }  # fmt: skip
    scope[CLIENT_STREAM] = ClientStream(ClientLimits(), scope, None, send)
    await HttpCall(scope, None, send, send).answer(200, [], b"{}")
    assert ((b"connection", b"close") in sent[0]["headers"]) is told

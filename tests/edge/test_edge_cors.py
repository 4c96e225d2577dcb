"""CORS: what a page of another origin may read, on answers and on every kind of refusal."""

from __future__ import annotations

import pytest

APP = "https://app.example"


def granted(reply):
    return {name: value for name, value in reply.headers.items() if name.startswith("access-control-")}


def varies(reply):
    """Whether caches are told that the answer depends on the origin."""
    return "origin" in ", ".join(reply.headers.get_all("vary", [])).split(", ")


async def test_an_allowed_origin_is_told_back_exactly(opened):
    async with opened(cors=[APP, "http://localhost:3000"]) as edge:
        for origin in (APP, "http://localhost:3000"):
            reply = await edge.request("GET", "/v1/books", headers={"origin": origin})
            assert reply.status == 200
            assert reply.headers["access-control-allow-origin"] == origin
            assert varies(reply)
            assert "access-control-allow-credentials" not in reply.headers
            exposed = reply.headers["access-control-expose-headers"].split(", ")
            assert {"x-trace-id", "grpc-status", "grpc-message", "grpc-status-details-bin", "location"} <= set(exposed)


@pytest.mark.parametrize(
    "origin",
    ["https://app.example.evil", "http://app.example", "https://app.example:444", "https://APP.example", "null", ""],
)
async def test_another_origin_gets_an_answer_and_no_grant(opened, origin):
    async with opened(cors={"origins": [APP], "credentials": True}) as edge:
        reply = await edge.request("GET", "/v1/books", headers={"origin": origin})
        assert (reply.status, granted(reply), varies(reply)) == (200, {}, True)
        asked = {"origin": origin, "access-control-request-method": "GET"}
        reply = await edge.request("OPTIONS", "/v1/books", headers=asked)
        assert (reply.status, granted(reply)) == (204, {})


async def test_an_answer_without_an_origin_varies_too(opened):
    async with opened(cors=[APP]) as edge:
        reply = await edge.request("GET", "/v1/books")
        assert (granted(reply), varies(reply)) == ({}, True)


async def test_without_cors_there_is_no_trace_of_it(running):
    reply = await running.request("GET", "/v1/books", headers={"origin": APP})
    assert granted(reply) == {}
    assert not varies(reply)


async def test_a_preflight(opened):
    async with opened(cors={"origins": [APP], "credentials": True, "max_age": "1m"}) as edge:
        headers = {
            "origin": APP,
            "access-control-request-method": "DELETE",
            "access-control-request-headers": "authorization, content-type,x-grpc-web",
        }
        reply = await edge.request("OPTIONS", "/v1/books/1", headers=headers)  # DELETE there needs a user
        assert (reply.status, reply.body) == (204, b"")
        assert granted(reply) == {
            "access-control-allow-origin": APP,
            "access-control-allow-credentials": "true",
            "access-control-allow-methods": "DELETE",
            "access-control-allow-headers": "authorization, content-type,x-grpc-web",
            "access-control-max-age": "60",
        }
        assert reply.headers.get_all("vary") == [
            "origin", "access-control-request-method, access-control-request-headers",
        ]  # fmt: skip
        assert edge.library.calls == []
        assert edge.seen[0].status == 204


async def test_a_preflight_grants_no_words_that_are_none(opened):
    async with opened(cors=[APP]) as edge:
        headers = {"origin": APP, "access-control-request-method": "a b", "access-control-request-headers": "x;y"}
        reply = await edge.request("OPTIONS", "/v1/books", headers=headers)
        assert reply.status == 204
        assert "access-control-allow-methods" not in reply.headers
        assert "access-control-allow-headers" not in reply.headers


async def test_an_options_that_is_no_preflight_is_answered_as_ever(opened):
    async with opened(cors=[APP]) as edge:
        reply = await edge.request("OPTIONS", "/v1/books", headers={"origin": APP})
        assert reply.headers["allow"] == "GET, HEAD, OPTIONS, POST, PURGE"
        assert reply.headers["access-control-allow-origin"] == APP


async def test_every_origin_without_credentials(opened):
    async with opened(cors=["*"]) as edge:
        reply = await edge.request("GET", "/v1/books", headers={"origin": "null"})
        assert reply.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in reply.headers
        assert not varies(reply)


async def test_more_headers_are_exposed_when_asked_for(opened):
    async with opened(cors={"origins": [APP], "expose": ["x-total"]}) as edge:
        reply = await edge.request("GET", "/v1/books", headers={"origin": APP})
        assert reply.headers["access-control-expose-headers"].endswith(", x-total")


@pytest.mark.parametrize(
    ("verb", "path", "headers", "status"),
    [
        ("GET", "/nowhere", {}, 404),
        ("PUT", "/v1/books", {}, 405),
        ("POST", "/v1/books", {"content-type": "text/plain", "content-length": "0"}, 200),
        ("DELETE", "/v1/books/1", {}, 401),
        ("GET", "/v1/secrets", {"authorization": "Bearer forged"}, 401),
        ("GET", "/v1/secrets", {"authorization": "Bearer ada"}, 403),
        ("GET", "/v1/books?nothing=1", {}, 400),
        ("GET", "/v1/behave/NOT_FOUND", {}, 404),
        ("GET", "/v1/behave/bug", {}, 500),
        ("GET", "/v1/behave/closed", {}, 503),
        ("GET", "/v1/slow", {}, 504),
        ("GET", "/v1/books?title=" + "a" * 9000, {}, 414),
    ],
)
async def test_refusals_can_be_read_too(opened, caplog, verb, path, headers, status):
    async with opened(cors=[APP]) as edge:
        with caplog.at_level("CRITICAL", "mesh"):
            reply = await edge.request(verb, path, headers={"origin": APP, **headers})
        assert reply.status == status
        assert reply.headers["access-control-allow-origin"] == APP
        assert "x-trace-id" in reply.headers["access-control-expose-headers"]


async def test_a_full_gate_can_be_read_too(opened):
    async with opened(cors=[APP]) as edge:
        edge.concurrency_limit.limit = 0
        reply = await edge.request("GET", "/v1/books", headers={"origin": APP})
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (429, APP)

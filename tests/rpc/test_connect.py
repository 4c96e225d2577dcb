"""Connect protocol on the wire, at a sidecar, over both versions of HTTP."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest
from conformance.v1 import conformance_pb2 as pb
from connect_client import JSON, JSON_STREAM, PROTO, PROTO_STREAM, Client, envelope
from hosting import hosted
from raw_h2 import raw_client

from mesh import content_coding
from mesh.call import Call, Handler
from mesh.contract.model import Contract
from mesh.errors import Code, ResourceExhausted, StatusError, http_status

ECHO = "/conformance.v1.Echo/"
LIMIT = 5000


@pytest.fixture(params=["1.1", "2"])
async def call(contract: Contract, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    async with hosted(contract, max_message=LIMIT) as address:
        yield Client(address, request.param)


def echo(**fields: Any) -> bytes:
    return pb.EchoRequest(**fields).SerializeToString()


async def test_too_many_header_fields(call: Client) -> None:
    headers = {**JSON, **{f"x-{number}": "" for number in range(1001)}}
    for method in ("Unary", "Nothing"):
        answer = await call(method, b"{}", headers)
        assert (answer.status, answer.json["code"]) == (429, "resource_exhausted")


# -- unary --


async def test_unary_json(call: Client) -> None:
    answer = await call("Unary", b'{"text":"hi","payload":"AAE="}', JSON)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json == {"text": "hi", "payload": "AAE="}
    assert answer.headers["content-length"] == str(len(answer.body))


@pytest.mark.parametrize("kind", ["application/proto", "Application/Proto", "application/proto; x=y"])
async def test_unary_protobuf(call: Client, kind: str) -> None:
    answer = await call("Unary", echo(text="hi"), {"content-type": kind})
    assert (answer.status, answer.headers["content-type"]) == (200, "application/proto")
    assert pb.EchoResponse.FromString(answer.body).text == "hi"


async def test_empty_messages(call: Client) -> None:
    assert (await call("Unary", b"", PROTO)).body == b""
    assert (await call("Unary", b"{}", JSON)).json == {}
    assert (await call("Unary", b"", JSON)).json["code"] == "invalid_argument"
    stream = await call("ClientStream", envelope(b""), PROTO_STREAM)
    assert (stream.envelopes[0], stream.end) == ((0, pb.EchoResponse(index=1).SerializeToString()), {})
    none = await call("ClientStream", b"", PROTO_STREAM)
    assert (none.envelopes[0], none.end) == ((0, b""), {})


async def test_a_charset_is_accepted_if_it_is_utf_8(call: Client) -> None:
    assert (await call("Unary", b"{}", {"content-type": "application/json; charset=UTF-8"})).status == 200
    assert (await call("Unary", b"{}", {"content-type": "application/json; charset=latin-1"})).status == 415


async def test_metadata(call: Client) -> None:
    sent = {"x-echo-a": "1, 2", "x-echo-b-bin": "AAE=", "x-echo-c-bin": "AP8"}
    answer = await call("Unary", b"{}", {**JSON, **sent})
    assert {name: value for name, value in answer.pairs if "x-echo" in name} == {
        "x-echo-a": "1, 2", "x-echo-b-bin": "AAE", "x-echo-c-bin": "AP8", "trailer-x-echo-a-trailer": "1, 2",
        "trailer-x-echo-b-trailer-bin": "AAE", "trailer-x-echo-c-trailer-bin": "AP8",
    }  # fmt: skip
    stream = await call("ServerStream", envelope(b'{"count":1}'), {**JSON_STREAM, **sent})
    assert (stream.headers["x-echo-a"], stream.headers["x-echo-b-bin"]) == ("1, 2", "AAE")
    assert stream.end == {
        "metadata": {
            "x-echo-a-trailer": ["1, 2"], "x-echo-b-trailer-bin": ["AAE"], "x-echo-c-trailer-bin": ["AP8"],
        }
    }  # fmt: skip


async def test_metadata_of_an_error(call: Client) -> None:
    fail = {"fail": {"code": 9, "message": "no"}}
    answer = await call("Unary", json.dumps(fail).encode(), {**JSON, "x-echo-a": "1"})
    assert (answer.status, answer.headers["x-echo-a"], answer.headers["trailer-x-echo-a-trailer"]) == (400, "1", "1")
    stream = await call("ServerStream", envelope(json.dumps(fail).encode()), {**JSON_STREAM, "x-echo-a": "1"})
    assert (stream.status, stream.headers["x-echo-a"]) == (200, "1")
    assert stream.end == {
        "error": {"code": "failed_precondition", "message": "no"}, "metadata": {"x-echo-a-trailer": ["1"]}
    }  # fmt: skip


async def test_the_headers_of_protocol_and_browser_are_no_metadata(contract: Contract) -> None:
    seen: list[list[str]] = []

    async def note(call: Call, next: Handler) -> None:
        seen.append(sorted(call.metadata))
        await next(call)

    noise = dict.fromkeys(
        (
            "connect-protocol-version",
            "connect-timeout-ms",
            "accept-encoding",
            "x-user-agent",
            "sec-fetch-mode",
            "cookie",
        ),
        "1",
    )
    async with hosted(contract, authenticate=note) as address:
        for version in ("1.1", "2"):
            answer = await Client(address, version)("Unary", b"{}", {**JSON, **noise, "x-mine": "1", "origin": "o"})
            assert answer.status == 200
    assert seen == [["x-mine"], ["x-mine"]]


# -- errors --

NAMES = [
    "canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists", "permission_denied",
    "resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented", "internal", "unavailable",
    "data_loss", "unauthenticated",
]  # fmt: skip
STATUSES = [499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401]


@pytest.mark.parametrize("code", range(1, 17))
async def test_codes(call: Client, code: int) -> None:
    request = json.dumps({"fail": {"code": code, "message": "ñ"}}).encode()
    answer = await call("Unary", request, JSON)
    assert (answer.status, answer.headers["content-type"]) == (STATUSES[code - 1], "application/json")
    assert answer.json == {"code": NAMES[code - 1], "message": "ñ"}
    assert http_status(code) == STATUSES[code - 1]
    assert ("www-authenticate" in answer.headers) is (code == Code.UNAUTHENTICATED)
    protobuf = await call("Unary", echo(fail=pb.Failure(code=code)), PROTO)
    assert (protobuf.headers["content-type"], protobuf.json) == ("application/json", {"code": NAMES[code - 1]})
    stream = await call("ServerStream", envelope(request), JSON_STREAM)
    assert (stream.status, stream.end) == (200, {"error": {"code": NAMES[code - 1], "message": "ñ"}})


async def test_details(call: Client) -> None:
    answer = await call("Unary", b'{"fail":{"code":3,"message":"no","details":true}}', JSON)
    (detail,) = answer.json["details"]
    assert detail == {
        "type": "google.rpc.BadRequest", "value": "CgoKBHRleHQSAm5v",
        "debug": {"fieldViolations": [{"field": "text", "description": "no"}]},
    }  # fmt: skip


async def test_a_bug_tells_nothing(call: Client) -> None:
    answer = await call("Unary", b'{"fail":{"message":"secret"}}', JSON)
    assert (answer.status, answer.json) == (500, {"code": "internal", "message": "internal error"})


async def test_retry_after(contract: Contract) -> None:
    async def refuse(_: Call, next: Handler) -> None:
        raise ResourceExhausted("later", retry_after=2.5)

    async with hosted(contract, authenticate=refuse) as address:
        answer = await Client(address, "2")("Unary", b"{}", JSON)
    assert (answer.status, answer.headers["retry-after"]) == (429, "3")


async def test_errors_of_json_name_the_field(call: Client) -> None:
    answer = await call("Unary", b'{"sleepMs":"x"}', JSON)
    assert (answer.status, answer.json["code"]) == (400, "invalid_argument")
    assert answer.json["details"][0]["debug"]["fieldViolations"][0]["field"] == "sleepMs"
    answer = await call("Unary", b'{"text":', JSON)
    assert answer.json["message"].startswith("the message is not valid JSON: ")
    stream = await call("ClientStream", envelope(b"{}") + envelope(b'{"nothing":1}'), JSON_STREAM)
    assert stream.end["error"]["message"] == "nothing: there is no such field"


async def test_what_is_no_message_is_an_invalid_argument(call: Client) -> None:
    assert (await call("Unary", b"\xff\xff", PROTO)).json["code"] == "invalid_argument"
    assert (await call("ServerStream", envelope(b"\xff\xff"), PROTO_STREAM)).error["code"] == "invalid_argument"


# -- requests that are no calls of a method --


@pytest.mark.parametrize("headers", [JSON, PROTO, JSON_STREAM, PROTO_STREAM])
async def test_an_unknown_method(call: Client, headers: dict[str, str]) -> None:
    for method, message in (
        ("Nothing", "service conformance.v1.Echo has no method Nothing"),
        ("/no.Such/Thing", "service no.Such is not served here"),
    ):
        answer = await call(method, b"{}", headers)
        assert (answer.status, answer.headers["content-type"]) == (404, "application/json")
        assert answer.json == {"code": "unimplemented", "message": message}


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("Unary", "application/foo"), ("Unary", "image/jpeg"), ("Unary", "application/connect+json"),
        ("ServerStream", "application/json"), ("Bidi", "application/connect+xml"),
    ],
)  # fmt: skip
async def test_an_unknown_codec(call: Client, method: str, kind: str) -> None:
    answer = await call(method, b"x" * 100, {"content-type": kind, "connect-protocol-version": "1"})
    form = "application/" if method == "Unary" else "application/connect+"
    assert (answer.status, answer.body) == (415, b"")
    assert answer.headers["accept-post"] == f"application/grpc, {form}json, {form}proto"


@pytest.mark.parametrize("verb", ["DELETE", "PUT", "HEAD", "GET"])
async def test_other_verbs(call: Client, verb: str) -> None:
    answer = await call("Unary?connect=v1&encoding=json&message={}", b"", JSON, verb)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    if verb != "GET":
        answer = await call("Idempotent", b"", JSON, verb)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, POST")


async def test_the_version_of_the_protocol(call: Client) -> None:
    assert (await call("Unary", b"{}", {**JSON, "connect-protocol-version": "1"})).status == 200
    answer = await call("Unary", b"{}", {**JSON, "connect-protocol-version": "2"})
    assert (answer.status, answer.json["code"]) == (400, "invalid_argument")
    answer = await call("Idempotent?connect=v2&encoding=json&message=%7B%7D", b"", {}, "GET")
    assert (answer.status, answer.json["code"]) == (400, "invalid_argument")


# -- timeouts --


async def test_a_timeout(call: Client) -> None:
    answer = await call("Unary", b'{"sleepMs":60000}', {**JSON, "connect-timeout-ms": "50"})
    assert (answer.status, answer.json["code"]) == (504, "deadline_exceeded")
    stream = await call(
        "ServerStream", envelope(b'{"count":1,"sleepMs":60000}'), {**JSON_STREAM, "connect-timeout-ms": "50"}
    )
    assert stream.error["code"] == "deadline_exceeded"
    answer = await call("Unary", b"{}", {**JSON, "connect-timeout-ms": "9999999999"})
    assert answer.json["remaining"].startswith("999999")
    assert (await call("Unary", b"{}", {**JSON, "connect-timeout-ms": "5000.25"})).status == 200


@pytest.mark.parametrize("value", ["", "-1", "5s", "x", "12345678901", "1e3", "\u0661"])
async def test_a_malformed_timeout(call: Client, value: str) -> None:
    for method, headers in (("Unary", JSON), ("ServerStream", JSON_STREAM)):
        answer = await call(method, b"{}", {**headers, "connect-timeout-ms": value.encode().decode("latin-1")})
        assert answer.error["code"] == "invalid_argument"
        assert "connect-timeout-ms" in answer.error["message"]


# -- GET --


async def test_get(call: Client) -> None:
    message = quote('{"text":"a+b ñ&="}')
    for query in (
        f"connect=v1&encoding=json&message={message}", f"message={message}&unknown=1&encoding=json&base64=0",
        f"encoding=json&message={message.replace('%20', '+')}",
    ):  # fmt: skip
        answer = await call(f"Idempotent?{query}", b"", {}, "GET")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json == {"text": "a+b ñ&="}


@pytest.mark.parametrize("text", ["", "a", "ab", "abc", "~~~???>>>"])
async def test_get_with_base64(call: Client, text: str) -> None:
    data = echo(text=text)
    padded = base64.urlsafe_b64encode(data).decode()
    for value in (padded.rstrip("="), quote(padded)):
        answer = await call(f"Idempotent?connect=v1&encoding=proto&base64=1&message={value}", b"", {}, "GET")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/proto")
        assert pb.EchoResponse.FromString(answer.body).text == text
    packed = base64.urlsafe_b64encode(gzip.compress(data)).decode().rstrip("=")
    query = f"connect=v1&encoding=proto&base64=1&compression=gzip&message={packed}"
    answer = await call(f"Idempotent?{query}", b"", {}, "GET")
    assert pb.EchoResponse.FromString(answer.body).text == text


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("encoding=json", 400, "invalid_argument"), ("message=%7B%7D", 400, "invalid_argument"),
        ("encoding=json&message=", 400, "invalid_argument"), ("", 400, "invalid_argument"),
        ("encoding=json&base64=1&message=!!!", 400, "invalid_argument"),
        ("encoding=json&base64=1&message=A", 400, "invalid_argument"),
        ("encoding=proto&compression=br&message=", 501, "unimplemented"),
        ("encoding=proto&compression=gzip&message=zz", 400, "invalid_argument"),
        ("encoding=xml&message=x", 415, ""),
        ("&".join(["x=1"] * 200), 400, "invalid_argument"),
        (f"encoding=proto&base64=1&message={'A' * 8000}", 429, "resource_exhausted"),
    ],
)  # fmt: skip
async def test_a_malformed_get(call: Client, query: str, status: int, code: str) -> None:
    answer = await call(f"Idempotent?{query}", b"", {}, "GET")
    assert (answer.status, answer.json["code"] if answer.body else "") == (status, code)


async def test_entity_tags(call: Client) -> None:
    path = "Idempotent?connect=v1&encoding=json&message=%7B%7D"
    first = await call(path, b"", {}, "GET")
    tag = first.headers["etag"]
    assert first.headers["vary"] == "accept-encoding"
    for value in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
        again = await call(path, b"", {"if-none-match": value}, "GET")
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
        assert "content-type" not in again.headers
    other = await call(path.replace("%7B%7D", quote('{"text":"x"}')), b"", {"if-none-match": tag}, "GET")
    assert (other.status, other.headers["etag"] != tag) == (200, True)
    protobuf = await call("Idempotent?encoding=proto&message=", b"", {}, "GET")
    assert protobuf.headers["etag"] != tag  # the same empty bytes, in another form
    failed = await call(path.replace("%7B%7D", quote('{"fail":{"code":5}}')), b"", {"if-none-match": "*"}, "GET")
    assert failed.status == 404
    assert "etag" not in (await call("Idempotent", b"{}", JSON)).headers


# -- compression --


@pytest.mark.parametrize("coding", content_coding.CODINGS)
async def test_compression(call: Client, coding: str) -> None:
    text = "x" * 4000
    packed = content_coding.compress(coding, json.dumps({"text": text}).encode())
    answer = await call("Unary", packed, {**JSON, "content-encoding": coding})
    assert answer.headers["content-encoding"] == coding  # without accept-encoding: that of the request
    assert json.loads(content_coding.decompress(coding, answer.body, 10_000) or b"") == {"text": text}
    answer = await call("Unary", packed, {**JSON, "content-encoding": coding, "accept-encoding": "identity"})
    assert ("content-encoding" not in answer.headers, answer.json) == (True, {"text": text})
    answer = await call("Unary", b"{}", {**JSON, "content-encoding": "identity", "accept-encoding": coding})
    assert ("content-encoding" not in answer.headers, answer.json) == (True, {})
    assert (await call("Unary", b"", {**PROTO, "content-encoding": coding})).status == 200  # nothing to decompress

    headers = {**JSON_STREAM, "connect-content-encoding": coding}
    body = envelope(packed, 1) + envelope(b"{}") + envelope(packed, 1)
    stream = await call("Bidi", body, headers)
    assert stream.headers["connect-content-encoding"] == coding
    (one, first), (two, second), (three, _), (four, _) = stream.envelopes
    assert (one, two, three, four, stream.end) == (1, 0, 1, 2, {})
    assert json.loads(content_coding.decompress(coding, first, 10_000) or b"") == {"text": text}
    assert json.loads(second) == {"index": "1"}


async def test_the_first_known_coding_is_taken(call: Client) -> None:
    request = json.dumps({"text": "x" * 2000}).encode()
    for accepted, coding in (
        ("br, gzip;q=0.5, zstd", "gzip"), ("zstd,gzip", "zstd"), ("gzip;q=0, zstd;q=1", "zstd"), ("br", None),
        ("*", None), ("GZIP", "gzip"),
    ):  # fmt: skip
        answer = await call("Unary", request, {**JSON, "accept-encoding": accepted})
        assert answer.headers.get("content-encoding") == coding, accepted
        stream = await call("Bidi", envelope(request), {**JSON_STREAM, "connect-accept-encoding": accepted})
        assert stream.headers.get("connect-content-encoding") == coding, accepted
        assert stream.envelopes[0][0] == (coding is not None)


async def test_an_unknown_coding(call: Client) -> None:
    answer = await call("Unary", b"{}", {**JSON, "content-encoding": "foo"})
    assert (answer.status, answer.json["code"], answer.headers["accept-encoding"]) == (
        501, "unimplemented", "zstd, gzip, identity"
    )  # fmt: skip
    assert "zstd, gzip, identity" in answer.json["message"]
    stream = await call("Bidi", envelope(b"{}"), {**JSON_STREAM, "connect-content-encoding": "foo"})
    assert (stream.status, stream.error["code"]) == (200, "unimplemented")
    assert stream.headers["connect-accept-encoding"] == "zstd, gzip, identity"


# -- limits, malformed requests --


@pytest.mark.parametrize("coding", ["", *content_coding.CODINGS])
async def test_the_size_limit(call: Client, coding: str) -> None:
    for size, fits in ((LIMIT, True), (LIMIT + 1, False), (LIMIT * 100, False)):
        data = echo(payload=bytes(size - (4 if size > 2**14 else 3)))
        assert len(data) == size
        sent = content_coding.compress(coding, data) if coding else data
        encoding = {"content-encoding": coding} if coding else {}
        answer = await call("Unary", sent, {**PROTO, **encoding})
        assert answer.status == (200 if fits else 429), (len(data), answer.body[:200])
        encoding = {"connect-content-encoding": coding} if coding else {}
        stream = await call("ClientStream", envelope(sent, bool(coding)), {**PROTO_STREAM, **encoding})
        assert stream.end.get("error", {}).get("code") == (None if fits else "resource_exhausted")


MALFORMED = {
    "an unknown flag": (envelope(b"{}", 4), {}, "invalid_argument"),
    "an end of the stream": (envelope(b"{}", 2), {}, "invalid_argument"),
    "compressed, and no coding declared": (envelope(gzip.compress(b"{}"), 1), {}, "internal"),
    "compressed, and identity declared": (envelope(b"{}", 1), {"connect-content-encoding": "identity"}, "internal"),
    "no gzip": (envelope(b"no gzip", 1), {"connect-content-encoding": "gzip"}, "invalid_argument"),
    "cut gzip": (envelope(gzip.compress(b"{}")[:-3], 1), {"connect-content-encoding": "gzip"}, "invalid_argument"),
    "another format": (envelope(zlib.compress(b"{}"), 1), {"connect-content-encoding": "gzip"}, "invalid_argument"),
    "a prefix cut off": (envelope(b"{}")[:3], {}, "invalid_argument"),
    "a message cut off": (envelope(b"{}")[:-1], {}, "invalid_argument"),
    "no message": (b"", {}, "unimplemented"),
    "two messages for one": (envelope(b"{}") * 2, {}, "unimplemented"),
    "too large by what it says": (b"\0\xff\xff\xff\xff", {}, "resource_exhausted"),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_streams(call: Client, name: str) -> None:
    body, headers, code = MALFORMED[name]
    answer = await call("ServerStream", body, {**JSON_STREAM, **headers})
    assert (answer.status, answer.error["code"]) == (200, code)
    assert [flags for flags, _ in answer.envelopes] == [2]


# -- streams --


async def test_streams(call: Client) -> None:
    two = envelope(b'{"text":"a"}') + envelope(b'{"text":"b"}')
    client = await call("ClientStream", two, JSON_STREAM)
    assert [json.loads(data) for flags, data in client.envelopes] == [{"text": "a,b", "index": "2"}, {}]
    bidi = await call("Bidi", two, JSON_STREAM)
    assert [json.loads(data) for _, data in bidi.envelopes] == [{"text": "a"}, {"text": "b", "index": "1"}, {}]
    server = await call("ServerStream", envelope(b'{"count":2,"fail":{"code":5,"message":"end"}}'), JSON_STREAM)
    assert [flags for flags, _ in server.envelopes] == [0, 0, 2]
    assert server.end == {"error": {"code": "not_found", "message": "end"}}
    none = await call("ServerStream", envelope(b"{}"), JSON_STREAM)
    assert (none.headers["content-type"], none.body) == ("application/connect+json", envelope(b"{}", 2))


async def test_full_duplex_and_a_caller_that_leaves(contract: Contract) -> None:
    ended = asyncio.Event()

    async def note(call: Call, next: Handler) -> None:
        try:
            await next(call)
        except asyncio.CancelledError:
            ended.set()
            raise

    async with hosted(contract, authenticate=note) as address, raw_client(address) as client:
        kind = [(b"content-type", b"application/connect+json")]
        stream = client.request(f"{ECHO}Bidi", content_type=None, te=None, headers=kind)
        for index, text in enumerate("ab"):
            before = len(client.body(stream))
            client.data(stream, envelope(b'{"text":"%s"}' % text.encode()))
            await client.until(lambda before=before: len(client.body(stream)) > before)
            assert json.loads(client.body(stream)[before + 5 :]).get("index", "0") == str(index)
        client.reset(stream)
        await asyncio.wait_for(ended.wait(), 5)


async def test_a_failure_while_the_caller_still_sends(contract: Contract) -> None:
    """The status comes at once, although the request goes on."""

    async def refuse(_: Call, next: Handler) -> None:
        raise StatusError.of(Code.ABORTED, "enough")

    async with hosted(contract, authenticate=refuse) as address, raw_client(address) as client:
        kind = [(b"content-type", b"application/connect+json")]
        stream = client.request(f"{ECHO}Bidi", content_type=None, te=None, headers=kind)
        client.data(stream, envelope(b"{}"))
        answer = await client.answer(stream)
        assert json.loads(answer.body[5:]) == {"error": {"code": "aborted", "message": "enough"}}


async def test_the_end_of_the_drain(contract: Contract) -> None:
    begun = asyncio.Semaphore(0)

    async def note(call: Call, next: Handler) -> None:
        begun.release()
        await next(call)

    async with hosted(contract, authenticate=note, drain=0.1) as address:
        stream = envelope(b'{"count":1,"sleepMs":60000}')
        calls = [
            asyncio.create_task(Client(address, "2")("Unary", b'{"sleepMs":60000}', JSON)),
            asyncio.create_task(Client(address, "2")("ServerStream", stream, JSON_STREAM)),
        ]
        for _ in calls:
            await begun.acquire()
    for answer in await asyncio.gather(*calls):
        assert answer.error["code"] == "unavailable"


async def test_builtin_services(call: Client) -> None:
    answer = await call("/grpc.health.v1.Health/Check", b"{}", JSON)
    assert (answer.status, answer.json) == (200, {"status": "SERVING"})

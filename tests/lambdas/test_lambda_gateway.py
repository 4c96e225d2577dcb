"""HTTP: API Gateway's events as AWS documents them, and results as responses, over real sockets."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from lambda_project import Project, edged

from mesh.call import Identity

ECHO = "def handler(event, context): return event"
API = {
    "openapi": "3.0.1",
    "info": {"title": "t", "version": "1"},
    "servers": [{"url": "https://x.example/{basePath}", "variables": {"basePath": {"default": "/prod"}}}],
    "paths": {
        "/": {"get": {}},
        "/hello": {"get": {}, "post": {}},
        "/users/{user-id}/{proxy+}": {"x-amazon-apigateway-any-method": {}},
        "/users/{user-id}": {"get": {}},
        "/cors": {"options": {"x-amazon-apigateway-integration": {"type": "mock"}}, "get": {}},
    },
}


def api(tmp_path: Path, code: str = ECHO, keys: str = "") -> Project:
    return Project(tmp_path, code, f'openapi = "api.json"\n{keys}', {"api.json": API})


async def test_format_1_0_in_full(tmp_path: Path) -> None:
    async with edged(api(tmp_path)) as client:
        reply = await client.ask(
            "POST", "/prod/hello?a=1&a=2&b=x%20y&empty=", b'{"n": 1}', content_type="application/json",
            user_agent="test/1", x_many="one\ntwo", host="api.example",
        )  # fmt: skip
    event = reply.json
    context = event.pop("requestContext")
    assert reply.headers["content-type"] == "application/json"
    assert event.pop("headers") == {
        "content-type": "application/json", "user-agent": "test/1", "x-many": "two", "content-length": "8",
        "host": "api.example", "x-forwarded-for": "127.0.0.1", "x-forwarded-port": "80", "x-forwarded-proto": "http",
    }  # fmt: skip
    assert event.pop("multiValueHeaders")["x-many"] == ["one", "two"]
    assert event == {
        "version": "1.0",
        "resource": "/hello",
        "path": "/hello",
        "httpMethod": "POST",
        "queryStringParameters": {"a": "2", "b": "x y", "empty": ""},
        "multiValueQueryStringParameters": {"a": ["1", "2"], "b": ["x y"], "empty": [""]},
        "pathParameters": None,
        "stageVariables": None,
        "body": '{"n": 1}',
        "isBase64Encoded": False,
    }
    identity = context.pop("identity")
    assert (identity.pop("sourceIp"), identity.pop("userAgent")) == ("127.0.0.1", "test/1")
    assert set(identity.values()) == {None}
    assert re.fullmatch(r"\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000", context.pop("requestTime"))
    assert context.pop("requestTimeEpoch") > 1_700_000_000_000
    assert context.pop("requestId") == context.pop("extendedRequestId") != ""
    assert context == {
        "accountId": "000000000000", "apiId": "hello", "domainName": "api.example", "domainPrefix": "api",
        "httpMethod": "POST", "path": "/prod/hello", "protocol": "HTTP/1.1", "resourceId": "hello",
        "resourcePath": "/hello", "stage": "prod",
    }  # fmt: skip


async def test_format_2_0_in_full(tmp_path: Path) -> None:
    async with edged(api(tmp_path, keys='payload = "2.0"')) as client:
        reply = await client.ask(
            "GET", "/prod/users/ada/a/b?p=1&p=2&q=x%20y", cookie="c1=1; c2=2", x_many="one\ntwo", host="api.example",
            user_agent="test/1",
        )  # fmt: skip
    event = reply.json
    context = event.pop("requestContext")
    assert event == {
        "version": "2.0",
        "routeKey": "ANY /users/{user-id}/{proxy+}",
        "rawPath": "/prod/users/ada/a/b",
        "rawQueryString": "p=1&p=2&q=x%20y",
        "cookies": ["c1=1", "c2=2"],
        "headers": {
            "x-many": "one,two", "host": "api.example", "user-agent": "test/1", "x-forwarded-for": "127.0.0.1",
            "x-forwarded-port": "80", "x-forwarded-proto": "http",
        },
        "queryStringParameters": {"p": "1,2", "q": "x y"},
        "pathParameters": {"user-id": "ada", "proxy": "a/b"},
        "isBase64Encoded": False,
    }  # fmt: skip
    assert context["http"] == {
        "method": "GET", "path": "/prod/users/ada/a/b", "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1",
        "userAgent": "test/1",
    }  # fmt: skip
    assert (context["stage"], context["routeKey"]) == ("prod", "ANY /users/{user-id}/{proxy+}")
    assert set(context) == {
        "accountId", "apiId", "domainName", "domainPrefix", "http", "requestId", "routeKey", "stage", "time",
        "timeEpoch",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("/prod/users/ada", {"user-id": "ada"}),
        ("/prod/users/jo%20e", {"user-id": "jo%20e"}),
        ("/prod/users/ada/x", {"user-id": "ada", "proxy": "x"}),
        ("/prod/users/ada/x/y%2Fz/", {"user-id": "ada", "proxy": "x/y%2Fz"}),
        ("/prod", None),
        ("/prod/", None),
    ],
)
async def test_paths_and_their_parameters(tmp_path: Path, path: str, parameters: Any) -> None:
    async with edged(api(tmp_path)) as client:
        assert (await client.ask("GET", path)).json["pathParameters"] == parameters


async def test_what_is_no_route(tmp_path: Path) -> None:
    async with edged(api(tmp_path)) as client:
        assert (await client.ask("GET", "/hello")).status == 404
        assert (await client.ask("GET", "/prod/users")).status == 404
        reply = await client.ask("DELETE", "/prod/hello")
        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS, POST")
        assert (await client.ask("OPTIONS", "/prod/cors")).status == 204  # the edge's, not a mock's
        assert (await client.ask("PATCH", "/prod/users/a/b")).json["httpMethod"] == "PATCH"
        assert (await client.ask("HEAD", "/prod/hello")).body == b""


@pytest.mark.parametrize(
    ("payload", "kind", "body", "text"),
    [
        ("1.0", "application/json; charset=utf-8", '{"é": 1}'.encode(), '{"é": 1}'),
        ("1.0", "text/plain", b"plain", "plain"),
        ("1.0", "application/vnd.api+json", b"{}", "{}"),
        ("1.0", "application/x-www-form-urlencoded", b"a=1", "a=1"),
        ("2.0", "application/x-www-form-urlencoded", b"a=1", None),
        ("1.0", "image/png", b"\x89PNG", None),
        ("1.0", "text/plain", b"\xff\xfe", None),
        ("2.0", "application/octet-stream", b"abc", None),
        ("1.0", "", b"abc", "abc"),
    ],
)
async def test_text_goes_as_it_is_and_the_rest_as_base64(
    tmp_path: Path, payload: str, kind: str, body: bytes, text: str | None
) -> None:
    async with edged(api(tmp_path, keys=f'payload = "{payload}"')) as client:
        headers = {"content_type": kind} if kind else {}
        event = (await client.ask("POST", "/prod/hello", body, **headers)).json
    if text is None:
        assert (event["isBase64Encoded"], base64.b64decode(event["body"])) == (True, body)
    else:
        assert (event["isBase64Encoded"], event["body"]) == (False, text)


async def test_a_packed_body_stays_packed(tmp_path: Path) -> None:
    async with edged(api(tmp_path)) as client:
        reply = await client.ask("POST", "/prod/hello", b"\x1f\x8b", content_type="text/plain", content_encoding="gzip")
    assert reply.json["isBase64Encoded"] is True


async def test_headers_are_found_in_any_case(tmp_path: Path) -> None:
    code = """
        def handler(event, context):
            headers = event["headers"]
            return [headers["X-Api-Key"], headers.get("x-api-key"), "X-API-KEY" in headers, headers.get("no", 1),
                    event["multiValueHeaders"]["X-Api-Key"]]
    """
    async with edged(api(tmp_path, code)) as client:
        assert (await client.ask("GET", "/prod/hello", X_Api_Key="k")).json == ["k", "k", True, 1, ["k"]]


async def test_the_verified_user_is_the_authorizers(tmp_path: Path) -> None:
    for payload in ("1.0", "2.0"):
        async with edged(api(tmp_path, keys=f'payload = "{payload}"')) as client:
            assert "authorizer" not in (await client.ask("GET", "/prod/hello")).json["requestContext"]
            client.identity = Identity("ada", frozenset({"user"}), {"sub": "ada", "iss": "login"})
            told = (await client.ask("GET", "/prod/hello")).json["requestContext"]["authorizer"]
            claims = told["jwt"]["claims"] if payload == "2.0" else told["claims"]
            assert claims == {"sub": "ada", "iss": "login"}


async def test_access_and_roles_are_the_edges_to_check(tmp_path: Path) -> None:
    project = api(tmp_path, keys='access = "authenticated"\nroles = ["admin"]')
    async with edged(project) as client:
        assert (await client.ask("GET", "/prod/hello")).status == 401
        client.identity = Identity("ada", frozenset({"user"}))
        assert (await client.ask("GET", "/prod/hello")).status == 403
        client.identity = Identity("root", frozenset({"admin"}))
        assert (await client.ask("GET", "/prod/hello")).status == 200


async def test_a_function_for_api_keys(tmp_path: Path) -> None:
    async with edged(api(tmp_path, keys='access = "key"\nscopes = ["hello:read"]')) as client:
        assert (await client.ask("GET", "/prod/hello")).status == 401
        for identity in (Identity("ada"), Identity("key:weak", scopes=frozenset())):
            client.identity = identity
            assert (await client.ask("GET", "/prod/hello")).status == 403
        client.identity = Identity("key:ci", scopes=frozenset({"hello:read"}))
        assert (await client.ask("GET", "/prod/hello")).json["requestContext"]["authorizer"]["principalId"] == "key:ci"


async def test_a_body_that_is_too_large(tmp_path: Path) -> None:
    async with edged(api(tmp_path)) as client:
        assert (await client.ask("POST", "/prod/hello", b"x" * 10_001)).status == 413


# -- the event itself --


def bodied(tmp_path: Path, code: str = ECHO) -> Project:
    events = [{"http": {"method": "any", "path": "greet/{who}"}}, {"httpApi": "POST /greet"}]
    return Project(tmp_path, code, 'events = "c.json"\nintegration = "event"', {"c.json": {"events": events}})


async def test_body_path_and_query_are_the_event(tmp_path: Path) -> None:
    async with edged(bodied(tmp_path, "def handler(event, context): return event['name']")) as client:
        assert (await client.ask("POST", "/greet", b'{"name": "Ada"}')).body == b'"Ada"'
        assert (await client.ask("GET", "/greet/x?name=Bob")).json == "Bob"
    async with edged(bodied(tmp_path)) as client:
        body = b'{"name": "Ada", "who": "body", "q": "body", "n": 1}'
        event = (await client.ask("PUT", "/greet/path?q=query&z=1", body)).json
        assert event == {"name": "Ada", "who": "path", "q": "body", "n": 1, "z": "1"}
        assert (await client.ask("POST", "/greet")).json == {}
        assert (await client.ask("POST", "/greet", b"[1, 2]")).json == [1, 2]
        wrong = await client.ask("POST", "/greet", b"{nope")
        assert (wrong.status, wrong.json["code"]) == (400, 3)
        for depth, status in ((300, 200), (2000, 400)):
            deep = await client.ask("POST", "/greet", b"[" * depth + b"]" * depth)
            assert deep.status == status, depth


async def test_an_integer_has_all_its_digits_on_the_whole_way(tmp_path: Path) -> None:
    async with edged(bodied(tmp_path)) as client:
        exact = b'"n":12345678901234567890123'
        for sent, got in (
            (b'{"price": 1.10, %s}' % exact, b'{"q":"7","price":1.1,%s,"who":"x"}' % exact),
            (b" {%s }\n" % exact, b'{"q":"7",%s,"who":"x"}' % exact),
            (b"{ }", b'{"q":"7","who":"x"}'),
            (b"[%s]" % exact[4:], b"[%s]" % exact[4:]),
        ):  # fmt: skip
            assert (await client.ask("POST", "/greet/x?q=7", sent)).body == got
        assert (await client.ask("POST", "/greet", b"{%s}" % exact)).body == b"{%s}" % exact


# -- results --


async def test_a_result_that_is_too_large_is_a_502_that_the_log_explains(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = api(tmp_path, "def handler(event, context): return 'x' * 10_000", 'max_message = "9KB"')
    async with edged(project) as client:
        assert (await client.ask("GET", "/prod/hello")).status == 502
    assert "Function.ResponseSizeTooLarge: Response payload size (10" in caplog.text
    assert "maximum allowed payload size (9000 bytes)" in caplog.text


@pytest.mark.parametrize("kind", ["", "async "])
async def test_a_generator_is_no_result(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with edged(api(tmp_path, f"{kind}def handler(event, context): yield {{'statusCode': 200}}")) as client:
        assert (await client.ask("GET", "/prod/hello")).status == 502
    assert f"Unable to marshal response: Object of type {kind.strip()}{kind and '_'}generator is not" in caplog.text


async def test_the_documents_payload_format_is_taken(tmp_path: Path) -> None:
    integration = {"type": "AWS_PROXY", "payloadFormatVersion": "2.0"}
    document = {"openapi": "3.0.1", "paths": {"/a": {"get": {"x-amazon-apigateway-integration": integration}}}}
    project = Project(tmp_path, ECHO, 'openapi = "a.json"', {"a.json": document})
    async with edged(project) as client:
        assert (await client.ask("GET", "/a")).json["rawPath"] == "/a"


async def answered(tmp_path: Path, result: str, payload: str = "1.0") -> Any:
    project = api(tmp_path, f"def handler(event, context): return {result}", f'payload = "{payload}"')
    async with edged(project) as client:
        return await client.ask("GET", "/prod/hello"), client


async def test_a_response_in_full(tmp_path: Path) -> None:
    result = {
        "statusCode": 201,
        "headers": {"Content-Type": "text/html", "X-One": "1", "X-Both": "gone", "X-Number": 7, "x-trace-id": "mine"},
        "multiValueHeaders": {"x-both": ["a", "b"], "Set-Cookie": ["c=1", "d=2"]},
        "body": "<p>é</p>",
    }
    reply, _ = await answered(tmp_path, repr(result))
    assert (reply.status, reply.body.decode()) == (201, "<p>é</p>")
    assert (reply.headers["content-type"], reply.headers["x-one"], reply.headers["x-number"]) == ("text/html", "1", "7")
    assert [value for name, value in reply.all if name == "x-both"] == ["a", "b"]
    assert [value for name, value in reply.all if name == "set-cookie"] == ["c=1", "d=2"]
    assert [value for name, value in reply.all if name == "x-trace-id"] == ["0af7651916cd43dd8448eb211c80319c"]


async def test_what_dynamodb_gives_is_a_response(tmp_path: Path) -> None:
    code = """
        from decimal import Decimal

        def handler(event, context):
            return {"statusCode": Decimal("201"), "headers": {"x-number": Decimal("7")}, "body": "x"}
    """
    async with edged(api(tmp_path, code)) as client:
        reply = await client.ask("GET", "/prod/hello")
    assert (reply.status, reply.headers["x-number"], reply.body) == (201, "7", b"x")


async def test_cookies_of_format_2_0(tmp_path: Path) -> None:
    reply, _ = await answered(tmp_path, "{'statusCode': 200, 'cookies': ['a=1', 'b=2'], 'body': 'x'}", "2.0")
    assert [value for name, value in reply.all if name == "set-cookie"] == ["a=1", "b=2"]
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"


async def test_bytes_come_as_base64(tmp_path: Path) -> None:
    data = bytes(range(256))
    body = base64.b64encode(data).decode()
    result = {"statusCode": 200, "headers": {"content-type": "image/png"}, "body": body, "isBase64Encoded": True}
    reply, _ = await answered(tmp_path, repr(result))
    assert (reply.headers["content-type"], reply.body) == ("image/png", data)


@pytest.mark.parametrize(
    ("result", "body"),
    [
        ("{'message': 'hi', 'z': 1, 'a': 2}", b'{"message":"hi","z":1,"a":2}'),
        ("[1, 2]", b"[1,2]"),
        ("'Hello from Lambda!'", b"Hello from Lambda!"),
        ("None", b"null"),
        ("7", b"7"),
    ],
)
async def test_anything_else_is_json_with_200(tmp_path: Path, result: str, body: bytes) -> None:
    reply, _ = await answered(tmp_path, result)
    assert (reply.status, reply.headers["content-type"], reply.body) == (200, "application/json", body)


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body(tmp_path: Path, status: int) -> None:
    reply, _ = await answered(tmp_path, f"{{'statusCode': '{status}', 'body': 'x'}}")
    assert (reply.status, reply.body) == (status, b"")


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ("{'statusCode': 'ok'}", "statusCode"),
        ("{'statusCode': 99}", "statusCode"),
        ("{'statusCode': True}", "statusCode"),
        ("{'statusCode': None}", "statusCode"),
        ("{'statusCode': 200, 'body': {'a': 1}}", "body must be a string"),
        ("{'statusCode': 200, 'headers': 'x'}", "headers must be an object"),
        ("{'statusCode': 200, 'headers': {'a b': 'x'}}", "header 'a b'"),
        ("{'statusCode': 200, 'headers': {'a': 'x\\r\\nb: y'}}", "header 'a'"),
        ("{'statusCode': 200, 'headers': {'a': 'x\\x01y'}}", "header 'a'"),
        ("{'statusCode': 200, 'headers': {'a': 'x\\x7f'}}", "header 'a'"),
        ("{'statusCode': 200, 'headers': {'a': ['x']}}", "must be a text"),
        ("{'statusCode': 200, 'multiValueHeaders': {'a': 'x'}}", "must be a list"),
        ("{'statusCode': 200, 'cookies': 'a=1'}", "cookies"),
        ("{'statusCode': 200, 'body': '%%%', 'isBase64Encoded': True}", "not base64"),
        ("{1, 2}", "the function failed"),
    ],
)
async def test_a_malformed_result_is_a_502_that_says_nothing(tmp_path: Path, result: str, why: str) -> None:
    reply, client = await answered(tmp_path, result)
    assert (reply.status, reply.json) == (502, {"code": 13, "message": "Internal server error", "details": []})
    assert why in str(client.failures[0].__cause__)


async def test_a_handler_that_raises_is_a_502_that_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with edged(api(tmp_path, "def handler(event, context): raise ValueError('the password is 1234')")) as client:
        reply = await client.ask("GET", "/prod/hello")
    assert (reply.status, reply.json) == (502, {"code": 13, "message": "Internal server error", "details": []})
    assert "1234" not in str(reply.all)
    assert "ValueError: the password is 1234" in caplog.text


async def test_a_time_out_is_a_502_as_on_aws(tmp_path: Path) -> None:
    code = "import asyncio\nasync def handler(event, context): await asyncio.Event().wait()"
    async with edged(api(tmp_path, code, 'timeout = "100ms"')) as client:
        reply = await client.ask("GET", "/prod/hello")
    assert (reply.status, reply.json["message"]) == (502, "Internal server error")


async def test_the_openapi_document_has_its_routes(tmp_path: Path) -> None:
    from openapi_spec_validator import validate

    async with edged(api(tmp_path, keys='access = "authenticated"')) as client:
        document = (await client.ask("GET", "/openapi.json")).json
    validate(document)
    assert {"/prod", "/prod/hello", "/prod/users/{user_id}"} <= set(document["paths"])
    assert document["paths"]["/prod/hello"]["post"]["requestBody"]
    assert document["paths"]["/prod/hello"]["get"]["security"] == [{"bearer": []}]
    [tag] = [one for one in document["tags"] if one["name"] == "functions.v1.Hello"]
    assert "The Lambda function handler_" in tag["description"]


async def test_order_and_numbers_survive_the_way(tmp_path: Path) -> None:
    code = "import json\ndef handler(event, context): return {'statusCode': 200, 'body': event['body']}"
    body = json.dumps({"big": 2**70, "float": 1.0, "z": 1, "a": 2}).encode()
    async with edged(api(tmp_path, code)) as client:
        assert (await client.ask("POST", "/prod/hello", body, content_type="application/json")).body == body

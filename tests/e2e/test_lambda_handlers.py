"""The handlers of tests/lambdas/handlers, as people write them for AWS: by HTTP and by a stock gRPC client."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value
from google.rpc import status_pb2
from mesh_process import ROOT, Mesh, http

HANDLERS = ROOT / "tests/lambdas/handlers"
LARGEST = [("grpc.max_receive_message_length", 8 * 10**6), ("grpc.max_send_message_length", 8 * 10**6)]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    environ = {"AWS_REGION": "eu-central-1", "TZ": "Asia/Tokyo"}
    running = Mesh(HANDLERS / "mesh.toml", tmp_path_factory.mktemp("handlers") / "state", environ)
    try:
        yield running.ready()
    finally:
        code = running.stop()
    assert code == 0, running.output()


def invoke(mesh: Mesh, name: str, event: Any) -> Any:
    with grpc.insecure_channel(mesh.addresses[name], LARGEST) as channel:
        call = channel.unary_unary(
            f"/functions.v1.{name.title()}/Invoke",
            request_serializer=Value.SerializeToString, response_deserializer=Value.FromString,
        )  # fmt: skip
        return json_format.MessageToDict(call(json_format.ParseDict(event, Value()), timeout=30))


def failure(mesh: Mesh, name: str, event: Any) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    """Return code, message and Lambda's error object of an invocation that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        invoke(mesh, name, event)
    error: Any = caught.value
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    return error.code(), error.details(), json_format.MessageToDict(status.details[1])["value"]


def request(mesh: Mesh, path: str, headers: dict[str, str]) -> HTTPResponse:
    """Make a request whose redirects nobody follows."""
    connection = HTTPConnection(mesh.edge.removeprefix("http://"), timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        reply = connection.getresponse()
        reply.read()
        return reply
    finally:
        connection.close()


def first(resource: str, **more: Any) -> dict[str, Any]:
    """Return an event of format 1.0 as a test in Lambda's console would send it."""
    return {
        "version": "1.0",
        "resource": resource,
        "httpMethod": "GET",
        "headers": {},
        "isBase64Encoded": False,
        **more,
    }


# -- payload format 1.0 --


def test_a_plain_object_is_json_with_exact_numbers(mesh: Mesh) -> None:
    reply = http(f"{mesh.edge}/prod/plain")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json == {"items": [1, 2.5, None, True], "text": "Grüße, 世界 🚀", "big": 2**63 + 1}
    assert "Grüße, 世界 🚀".encode() in reply.body
    result = invoke(mesh, "api", first("/plain"))
    assert (result["items"], result["text"]) == ([1, 2.5, None, True], "Grüße, 世界 🚀")
    assert result["big"] == 2**63  # a Value's numbers are doubles


@pytest.mark.parametrize(
    ("path", "resource", "parameters"),
    [
        ("/items/7", "/items/{id}", {"id": "7"}),
        ("/items/Z%C3%BCrich%20%2F%2B", "/items/{id}", {"id": "Z%C3%BCrich%20%2F%2B"}),
        ("/files/a/b/c.txt", "/files/{folder}/{proxy+}", {"folder": "a", "proxy": "b/c.txt"}),
    ],
)
def test_path_parameters(mesh: Mesh, path: str, resource: str, parameters: dict[str, str]) -> None:
    assert http(f"{mesh.edge}/prod{path}").json == parameters
    result = invoke(mesh, "api", first(resource, pathParameters=parameters))
    assert json.loads(result["body"]) == parameters


def test_query_parameters_that_come_twice(mesh: Mesh) -> None:
    last, every = {"a": "2", "b": ""}, {"a": ["1", "2"], "b": [""]}
    assert http(f"{mesh.edge}/prod/search?a=1&a=2&b=").json == [last, every]
    assert http(f"{mesh.edge}/prod/search").json == [None, None]
    event = first("/search", queryStringParameters=last, multiValueQueryStringParameters=every)
    assert json.loads(invoke(mesh, "api", event)["body"]) == [last, every]


@pytest.mark.parametrize(
    ("kind", "data", "packed"),
    [
        ("text/plain; charset=utf-8", "Grüße 世界 🚀".encode(), False),
        ("application/octet-stream", bytes(range(256)), True),
    ],
)
def test_a_body_of_text_and_one_of_bytes(mesh: Mesh, kind: str, data: bytes, *, packed: bool) -> None:
    reply = http(f"{mesh.edge}/prod/upload", "POST", data, headers={"content-type": kind})
    told = {"base64": packed, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert (reply.status, reply.json) == (201, told)
    if not packed:
        result = invoke(mesh, "api", first("/upload", body=data.decode()))
        assert (result["statusCode"], json.loads(result["body"])) == (201, told)


def test_an_image(mesh: Mesh) -> None:
    reply = http(f"{mesh.edge}/prod/image")
    assert (reply.headers["content-type"], reply.body) == ("image/png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    assert invoke(mesh, "api", first("/image"))["isBase64Encoded"] is True


def test_headers_with_several_values(mesh: Mesh) -> None:
    reply = request(mesh, "/prod/cookies", {})
    assert (reply.status, reply.headers["location"]) == (302, "/elsewhere")
    assert reply.headers.get_all("set-cookie") == ["a=1; HttpOnly", "b=2"]
    assert reply.headers.get_all("x-kept") == ["x", "y"]
    assert invoke(mesh, "api", first("/cookies"))["multiValueHeaders"]["X-Kept"] == ["x", "y"]


def test_globals_live_on(mesh: Mesh) -> None:
    assert [http(f"{mesh.edge}/prod/count").body for _ in range(2)] == [b"1", b"2"]
    assert invoke(mesh, "api", first("/count"))["body"] == "3"


def test_what_a_handler_prints_and_logs(mesh: Mesh) -> None:
    by_http = http(f"{mesh.edge}/prod/note?word=apple").body.decode()
    by_grpc = invoke(mesh, "api", first("/note", queryStringParameters={"word": "pear"}))["body"]
    for word, request_id in (("apple", by_http), ("pear", by_grpc)):
        until = time.monotonic() + 20
        while f"printed {word}" not in mesh.output() and time.monotonic() < until:
            time.sleep(0.05)  # another process writes it
        assert f"printed {word}" in mesh.output()
        assert re.search(rf"logged {word}.* aws_request_id={request_id}\b", mesh.output())


def test_the_context_and_the_environment(mesh: Mesh) -> None:
    by_http = http(f"{mesh.edge}/prod/environment").json
    by_grpc = json.loads(invoke(mesh, "api", first("/environment"))["body"])
    for told in (by_http, by_grpc):
        assert 9000 >= told["left"][0] >= told["left"][1] + 20 > 0
    assert by_http.pop("id") != by_grpc.pop("id")
    environ = by_http.pop("environ")
    assert environ == by_grpc["environ"]
    stream = by_http.pop("stream")
    del by_http["left"]
    assert by_http == {
        "name": "api", "version": "$LATEST", "memory": "512", "group": "/aws/lambda/api", "hour": 0,
        "arn": "arn:aws:lambda:eu-central-1:000000000000:function:api",
    }  # fmt: skip
    assert environ["AWS_EXECUTION_ENV"].startswith("AWS_Lambda_python3.")
    expected = {
        "AWS_REGION": "eu-central-1", "AWS_DEFAULT_REGION": "eu-central-1", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_LAMBDA_FUNCTION_NAME": "api", "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand", "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/api",
        "AWS_LAMBDA_LOG_STREAM_NAME": stream, "LAMBDA_TASK_ROOT": str(HANDLERS), "TZ": ":UTC",
        "_HANDLER": "api.lambda_handler",
    }  # fmt: skip
    assert {name: environ.get(name) for name in expected} == expected


def test_as_much_as_aws_takes(mesh: Mesh) -> None:
    data = b"x" * 5_990_000
    told = {"base64": False, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    plain = {"content-type": "text/plain"}
    assert http(f"{mesh.edge}/prod/upload", "POST", data, headers=plain).json == told
    assert json.loads(invoke(mesh, "api", first("/upload", body=data.decode()))["body"]) == told
    assert http(f"{mesh.edge}/prod/large/5990000").body.decode() == "é" * 2_995_000
    assert len(invoke(mesh, "api", first("/large/{bytes}", pathParameters={"bytes": "5990000"}))["body"]) == 2_995_000


def test_more_than_aws_takes(mesh: Mesh) -> None:
    body = b"x" * 6_000_001
    assert http(f"{mesh.edge}/prod/upload", "POST", body, headers={"content-type": "text/plain"}).status == 413
    packed = http(f"{mesh.edge}/prod/upload", "POST", body[:5_000_000], headers={"content-type": "image/png"})
    assert packed.status == 413, packed  # in base64 it is 6.7 MB
    reply = http(f"{mesh.edge}/prod/large/6000000")
    assert (reply.status, reply.json["message"]) == (502, "Internal server error")
    code, _, told = failure(mesh, "api", first("/large/{bytes}", pathParameters={"bytes": "6000000"}))
    assert (code, told["errorType"]) == (grpc.StatusCode.INTERNAL, "Function.ResponseSizeTooLarge")


def test_a_handler_that_raises(mesh: Mesh) -> None:
    reply = http(f"{mesh.edge}/prod/fail")
    assert (reply.status, reply.json) == (502, {"code": 13, "message": "Internal server error", "details": []})
    assert b"1234" not in reply.body + str(reply.headers).encode()
    code, text, told = failure(mesh, "api", first("/fail"))
    assert (code, text) == (grpc.StatusCode.INTERNAL, "RuntimeError: the database password is 1234")
    assert (told["errorType"], told["errorMessage"]) == ("RuntimeError", "the database password is 1234")
    assert [re.search(r'api\.py", line \d+, in (\w+)', frame)[1] for frame in told["stackTrace"]] == [  # type: ignore[index]
        "lambda_handler", "fail",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/prod/malformed/text-status", 203, b"fine"),
        ("/prod/malformed/word-status", 502, None),
        ("/prod/malformed/object-body", 502, None),
        ("/prod/malformed/no-body", 200, b""),
        ("/prod/malformed/none", 200, b"null"),
        ("/prod/malformed/header", 502, None),
        ("/prod/malformed/set", 502, None),
        ("/orders/malformed/text-status", 203, b"fine"),
        ("/orders/malformed/object-body", 502, None),
        ("/orders/malformed/none", 200, b"null"),
        ("/orders/malformed/text", 200, b"just a text"),
        ("/orders/malformed/cookies", 502, None),
    ],
)
def test_results_that_are_nearly_responses(mesh: Mesh, path: str, status: int, body: bytes | None) -> None:
    reply = http(mesh.edge + path)
    assert reply.status == status
    assert reply.body == body if body is not None else reply.json["message"] == "Internal server error"


def test_a_direct_invocation_has_the_result_as_it_is(mesh: Mesh) -> None:
    def malformed(how: str) -> Any:
        return invoke(mesh, "api", first("/malformed/{how}", pathParameters={"how": how}))

    assert malformed("object-body") == {"statusCode": 200, "body": {"an": "object"}}
    assert malformed("none") is None
    code, text, told = failure(mesh, "api", first("/malformed/{how}", pathParameters={"how": "set"}))
    assert (code, told["errorType"]) == (grpc.StatusCode.INTERNAL, "Runtime.MarshalError")
    assert "Object of type set is not JSON serializable" in text


# -- payload format 2.0, async def --


def test_an_async_handler_of_format_2_0(mesh: Mesh) -> None:
    assert http(f"{mesh.edge}/orders/7?a=1&a=2").json == {"id": "7", "query": {"a": "1,2"}}
    event = {"version": "2.0", "routeKey": "GET /orders/{id}", "pathParameters": {"id": "8"}}
    assert invoke(mesh, "orders", event) == {"id": "8", "query": None}


def test_cookies_both_ways(mesh: Mesh) -> None:
    reply = http(f"{mesh.edge}/orders", "POST", {"what": "tea"}, headers={"cookie": "one=1; two=2"})
    assert (reply.status, reply.json) == (201, {"ordered": {"what": "tea"}})
    assert reply.headers.get_all("set-cookie") == ["seen=one=1,two=2", "order=7; Path=/"]
    event = {"version": "2.0", "routeKey": "POST /orders", "cookies": ["c=3"], "body": "{}"}
    assert invoke(mesh, "orders", event)["cookies"] == ["seen=c=3", "order=7; Path=/"]


def test_a_time_out(mesh: Mesh) -> None:
    reply = http(f"{mesh.edge}/wait")
    assert (reply.status, reply.json["message"]) == (502, "Internal server error")
    code, text, told = failure(mesh, "orders", {"version": "2.0", "routeKey": "GET /wait"})
    assert (code, text) == (grpc.StatusCode.DEADLINE_EXCEEDED, "Task timed out after 0.50 seconds")
    assert told["errorMessage"] == f"RequestId: {told['requestId']} Error: Task timed out after 0.50 seconds"


# -- the body is the event: type "aws" in the document --


def test_the_body_is_the_event(mesh: Mesh) -> None:
    assert http(f"{mesh.edge}/greet", "POST", {"name": "Åsa"}).json == "Hello, Åsa!"
    assert invoke(mesh, "greet", {"name": "Åsa"}) == "Hello, Åsa!"
    assert http(f"{mesh.edge}/greet", "POST", {"nam": "Åsa"}).status == 502
    code, text, told = failure(mesh, "greet", {"nam": "Åsa"})
    assert (code, text, told["errorType"]) == (grpc.StatusCode.INTERNAL, "KeyError: 'name'", "KeyError")


# -- from zero --


def test_two_hundred_first_requests(mesh: Mesh) -> None:
    began = at_zero(http(f"{mesh.edge}/where/0").json)
    with ThreadPoolExecutor(200) as callers:
        told = list(callers.map(lambda number: http(f"{mesh.edge}/where/{number}").json, range(200)))
    check_cold(told, began)


def test_two_hundred_first_calls(mesh: Mesh) -> None:
    began = at_zero(invoke(mesh, "cold", {"number": 0}))
    with grpc.insecure_channel(mesh.addresses["cold"]) as channel:
        call = channel.unary_unary(
            "/functions.v1.Cold/Invoke",
            request_serializer=Value.SerializeToString, response_deserializer=Value.FromString,
        )  # fmt: skip
        events = [json_format.ParseDict({"number": number}, Value()) for number in range(200)]
        answers = [call.future(event, timeout=30) for event in events]
        told = [json_format.MessageToDict(answer.result()) for answer in answers]
    check_cold(told, began)


def at_zero(told: dict[str, Any]) -> float:
    """Wait until the worker that answered, the only one, has left; return the time."""
    until = time.monotonic() + 30
    while Path(f"/proc/{int(told['process'])}").exists():
        assert time.monotonic() < until, "the worker stays"
        time.sleep(0.05)  # a process of someone else's
    return time.time()


def check_cold(told: list[Any], began: float) -> None:
    assert [one["number"] for one in told] == list(range(200))
    assert min(one["loaded"] for one in told) >= began
    assert len({one["process"] for one in told}) <= 2

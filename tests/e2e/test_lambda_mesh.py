"""Lambda functions of the usual shapes in a folder outside the repository, run with ``mesh up --file``."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value
from google.rpc import status_pb2
from jwt.algorithms import OKPAlgorithm
from mesh_process import ROOT, Mesh, http

MANIFEST = """
[edge]
listen = "127.0.0.1:0"

[auth]
issuer = "here"
audience = "mesh"
jwks = "http://set-by-environment"

[services.shapes]
lambda = "shapes.handler:lambda_handler"
openapi = "shapes/api.json"
timeout = "1s"

[services.greet]
events = "greet/config.json"
integration = "event"
roles = ["admin"]
access = "authenticated"

[services.register]
lambda = "accounts:register"
events = "register.json"
environment = { TABLE = "users" }
timeout = "30s"

[services.login]
lambda = "accounts:login"
events = "login.json"
payload = "2.0"
environment = { TABLE = "users" }
timeout = "30s"
"""

SHAPES = """
import base64, json, time

def lambda_handler(event, context):
    shape = event["pathParameters"]["shape"] if "pathParameters" in event else event["shape"]
    if shape == "hello":
        return {
            "statusCode": 200,
            "headers": {"Content-Type": "application/json"},
            "body": json.dumps({"message": "Hello from Lambda!", "function": context.function_name}),
        }
    if shape == "picture":
        data = base64.b64encode(bytes(range(256))).decode()
        return {"statusCode": 200, "headers": {"Content-Type": "image/png"}, "body": data, "isBase64Encoded": True}
    if shape == "user":
        return event["requestContext"].get("authorizer")
    if shape == "boom":
        raise KeyError("the inside of the function")
    while shape == "spin":
        pass
    if shape == "slow":
        time.sleep(1.5)
    return {"statusCode": 404, "body": "no such shape"}
"""

GREET = """
async def handler(event, context):
    return {"greeting": f"Hello, {event['name']}!"}
"""

ACCOUNTS = """
import hashlib, json, os
import boto3
from botocore.exceptions import ClientError

table = boto3.resource("dynamodb").Table(os.environ["TABLE"])

def digest(password):
    return hashlib.sha256(password.encode()).hexdigest()

def register(event, context):
    user = json.loads(event["body"])
    try:
        table.put_item(
            Item={"email": user["email"], "password": digest(user["password"])},
            ConditionExpression="attribute_not_exists(email)",
        )
    except ClientError as error:
        if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
            raise
        return {"statusCode": 409, "body": json.dumps({"error": "this address is taken"})}
    return {"statusCode": 201, "body": json.dumps({"email": user["email"]})}

def login(event, context):
    given = json.loads(event["body"])
    item = table.get_item(Key={"email": given["email"]}).get("Item")
    if item is None or item["password"] != digest(given["password"]):
        return {"statusCode": 401, "body": json.dumps({"error": "wrong address or password"})}
    return {"statusCode": 200, "body": json.dumps({"welcome": item["email"]})}
"""

FILES = {
    "mesh.toml": MANIFEST,
    "shapes/handler.py": SHAPES,
    "shapes/api.json": json.dumps({
        "swagger": "2.0", "basePath": "/v1", "paths": {"/shapes/{shape}": {"x-amazon-apigateway-any-method": {}}},
    }),
    "greet/handler.py": GREET,
    "greet/config.json": json.dumps({
        "config": {"handler": "handler.handler"}, "events": [{"http": {"method": "post", "path": "greet"}}],
    }),
    "accounts.py": ACCOUNTS,
    "register.json": json.dumps({"events": [{"http": {"method": "post", "path": "/register"}}]}),
    "login.json": json.dumps({"events": [{"http": "POST /login"}]}),
}  # fmt: skip


@pytest.fixture(scope="module")
def dynamodb() -> Iterator[dict[str, str]]:
    """A DynamoDB-compatible server with the table; gives the environment that leads boto3 to it."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environ = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "eu-central-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    try:
        client = boto3.client(
            "dynamodb", endpoint_url=environ["AWS_ENDPOINT_URL"], region_name=environ["AWS_REGION"],
            aws_access_key_id="test", aws_secret_access_key="test",
        )  # fmt: skip
        client.create_table(
            TableName="users", BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": "email", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "email", "AttributeType": "S"}],
        )  # fmt: skip
        client.close()
        yield environ
    finally:
        server.stop()


@pytest.fixture(scope="module")
def issuer() -> Iterator[tuple[str, Callable[..., str]]]:
    """Where the keys of a token issuer are, and what makes its tokens."""
    key = Ed25519PrivateKey.generate()
    public = json.loads(OKPAlgorithm.to_jwk(key.public_key()))
    keys = json.dumps({"keys": [{**public, "kid": "1", "use": "sig", "alg": "EdDSA"}]}).encode()

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(keys)))
            self.end_headers()
            self.wfile.write(keys)

        def log_message(self, *_: object) -> None:
            pass

    def token(**claims: Any) -> str:
        said = {"iss": "here", "aud": "mesh", "exp": int(time.time()) + 600, **claims}
        return jwt.encode(said, key, "EdDSA", headers={"kid": "1"})

    with ThreadingHTTPServer(("127.0.0.1", 0), Keys) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/keys", token
        finally:
            server.shutdown()
            serving.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("lambdas")
    for name, text in FILES.items():
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_text(textwrap.dedent(text))
    return made


@pytest.fixture(scope="module", params=["sidecar", pytest.param("workers", marks=pytest.mark.slow)])
def placement(request: pytest.FixtureRequest) -> str:
    """Where the functions run."""
    return str(request.param)


@pytest.fixture(scope="module")
def mesh(
    folder: Path, dynamodb: dict[str, str], issuer: tuple[str, Callable[..., str]], placement: str
) -> Iterator[Mesh]:
    """The mesh, with the functions in the sidecars' own processes, and in workers that begin at zero."""
    placed = {}
    if placement == "workers":
        workers = "{ min = 0, max = 1, timeout = '40s' }"
        placed = {f"MESH_SERVICES_{name}_WORKERS": workers for name in ("SHAPES", "GREET", "REGISTER", "LOGIN")}
    started = Mesh(folder / "mesh.toml", folder / ".mesh", {**dynamodb, **placed, "MESH_AUTH_JWKS": issuer[0]})
    try:
        yield started.ready()
    finally:
        assert started.stop() == 0


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mesh", *words, "--file", str(folder / "mesh.toml")],
        capture_output=True, text=True, check=False, cwd=ROOT, env={"PATH": "", "MESH_STATE": str(folder / ".mesh")},
    )  # fmt: skip


def invoke(mesh: Mesh, name: str, event: Any, address: str = "") -> Any:
    with grpc.insecure_channel(address or mesh.addresses[name]) as channel:
        call = channel.unary_unary(
            f"/functions.v1.{name.title()}/Invoke",
            request_serializer=Value.SerializeToString, response_deserializer=Value.FromString,
        )  # fmt: skip
        return json_format.MessageToDict(call(json_format.ParseDict(event, Value()), timeout=30))


def test_hello_over_http_and_grpc(mesh: Mesh) -> None:
    reply = http(f"{mesh.edge}/v1/shapes/hello")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json == {"message": "Hello from Lambda!", "function": "shapes"}
    result = invoke(mesh, "shapes", {"shape": "hello"})
    assert (result["statusCode"], json.loads(result["body"])) == (200, reply.json)


def test_bytes(mesh: Mesh) -> None:
    reply = http(f"{mesh.edge}/v1/shapes/picture")
    assert (reply.headers["content-type"], reply.body) == ("image/png", bytes(range(256)))


def test_an_exception(mesh: Mesh) -> None:
    reply = http(f"{mesh.edge}/v1/shapes/boom")
    assert (reply.status, reply.json["message"]) == (502, "Internal server error")
    assert b"inside" not in reply.body
    with pytest.raises(grpc.RpcError) as caught:
        invoke(mesh, "shapes", {"shape": "boom"})
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INTERNAL
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    told = json_format.MessageToDict(status.details[1])["value"]
    assert (told["errorType"], told["errorMessage"]) == ("KeyError", "'the inside of the function'")
    assert "shapes/handler.py" in told["stackTrace"][0]
    assert "KeyError: 'the inside of the function'" in mesh.output()


def test_grpc_through_the_edge_learns_nothing_of_the_inside(mesh: Mesh) -> None:
    edge = mesh.edge.removeprefix("http://")
    assert invoke(mesh, "shapes", {"shape": "hello"}, edge)["statusCode"] == 200
    with pytest.raises(grpc.RpcError) as caught:
        invoke(mesh, "shapes", {"shape": "boom"}, edge)
    error: Any = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "the function failed")
    assert "inside" not in str(error.trailing_metadata())
    forged = {"shape": "user", "requestContext": {"authorizer": {"claims": {"sub": "root"}}}}
    assert invoke(mesh, "shapes", forged, edge) is None


def test_a_time_out(mesh: Mesh) -> None:
    assert http(f"{mesh.edge}/v1/shapes/slow").status == 502
    with pytest.raises(grpc.RpcError) as caught:
        invoke(mesh, "shapes", {"shape": "slow"})
    error: Any = caught.value
    assert (error.code(), error.details()) == (
        grpc.StatusCode.DEADLINE_EXCEEDED, "Task timed out after 1.00 seconds",
    )  # fmt: skip


def test_a_loop_without_an_end_costs_its_own_call(mesh: Mesh, placement: str) -> None:
    if placement != "workers":
        pytest.skip("in the sidecar's own process nothing can end it")
    assert http(f"{mesh.edge}/v1/shapes/spin").status == 502
    assert http(f"{mesh.edge}/v1/shapes/hello").status == 200
    until = time.monotonic() + 20
    while "replaced" not in mesh.output() and "killed" not in mesh.output() and time.monotonic() < until:
        time.sleep(0.1)  # its worker is ended after a grace
    assert http(f"{mesh.edge}/v1/shapes/hello").status == 200


def test_register_and_login_on_dynamodb(mesh: Mesh, placement: str) -> None:
    ada = {"email": f"ada@{placement}.example", "password": "correct horse"}
    assert http(f"{mesh.edge}/login", "POST", ada).status == 401
    assert http(f"{mesh.edge}/register", "POST", ada).status == 201
    assert http(f"{mesh.edge}/register", "POST", ada).status == 409
    reply = http(f"{mesh.edge}/login", "POST", ada)
    assert (reply.status, reply.json) == (200, {"welcome": ada["email"]})
    assert http(f"{mesh.edge}/login", "POST", {**ada, "password": "wrong"}).status == 401
    assert invoke(mesh, "login", {"body": json.dumps(ada)})["statusCode"] == 200


def test_access_is_kept_at_both_doors(mesh: Mesh) -> None:
    assert http(f"{mesh.edge}/greet", "POST", {"name": "Ada"}).status == 401
    with pytest.raises(grpc.RpcError) as caught:
        invoke(mesh, "greet", {"name": "Ada"})
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_user_of_a_token_is_the_authorizers(mesh: Mesh, issuer: tuple[str, Callable[..., str]]) -> None:
    token = issuer[1](sub="ada", roles=["user", "admin"])
    told = http(f"{mesh.edge}/v1/shapes/user", token=token).json
    assert (told["claims"]["sub"], told["claims"]["roles"], told["principalId"]) == ("ada", "[user admin]", "ada")
    assert http(f"{mesh.edge}/v1/shapes/user").json is None
    assert http(f"{mesh.edge}/greet", "POST", {"name": "Ada"}, token).json == {"greeting": "Hello, Ada!"}
    assert http(f"{mesh.edge}/greet", "POST", {"name": "Ada"}, issuer[1](sub="bob", roles=["user"])).status == 403


def test_the_other_commands_know_it(mesh: Mesh, folder: Path) -> None:
    assert command(folder, "check").stdout.startswith("ok: 4 services, 4 gRPC services, 4 methods, 4 HTTP routes")
    assert "functions.v1.Shapes" in command(folder, "graph").stdout
    called = command(folder, "call", "Shapes/Invoke", "-d", '{"shape": "hello"}')
    assert json.loads(called.stdout)["statusCode"] == 200, called.stderr
    failed = command(folder, "call", "Shapes/Invoke", "-d", '{"shape": "boom"}')
    assert failed.returncode == 64 + 13
    assert '"errorType": "KeyError"' in failed.stderr
    document = json.loads(command(folder, "export", "openapi").stdout)
    assert "/v1/shapes/{shape}" in document["paths"]
    assert http(f"{mesh.edge}/openapi.json").json["paths"] == document["paths"]


def test_one_trace_has_the_request_and_the_invocation(mesh: Mesh, folder: Path) -> None:
    reply = http(f"{mesh.edge}/v1/shapes/boom")
    told, until = "", time.monotonic() + 30
    while "KeyError" not in told and time.monotonic() < until:  # spans come a little later, and nobody announces them
        told = command(folder, "trace", reply.headers["x-trace-id"]).stdout
    assert "functions.v1.Shapes/Invoke" in told
    assert "KeyError" in told

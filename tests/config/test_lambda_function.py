"""mesh.toml → functions, and functions → the contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mesh.config.api_document import BODY, HTTP_2, REST, HttpRoute
from mesh.config.manifest import Manifest, load
from mesh.contract import loader, protoc
from mesh.contract.model import Access, Contract
from mesh.faults import Faults
from mesh.lambdas.service_descriptor import extend

API = {"swagger": "2.0", "paths": {"/a": {"get": {}}, "/": {"head": {}, "x-amazon-apigateway-any-method": {}}}}


def read(folder: Path, toml: str, documents: dict[str, Any] | None = None, **environ: str) -> Manifest:
    for name, document in (documents or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(document if isinstance(document, str) else json.dumps(document))
    (folder / "mesh.toml").write_text(toml)
    return load(folder / "mesh.toml", environ)


def compiled(manifest: Manifest, folder: Path) -> Contract:
    return loader.read(extend(protoc.load(manifest.protos, folder / "gen"), manifest.lambdas.values()))


def test_what_mesh_toml_says_of_a_function(tmp_path: Path) -> None:
    manifest = read(
        tmp_path,
        """
        [services.sign-up]
        lambda = "a.b:api.handler"
        openapi = "api.json"
        payload = "2.0"
        access = "authenticated"
        roles = ["admin"]
        timeout = "1m"
        memory = "1GiB"
        environment = { TABLE = "users" }
        concurrency = 3
        """,
        {"api.json": API},
        AWS_DEFAULT_REGION="eu-west-1",
    )
    function, entry = manifest.lambdas["sign-up"], manifest.services["sign-up"]
    assert (entry.module, entry.serves, entry.concurrency) == ("a.b", ("functions.v1.SignUp",), 3)
    assert (function.module, function.handler, function.service) == ("a.b", "api.handler", "functions.v1.SignUp")
    assert (function.timeout, function.memory, function.region) == (60, 1024, "eu-west-1")
    assert [str(route.verb) + route.resource for route in function.routes] == ["GET/a", "HEAD/", "*/"]
    assert {route.event for route in function.routes} == {HTTP_2}
    assert function.environment == (("TABLE", "users"),)
    assert manifest.protos == ()  # functions need none
    assert manifest.host_of("functions.v1.SignUp") == "sign-up"


def test_what_aws_has_when_nothing_is_said(tmp_path: Path) -> None:
    function = read(tmp_path, '[services.a]\nlambda = "m:h"').lambdas["a"]
    assert (function.access, function.routes) == ("public", ())
    assert (function.timeout, function.memory, function.region) == (3, 128, "us-east-1")


def test_the_environment_overrides_it(tmp_path: Path) -> None:
    environ = {"MESH_SERVICES_A_LAMBDA": "other:handler", "MESH_SERVICES_A_TIMEOUT": "9s"}
    function = read(tmp_path, '[services.a]\nlambda = "m:h"', **environ).lambdas["a"]
    assert (function.module, function.timeout) == ("other", 9)


@pytest.mark.parametrize(
    ("said", "module", "handler"),
    [
        ("handler.main", "services.hello.handler", "main"),
        ("src/handler.main", "services.hello.src.handler", "main"),
        ("./src/handler.main", "services.hello.src.handler", "main"),
        ("src.handler.main", "services.hello.src.handler", "main"),
        ("get-user/app.handler", "services.hello.get-user.app", "handler"),
        ("lib.hello:main", "lib.hello", "main"),
    ],
)
def test_the_handler_of_a_function_configuration(tmp_path: Path, said: str, module: str, handler: str) -> None:
    document = {"config": {"handler": said}, "events": [{"http": {"method": "get", "path": "/a"}}]}
    toml = '[services.a]\nevents = "services/hello/config.json"'
    function = read(tmp_path, toml, {"services/hello/config.json": document}).lambdas["a"]
    assert (function.module, function.handler) == (module, handler)


@pytest.mark.parametrize(
    ("said", "module"),
    [
        ("src/app.main", "src.app"),
        ("src.app.main", "src.app"),
        ("get-user/app.main", "get-user.app"),
        ("app.main", "app"),
    ],
)
def test_a_handler_as_aws_writes_it(tmp_path: Path, said: str, module: str) -> None:
    function = read(tmp_path, f'[services.a]\nlambda = "{said}"').lambdas["a"]
    assert (function.module, function.handler) == (module, "main")


def test_a_function_of_sam(tmp_path: Path) -> None:
    properties = {"Handler": "app.main", "CodeUri": "./src", "Events": {"Api": {"Type": "HttpApi"}}}
    document = {"Type": "AWS::Serverless::Function", "Properties": properties}
    toml = '[services.a]\nevents = "services/hello/function.json"'
    function = read(tmp_path, toml, {"services/hello/function.json": document}).lambdas["a"]
    assert (function.module, function.handler) == ("services.hello.src.app", "main")
    assert function.routes == (HttpRoute("*", "$default", event=HTTP_2),)


def test_mesh_toml_says_the_integration_before_the_document_does(tmp_path: Path) -> None:
    mapped = {"type": "aws", "requestTemplates": {"application/json": "$context.stage"}}
    document = {"openapi": "3.0.1", "paths": {"/a": {"get": {"x-amazon-apigateway-integration": mapped}}}}
    toml = '[services.a]\nlambda = "m:h"\nopenapi = "a.json"'
    with pytest.raises(Faults) as caught:
        read(tmp_path, toml, {"a.json": document})
    assert f"[services.a] openapi: {tmp_path}/a.json: paths /a get: the mesh does not run mapping templates" in str(
        caught.value
    )
    for said, event in (("proxy", REST), ("event", BODY)):
        assert read(tmp_path, f'{toml}\nintegration = "{said}"').lambdas["a"].routes[0].event == event
    del mapped["requestTemplates"]
    assert read(tmp_path, toml, {"a.json": document}).lambdas["a"].routes[0].event == BODY


@pytest.mark.parametrize(
    ("entries", "keys", "faults"),
    [
        ([{"schedule": "rate(1 hour)"}], "", ["events[1].schedule: schedules belong in mesh.toml"]),
        ([{"schedule": "rate(1 hour)"}], 'schedule = "@hourly"', []),
        ([{"sqs": "q"}, {"s3": "b"}], "", ["events[1].sqs: ", "events[2].s3: "]),
        ([{"sqs": "q"}], 'subscribes = ["shop.v1.Sold"]', []),
        ([{"httpApi": {"path": "*", "authorizer": "aws_iam"}}], "", ["events[1].httpApi.authorizer: access belongs"]),
        ([{"httpApi": {"path": "*", "authorizer": "aws_iam"}}], 'access = "public"', []),
        ([{"http": {"path": "b", "cors": True}}], "", ["events[1].http.cors: CORS belongs"]),
        ([{"http": {"path": "b", "cors": True}}], '[edge]\ncors = ["https://a.example"]', []),
        ([{"websocket": "$connect"}], "", ["events[1].websocket: the mesh does not"]),
    ],
)
def test_what_a_list_of_events_asks_for_is_said_in_mesh_toml_or_refused(
    tmp_path: Path, entries: list[Any], keys: str, faults: list[str]
) -> None:
    documents = {"e.json": {"events": [{"http": "GET /a"}, *entries]}}
    toml = f'[services.a]\nlambda = "m:h"\nevents = "e.json"\n{keys}'
    if not faults:
        assert read(tmp_path, toml, documents).lambdas["a"].routes[0] == HttpRoute("GET", "/a")
        return
    with pytest.raises(Faults) as caught:
        read(tmp_path, toml, documents)
    place = f"mesh.toml [services.a] events: {tmp_path}/e.json: "
    said = [str(fault) for fault in caught.value.faults]
    assert all(one.startswith(place + text) for one, text in zip(said, faults, strict=True)), said


EVENTS = {"events": [{"http": "GET /a"}]}
TWO = {
    "openapi": "3.0.1",
    "paths": {"/a": {"get": {"x-amazon-apigateway-integration": {"payloadFormatVersion": "3.0"}}}},
}


@pytest.mark.parametrize(
    ("keys", "documents", "text"),
    [
        ('lambda = "handler"', {}, "[services.a] lambda: expected module:handler, such as services.hello"),
        ('lambda = "../app.main"', {}, "or folder/file.handler as on AWS, got '../app.main'"),
        ('openapi = "a.json"', {}, "[services.a] openapi: this key is for Lambda functions: set lambda"),
        ('module = "m"\nserves = ["x"]\ntimeout = "9s"', {}, "[services.a] timeout: this key is for Lambda functions"),
        ('events = "a.json"', {"a.json": EVENTS}, "[services.a] lambda: expected module:handler"),
        ('lambda = "m:h"\nopenapi = "a.json"', {}, "a.json: no such file or directory"),
        ('lambda = "m:h"\nopenapi = "a.yaml"', {"a.yaml": "openapi: 3.0.1"}, "a.yaml: paths: expected an object"),
        ('lambda = "m:h"\nopenapi = "a.yaml"', {"a.yaml": "a: 1\nb: ["}, "a.yaml: not YAML: line 3: did not find"),
        ('lambda = "m:h"\nopenapi = "a.json"', {"a.json": "[" * 10_000}, "a.json: it is nested too deeply"),
        ('lambda = "m:h"\nopenapi = "a.json"', {"a.json": {}}, "a.json: expected a Swagger 2.0 or OpenAPI 3"),
        ('lambda = "m:h"\nopenapi = "a.json"\nevents = "b.json"', {"a.json": API}, "openapi has the routes already"),
        ('lambda = "m:h"\ntimeout = "0s"', {}, "timeout: must be more than 0 and at most 900s, not 0s"),
        ('lambda = "m:h"\ntimeout = "1h"', {}, "at most 900s, not 3600s"),
        ('lambda = "m:h"\nschedule = "rate(5 minutes)"', {}, "[services.a] schedule: 'rate(5 minutes)' is AWS's"),
        ('lambda = "m:h"\nschedule = "@every 1.5s"', {}, "an interval is whole seconds; write 1s or 2s"),
        ('lambda = "m:h"\nroles = ["x"]', {}, 'roles narrow access = "authenticated"'),
        ('lambda = "m:h"\nscopes = ["x"]', {}, 'scopes are those of API keys: set access = "key"'),
        ('lambda = "m:h"\naccess = "internal"\nevents = "b.json"', {"b.json": EVENTS}, "never routes to an internal"),
        ('lambda = "m:h"\nenvironment = { "a b" = "x" }', {}, "'a b' is no name of an environment variable"),
        ('lambda = "m:h"\nintegration = "http"', {}, "invalid enum value 'http'; expected 'proxy' or 'event'"),
        ('lambda = "m:h"\npayload = "3.0"', {}, "payload: invalid enum value '3.0'; expected '1.0' or '2.0'"),
        ('lambda = "m:h"\nopenapi = "a.json"', {"a.json": TWO}, "a.json: paths /a get: payloadFormatVersion is 1.0"),
        ('lambda = "m:h"\nlamda = "x"', {}, "unknown key 'lamda'; did you mean"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(tmp_path: Path, keys: str, documents: dict[str, Any], text: str) -> None:
    with pytest.raises(Faults) as caught:
        read(tmp_path, f"[services.a]\n{keys}", documents)
    assert text in str(caught.value)


PROTO = """syntax = "proto3";
package shop.v1;
import "meshapi/v1/annotations.proto";
import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
message Sold { option (meshapi.v1.event) = { key: "id" }; string id = 1; }
service Shop {
  option (meshapi.v1.service) = { calls: "functions.v1.A" };
  rpc Look(Sold) returns (google.protobuf.Empty) { option (google.api.http) = { get: "/shop/{id}" }; }
}
"""

YARD = """syntax = "proto3";
package yard.v1;
import "meshapi/v1/annotations.proto";
message Sold { option (meshapi.v1.event) = {}; }
message Schedule { option (meshapi.v1.event) = {}; }
"""


def test_a_function_is_a_service_of_the_contract(tmp_path: Path) -> None:
    toml = '[services.a]\nlambda = "m:h"\nopenapi = "a.json"\nsubscribes = ["shop.v1.Sold"]\nschedule = "@hourly"'
    manifest = read(tmp_path, toml, {"a.json": API, "protos/shop.proto": PROTO.replace('calls: "functions.v1.A"', "")})
    contract = compiled(manifest, tmp_path)
    service = contract.services["functions.v1.A"]
    assert service.comment == "The Lambda function m:h."
    invoke = service.methods["Invoke"]
    assert (invoke.access, invoke.timeout, invoke.idempotent) == (Access.PUBLIC, 4.0, False)
    assert [str(route) for route in invoke.routes] == ["GET /a", "HEAD /", "* /"]
    assert invoke.gateway is not None
    assert (invoke.gateway.events, invoke.gateway.resources) == ((REST,) * 3, ("/a", "/", "/"))
    assert {str(one) for method in service.methods.values() for one in method.triggers} == {
        "event shop.v1.Sold", "schedule @hourly",
    }  # fmt: skip
    assert service.methods["OnSold"].access is Access.INTERNAL
    assert "functions/v1/a.proto" in [file.name for file in contract.files.file]


def test_a_declared_service_may_call_it(tmp_path: Path) -> None:
    manifest = read(tmp_path, '[services.a]\nlambda = "m:h"', {"protos/shop.proto": PROTO})
    assert compiled(manifest, tmp_path).services["shop.v1.Shop"].calls == ("functions.v1.A",)


@pytest.mark.parametrize(
    ("toml", "text"),
    [
        ('[services.a]\nlambda = "m:h"\nsubscribes = ["shop.v1.Nothing"]', "no message 'shop.v1.Nothing'"),
        ('[services.a]\nlambda = "m:h"\nsubscribes = ["meshapi.v1.Tick"]', "on.event needs an event"),
        (
            '[services.a]\nlambda = "m:h"\nsubscribes = ["shop.v1.Sold", "yard.v1.Sold"]',
            "[services.a] subscribes: 'shop.v1.Sold' and 'yard.v1.Sold' would both be OnSold; give one of them a ",
        ),
        (
            '[services.a]\nlambda = "m:h"\nschedule = "@hourly"\nsubscribes = ["yard.v1.Schedule"]',
            "the schedule and 'yard.v1.Schedule' would both be OnSchedule",
        ),
        ('[services.a]\nlambda = "m:h"\nsubscribes = ["shop.v1.Sold", "shop.v1.Sold"]', "'shop.v1.Sold' stands twice"),
        ('[services.a-b]\nlambda = "m:h"\n[services.a--b]\nlambda = "m:h"', "has functions.v1.AB already"),
        ('[services.a]\nlambda = "m:h"\nevents = "e.json"', "is already the route of shop.v1.Shop.Look"),
        ('[services.a]\nlambda = "m:h"\nevents = "f.json"', "is already the route of functions.v1.A.Invoke"),
    ],
)
def test_what_the_contract_refuses(tmp_path: Path, toml: str, text: str) -> None:
    documents = {
        "protos/shop.proto": PROTO.replace('calls: "functions.v1.A"', ""),
        "protos/yard.proto": YARD,
        "e.json": {"events": [{"http": "GET /shop/{name}"}]},
        "f.json": {"events": [{"http": "GET /b/{name}"}, {"http": "GET /b/{other}"}]},
    }
    manifest = read(tmp_path, toml, documents)
    with pytest.raises(Faults) as caught:
        compiled(manifest, tmp_path)
    assert text in str(caught.value)


def test_yaml_is_what_its_json_is(tmp_path: Path) -> None:
    text = """
        openapi: 3.0.3
        paths:
          /users/{id}:
            put:
              operationId: put
              x-amazon-apigateway-integration: {type: aws_proxy, uri: !Sub 'arn:${Users}', payloadFormatVersion: 2.0}
              parameters: [{name: id, in: path, required: true, schema: {enum: [no, 12:30]}}]
              responses:
                200: {description: 2026-11-30}
    """
    value = {
        "openapi": "3.0.3",
        "paths": {
            "/users/{id}": {
                "put": {
                    "operationId": "put",
                    "x-amazon-apigateway-integration": {
                        "type": "aws_proxy", "uri": {"Fn::Sub": "arn:${Users}"}, "payloadFormatVersion": "2.0",
                    },
                    "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"enum": ["no", "12:30"]}}],
                    "responses": {"200": {"description": "2026-11-30"}},
                }
            }
        },
    }  # fmt: skip
    toml = '[services.f]\nlambda = "m:h"\nopenapi = "{}"'
    from_yaml = read(tmp_path, toml.format("a.yml"), {"a.yml": text}).lambdas["f"]
    from_json = read(tmp_path, toml.format("a.json"), {"a.json": value}).lambdas["f"]
    assert (from_yaml.routes, from_yaml.operations) == (from_json.routes, from_json.operations)
    assert from_yaml.routes == (HttpRoute("PUT", "/users/{id}", event=HTTP_2),)

"""API documents → routes: Swagger 2.0, OpenAPI 3."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.config.api_document import (  # fmt: skip
    ANY,
    BODY,
    DEFAULT,
    HTTP_1,
    HTTP_2,
    NO_OVERRIDES,
    REST,
    DocumentError,
    HttpRoute,
    Overrides,
    of_openapi,
)
from mesh.contract import path_template

ONE = {"/a": {"get": {}}}


@pytest.mark.parametrize(
    ("document", "base"),
    [
        ({"swagger": "2.0"}, ""),
        ({"swagger": "2.0", "basePath": "/"}, ""),
        ({"swagger": "2.0", "basePath": "/v1/"}, "/v1"),
        ({"swagger": "2.0", "basePath": "v1"}, "/v1"),
        ({"openapi": "3.0.1"}, ""),
        ({"openapi": "3.0.1", "servers": []}, ""),
        ({"openapi": "3.0.1", "servers": [{"url": "https://x/$default"}]}, ""),
        ({"openapi": "3.1.0", "servers": [{"url": "https://api.example/v2/x"}, {"url": "/no"}]}, "/v2/x"),
        ({"openapi": "3.1.0", "servers": [{"url": "/v2"}]}, "/v2"),
        (
            {"openapi": "3.0.1", "servers": [{"url": "https://x/{b}", "variables": {"b": {"default": "/p"}}}]},
            "/p",
        ),
        ({"openapi": "3.0.1", "servers": [{"url": "https://{h}/v1", "variables": {"h": {"default": "x"}}}]}, "/v1"),
    ],
)  # fmt: skip
def test_where_a_document_begins(document: Any, base: str) -> None:
    assert of_openapi({**document, "paths": ONE}) == (HttpRoute("GET", "/a", base),)


def test_operations_of_a_path() -> None:
    item = {
        "get": {}, "post": {"x-amazon-apigateway-integration": {"type": "aws_proxy"}}, "parameters": [], "x-other": {},
        "options": {"x-amazon-apigateway-integration": {"type": "MOCK"}}, "x-amazon-apigateway-any-method": {},
        "put": {"x-amazon-apigateway-integration": {"type": "http_proxy"}}, "summary": "text",
    }  # fmt: skip
    assert [route.verb for route in of_openapi({"swagger": "2.0", "paths": {"/a/": item}})] == ["GET", "POST", ANY]


@pytest.mark.parametrize(
    ("resource", "names", "text"),
    [
        ("/", (), "/"),
        ("/a/b", (), "/a/b"),
        ("/users/{user-id}", ("user-id",), "/users/{user_id}"),
        ("/{a.b}/{a-b}", ("a.b", "a-b"), "/{a_b}/{a_b_}"),
        ("/{1}", ("1",), "/{_1}"),
        ("/files/{proxy+}", ("proxy",), "/files/{proxy=*/**}"),
        ("/a:b/ü", (), "/a%3Ab/%C3%BC"),
    ],
)
def test_a_resource_as_a_path_template(resource: str, names: tuple[str, ...], text: str) -> None:
    route = HttpRoute("GET", resource)
    assert (route.names, route.template) == (names, text)
    assert len(path_template.parse_slashed(text).variables) == len(names)
    assert HttpRoute("GET", resource, "/prod").template == ("/prod" if resource == "/" else f"/prod{text}")
    assert HttpRoute(ANY, DEFAULT, "/prod").template == "/prod/**"


segments = st.one_of(
    st.text(st.characters(categories=["L", "N"], include_characters="-._~:@ "), min_size=1, max_size=6),
    st.from_regex(r"\{[A-Za-z0-9._:-]{1,6}\}", fullmatch=True),
)


@given(st.lists(segments, min_size=1, max_size=5, unique=True))
def test_every_resource_has_a_template_with_its_parameters(parts: list[str]) -> None:
    [route] = of_openapi({"swagger": "2.0", "paths": {"/" + "/".join(parts): {"get": {}}}})
    parsed = path_template.parse_slashed(route.template)
    assert len(parsed.segments) == len(parts)
    assert len({variable.field for variable in parsed.variables}) == len(route.names)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], 'expected a Swagger 2.0 or OpenAPI 3 document: an object with "swagger" or "openapi"'),
        ({"paths": ONE}, "expected a Swagger 2.0"),
        ({"swagger": "2.0"}, "paths: expected an object"),
        ({"swagger": "2.0", "paths": {}}, "paths: no operation reaches the function"),
        ({"swagger": "2.0", "paths": {"/a": []}}, "paths /a: expected an object of operations"),
        ({"swagger": "2.0", "paths": {"a": {"get": {}}}}, "paths a: a path begins with '/'"),
        ({"swagger": "2.0", "paths": {"/a{b}": {"get": {}}}}, "'a{b}' is not"),
        ({"swagger": "2.0", "paths": {"/a//b": {"get": {}}}}, "'' is not"),
        (
            {"swagger": "2.0", "paths": {"/a/*": {"get": {}}}},
            "paths /a/*: '*' is no wildcard in a path; write {proxy+}",
        ),
        ({"swagger": "2.0", "paths": {"/{a+}/b": {"get": {}}}}, "{a+} matches the rest of the path"),
        ({"swagger": "2.0", "paths": {"/{a}/{a}": {"get": {}}}}, "{a} occurs twice"),
        ({"swagger": "2.0", "basePath": 7, "paths": ONE}, "basePath: expected a path such as /v1, got 7"),
        ({"openapi": "3", "servers": [{"url": "https://x/{stage}"}], "paths": ONE}, "servers[0].url: expected a path"),
        ({"swagger": "2.0", "paths": {"/a": {"get": None}}}, "paths /a get: expected an operation"),
        (
            {"swagger": "2.0", "paths": {"/a/{id}": {"get": {"parameters": [{"name": "user", "in": "path"}]}}}},
            "paths /a/{id} get: parameter 'user' is declared in the path, which has: id",
        ),
        (
            {
                "openapi": "3.0.1",
                "paths": {"/a": {"get": {}, "parameters": [{"$ref": "#/components/parameters/u~1v"}]}},
                "components": {"parameters": {"u/v": {"name": "id", "in": "path"}}},
            },
            "paths /a: parameter 'id' is declared in the path, which has: none",
        ),
    ],
)
def test_what_is_no_api_document(document: Any, text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        of_openapi(document)
    assert text in str(caught.value)


# As API Gateway exports a REST API ("oas30-apigateway" and "swagger-apigateway" differ in the frame alone).
EXPORTED = {
    "swagger": "2.0",
    "info": {"version": "2026-01-01T00:00:00Z", "title": "pets"},
    "host": "abc.execute-api.eu-central-1.amazonaws.com",
    "basePath": "/dev",
    "schemes": ["https"],
    "securityDefinitions": {
        "key": {"type": "apiKey", "name": "x-api-key", "in": "header"},
        "pool": {"type": "apiKey", "name": "Authorization", "in": "header", "x-amazon-apigateway-authtype": "custom"},
    },
    "parameters": {"petId": {"name": "petId", "in": "path", "required": True, "type": "string"}},
    "paths": {
        "/pets/{petId}": {
            "parameters": [{"$ref": "#/parameters/petId"}, {"name": "verbose", "in": "query", "type": "string"}],
            "get": {
                "security": [{"key": []}],
                "responses": {"200": {"description": "a pet", "headers": {"X-A": {"type": "string"}}}},
                "x-amazon-apigateway-request-validator": "all",
                "x-amazon-apigateway-integration": {
                    "type": "aws_proxy", "httpMethod": "POST", "passthroughBehavior": "when_no_match",
                    "uri": "arn:aws:apigateway:eu-central-1:lambda:path/2015-03-31/functions/"
                    "arn:aws:lambda:eu-central-1:1:function:${stageVariables.pets}/invocations",
                },
            },
            "options": {"x-amazon-apigateway-integration": {"type": "mock", "requestTemplates": {}}},
        },
        "/files/{proxy+}": {
            "x-amazon-apigateway-any-method": {
                "parameters": [{"name": "proxy", "in": "path", "required": True, "type": "string"}],
                "x-amazon-apigateway-integration": {"type": "aws_proxy", "cacheNamespace": "abc"},
            },
        },
    },
    "x-amazon-apigateway-gateway-responses": {"DEFAULT_4XX": {}},
    "x-amazon-apigateway-binary-media-types": ["image/png"],
}  # fmt: skip


def test_what_api_gateway_exports() -> None:
    assert of_openapi(EXPORTED) == (
        HttpRoute("GET", "/pets/{petId}", "/dev"), HttpRoute(ANY, "/files/{proxy+}", "/dev"),
    )  # fmt: skip


def integrated(kind: str, **more: Any) -> Any:
    return {"post": {"x-amazon-apigateway-integration": {"type": kind, **more}}}


def events_of(paths: Any, overrides: Overrides = NO_OVERRIDES) -> list[str]:
    return [route.event for route in of_openapi({"openapi": "3.0.1", "paths": paths}, overrides)]


QUEUE = "arn:aws:apigateway:eu-west-1:sqs:path/1/queue"
FUNCTION = (
    "arn:aws:apigateway:eu-west-1:lambda:path/2015-03-31/functions/arn:aws:lambda:eu-west-1:1:function:f/invocations"
)


@pytest.mark.parametrize(
    ("paths", "events"),
    [
        ({"/a": {"get": {}}}, [REST]),
        ({"/a": integrated("AWS_PROXY"), "/b": integrated("http"), "/c": {"get": {}}}, [REST, REST]),
        ({"/a": integrated("aws"), "/b": integrated("aws_proxy")}, [BODY, REST]),
        ({"/a": integrated("aws", requestTemplates={}, responses={"default": {}})}, [BODY]),
        ({"/a": integrated("aws", requestTemplates={"application/json": "$input.json( '$' )\n"})}, [BODY]),
        ({"/a": integrated("aws", responses={"default": {"responseTemplates": {"application/json": ""}}})}, [BODY]),
        ({"/a": integrated("aws", uri=FUNCTION), "/b": integrated("aws", uri=QUEUE)}, [BODY]),
        ({"/a": {"get": {}}, "/b": integrated("AWS_PROXY", integrationSubtype="SQS-SendMessage")}, [REST]),
        ({"/a": integrated("aws_proxy", payloadFormatVersion="2.0"), "/b": {"get": {}}}, [HTTP_2, HTTP_2]),
        ({"/a": integrated("aws_proxy", payloadFormatVersion=1.0)}, [HTTP_1]),
        ({"/a": integrated("aws_proxy", payloadFormatVersion=2)}, [HTTP_2]),
        (
            {
                "/a": integrated("aws_proxy", payloadFormatVersion="2.0"),
                "/b": integrated("aws_proxy", payloadFormatVersion="1.0"),
                "/c": integrated("http_proxy", payloadFormatVersion="1.0"),
            },
            [HTTP_2, HTTP_1],
        ),
        ({"/$default": {"x-amazon-apigateway-any-method": {"isDefaultRoute": True}}}, [HTTP_2]),
        ({"x-note": 1, "/a": {"get": {}}}, [REST]),
    ],
)  # fmt: skip
def test_the_event_of_each_operation(paths: Any, events: list[str]) -> None:
    assert events_of(paths) == events


def test_an_integration_that_stands_among_the_components() -> None:
    integration = {"type": "AWS_PROXY", "payloadFormatVersion": "2.0", "uri": FUNCTION}
    reference = {"$ref": "#/components/x-amazon-apigateway-integrations/one"}
    document = {
        "openapi": "3.0.1",
        "paths": {"/a": {"get": {"x-amazon-apigateway-integration": reference}}},
        "components": {"x-amazon-apigateway-integrations": {"one": integration}},
    }
    assert of_openapi(document) == (HttpRoute("GET", "/a", event=HTTP_2),)


def test_the_default_route() -> None:
    document = {"openapi": "3.0.1", "servers": [{"url": "/prod"}], "paths": {"/$default": {"get": {}}}}
    assert of_openapi(document) == (HttpRoute("GET", DEFAULT, "/prod", HTTP_2),)


@pytest.mark.parametrize(
    ("overrides", "events"),
    [
        (Overrides(payload="2.0"), [BODY, HTTP_2, HTTP_2]),
        (Overrides(payload="1.0"), [BODY, REST, HTTP_1]),
        (Overrides(integration="event"), [BODY] * 3),
        (Overrides(integration="proxy"), [REST, REST, HTTP_2]),
        (Overrides(integration="proxy", payload="2.0"), [HTTP_2] * 3),
    ],
)
def test_mesh_toml_says_it_first(overrides: Overrides, events: list[str]) -> None:
    assert [overrides.event(said) for said in (BODY, REST, HTTP_2)] == events


MAPPED = {"application/json": '{"id": "$input.params(\'id\')"}'}


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        (
            {"/a": integrated("aws", requestTemplates=MAPPED)},
            "paths /a post: the mesh does not run mapping templates; remove them",
        ),
        (
            {"/a": integrated("aws", responses={"4..": {"responseTemplates": {"application/json": "$util.x"}}})},
            "paths /a post: the mesh does not run mapping templates",
        ),
        (
            {"/a": integrated("aws_proxy", payloadFormatVersion="3.0")},
            "paths /a post: payloadFormatVersion is 1.0 or 2.0",
        ),
        (
            {
                "/a": integrated("aws_proxy", payloadFormatVersion="2.0"),
                "/b": integrated("aws_proxy", payloadFormatVersion="1.0"),
                "/c": {"get": {}},
            },
            "paths /c get: other operations have payloadFormatVersion 1.0 and 2.0; set it here too",
        ),
    ],
)
def test_an_integration_that_cannot_be(paths: Any, text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        events_of(paths)
    assert text in str(caught.value)


def test_mapping_templates_are_no_matter_when_mesh_toml_says_the_integration() -> None:
    paths = {"/a": integrated("aws", requestTemplates=MAPPED)}
    assert events_of(paths, Overrides(integration="event")) == [BODY]

"""Documents → routes: Swagger 2.0, OpenAPI 3, event lists."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import template
from mesh.lambdas.document import ANY, DocumentError, HttpRoute, format_of, integration_of, of_events, of_openapi

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
    assert len(template.parse_slashed(text).variables) == len(names)
    assert HttpRoute("GET", resource, "/prod").template == ("/prod" if resource == "/" else f"/prod{text}")


segments = st.one_of(
    st.text(st.characters(categories=["L", "N"], include_characters="-._~:@ "), min_size=1, max_size=6),
    st.from_regex(r"\{[A-Za-z0-9._:-]{1,6}\}", fullmatch=True),
)


@given(st.lists(segments, min_size=1, max_size=5, unique=True))
def test_every_resource_has_a_template_with_its_parameters(parts: list[str]) -> None:
    [route] = of_openapi({"swagger": "2.0", "paths": {"/" + "/".join(parts): {"get": {}}}})
    parsed = template.parse_slashed(route.template)
    assert len(parsed.segments) == len(parts)
    assert len({variable.field for variable in parsed.variables}) == len(route.names)


@pytest.mark.parametrize(
    ("event", "route"),
    [
        ({"http": {"method": "get", "path": "/hello"}}, HttpRoute("GET", "/hello")),
        ({"http": {"method": "ANY", "path": "users/{id}/"}}, HttpRoute(ANY, "/users/{id}")),
        ({"http": {"path": ""}}, HttpRoute(ANY, "/")),
        ({"http": {"method": "*", "path": "/{proxy+}"}}, HttpRoute(ANY, "/{proxy+}")),
        ({"httpApi": "POST /a"}, HttpRoute("POST", "/a")),
        ({"http": "delete a/{b}"}, HttpRoute("DELETE", "/a/{b}")),
    ],
)
def test_an_event_list(event: Any, route: HttpRoute) -> None:
    assert of_events({"config": {}, "events": [{"schedule": "rate(1 hour)"}, event]}) == (route,)


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
        ({"swagger": "2.0", "paths": {"/{a+}/b": {"get": {}}}}, "{a+} takes the rest of the path"),
        ({"swagger": "2.0", "paths": {"/{a}/{a}": {"get": {}}}}, "{a} is there twice"),
        ({"swagger": "2.0", "basePath": 7, "paths": ONE}, "basePath: expected a path such as /v1, got 7"),
        ({"openapi": "3", "servers": [{"url": "https://x/{stage}"}], "paths": ONE}, "servers[0].url: expected a path"),
        ({"swagger": "2.0", "paths": {"/a": {"get": None}}}, "paths /a get: expected an operation"),
        (
            {"swagger": "2.0", "paths": {"/a/{id}": {"get": {"parameters": [{"name": "user", "in": "path"}]}}}},
            "paths /a/{id} get: parameter 'user' is said to be in the path, which has: id",
        ),
        (
            {
                "openapi": "3.0.1",
                "paths": {"/a": {"get": {}, "parameters": [{"$ref": "#/components/parameters/u~1v"}]}},
                "components": {"parameters": {"u/v": {"name": "id", "in": "path"}}},
            },
            "paths /a: parameter 'id' is said to be in the path, which has: none",
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
    assert format_of(EXPORTED) is None
    assert integration_of(EXPORTED) == "proxy"


def integrated(kind: str, **more: Any) -> Any:
    return {"post": {"x-amazon-apigateway-integration": {"type": kind, **more}}}


@pytest.mark.parametrize(
    ("paths", "integration"),
    [
        ({"/a": {"get": {}}}, None),
        ({"/a": integrated("AWS_PROXY"), "/b": integrated("http"), "/c": {"get": {}}}, "proxy"),
        ({"/a": integrated("aws"), "/b": integrated("aws", requestTemplates={}, responses={"default": {}})}, "event"),
        ({"/a": integrated("aws", requestTemplates={"application/json": "$input.json( '$' )\n"})}, "event"),
        ({"/a": integrated("aws", responses={"default": {"responseTemplates": {"application/json": ""}}})}, "event"),
        ({"/a": integrated("mock", requestTemplates={"application/json": '{"statusCode": 200}'})}, None),
    ],
)
def test_the_integration_of_a_document(paths: Any, integration: str | None) -> None:
    assert integration_of({"paths": paths}) == integration


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        (
            {"/a": integrated("aws"), "/b": integrated("aws_proxy")},
            "is 'aws' at paths /a post, 'aws_proxy' at paths /b post; one function gets one: say integration",
        ),
        (
            {"/a": integrated("aws", requestTemplates={"application/json": '{"id": "$input.params(\'id\')"}'})},
            "paths /a post: mapping templates are not run here; take them out",
        ),
        (
            {"/a": integrated("aws", responses={"4..": {"responseTemplates": {"application/json": "$util.x"}}})},
            "paths /a post: mapping templates are not run here",
        ),
    ],
)
def test_an_integration_that_cannot_be(paths: Any, text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        integration_of({"paths": paths})
    assert text in str(caught.value)


def test_the_payload_format_of_a_document() -> None:
    def operation(version: str, kind: str = "aws_proxy") -> Any:
        return {"get": {"x-amazon-apigateway-integration": {"type": kind, "payloadFormatVersion": version}}}

    paths = {"/a": operation("2.0"), "/b": operation("2.0"), "/c": operation("1.0", "http_proxy"), "/d": {"get": {}}}
    assert format_of({"paths": paths}) == "2.0"
    with pytest.raises(DocumentError, match=r"'2\.0' at paths /a get, '1\.0' at paths /e get"):
        format_of({"paths": {**paths, "/e": operation("1.0")}})


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], 'expected an object with "events"'),
        ({"events": []}, "there is none of the kind"),
        ({"events": ["x"]}, "events[0]: expected an object"),
        ({"events": [{"http": 7}]}, "events[0].http: expected an object with method and path"),
        ({"events": [{"http": {"method": "FETCH", "path": "/a"}}]}, "events[0].http.method: expected an HTTP method"),
        ({"events": [{"http": {"method": "GET", "path": "/a{"}}]}, "events[0].http.path: a segment is text"),
    ],
)
def test_what_is_no_event_list(document: Any, text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        of_events(document)
    assert text in str(caught.value)

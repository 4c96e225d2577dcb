"""Function configurations → routes: serverless.yml's functions and SAM's."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.config.api_document import ANY, BODY, DEFAULT, HTTP_1, HTTP_2, REST, URL, DocumentError, HttpRoute, Overrides
from mesh.config.lambda_events import handler_of, of_events

CATCH_ALL = HttpRoute(ANY, DEFAULT, event=HTTP_2)


@pytest.mark.parametrize(
    ("event", "route"),
    [
        ({"http": {"method": "get", "path": "/hello"}}, HttpRoute("GET", "/hello")),
        ({"http": {"method": "ANY", "path": "users/{id}/"}}, HttpRoute(ANY, "/users/{id}")),
        ({"http": {"path": ""}}, HttpRoute(ANY, "/")),
        ({"http": {"method": "*", "path": "/{proxy+}"}}, HttpRoute(ANY, "/{proxy+}")),
        ({"http": "delete a/{b}"}, HttpRoute("DELETE", "/a/{b}")),
        ({"http": "any  {proxy+}"}, HttpRoute(ANY, "/{proxy+}")),
        ({"http": {"method": "get", "path": "a", "integration": "lambda-proxy"}}, HttpRoute("GET", "/a")),
        ({"http": {"method": "get", "path": "a", "private": False, "cors": False}}, HttpRoute("GET", "/a")),
        ({"httpApi": "POST /a"}, HttpRoute("POST", "/a", event=HTTP_2)),
        ({"httpApi": "* /a"}, HttpRoute(ANY, "/a", event=HTTP_2)),
        ({"httpApi": {"method": "*", "path": "/a"}}, HttpRoute(ANY, "/a", event=HTTP_2)),
        ({"httpApi": "*"}, CATCH_ALL),
        ({"httpApi": "$default"}, CATCH_ALL),
        ({"httpApi": {"path": "*"}}, CATCH_ALL),
        ({"httpApi": {"method": "*", "path": "*"}}, CATCH_ALL),
        ({"httpApi": {"method": "any", "path": "/*"}}, CATCH_ALL),
    ],
)
def test_an_entry_of_a_list(event: Any, route: HttpRoute) -> None:
    assert of_events({"config": {}, "events": [event]}) == (route,)


@pytest.mark.parametrize(
    ("event", "route"),
    [
        ({"Type": "Api", "Properties": {"Path": "/a", "Method": "get"}}, HttpRoute("GET", "/a")),
        (
            {"Type": "HttpApi", "Properties": {"Path": "/a/{b}", "Method": "POST"}},
            HttpRoute("POST", "/a/{b}", "", HTTP_2),
        ),
        (
            {"Type": "HttpApi", "Properties": {"Path": "/a", "PayloadFormatVersion": "1.0"}},
            HttpRoute(ANY, "/a", "", HTTP_1),
        ),
        ({"Type": "HttpApi", "Properties": {"ApiId": "x"}}, CATCH_ALL),
        ({"Type": "HttpApi"}, CATCH_ALL),
    ],
)
def test_an_event_of_sam(event: Any, route: HttpRoute) -> None:
    properties = {"Handler": "app.main", "CodeUri": "src/", "Events": {"One": event}}
    for document in (properties, {"Type": "AWS::Serverless::Function", "Properties": properties}):
        assert of_events(document) == (route,)
        assert handler_of(document) == ("app.main", "src/")


def test_both_kinds_of_api_reach_one_function() -> None:
    routes = of_events({"events": [{"http": "GET /a"}, {"httpApi": "GET /b"}]})
    assert [route.event for route in routes] == [REST, HTTP_2]


def test_a_function_url() -> None:
    route = HttpRoute(ANY, DEFAULT, event=URL)
    for document in (
        {"url": True},
        {"config": {"url": True}, "events": []},
        {"FunctionUrlConfig": {"AuthType": "NONE"}},
    ):
        assert of_events(document) == (route,)
    assert of_events({"url": {"invokeMode": "BUFFERED"}}, Overrides(payload="1.0")) == (route,)  # it has 2.0 only


def test_the_payload_format_of_a_function() -> None:
    for document in ({"httpApi": {"payload": "1.0"}}, {"config": {"httpApi": {"payload": "1.0"}}}):
        assert of_events({**document, "events": [{"httpApi": "*"}]})[0].event == HTTP_1
    assert of_events({"httpApi": "*", "events": [{"httpApi": "*"}]})[0].event == HTTP_2  # it says no format


def test_what_api_gateway_answers_itself_is_left_out() -> None:
    forwarded = {"method": "get", "path": "/a", "integration": "http-proxy"}
    assert of_events({"events": [{"http": forwarded}, {"http": "GET /b"}]}) == (HttpRoute("GET", "/b"),)


SCHEDULE = {"schedule": "rate(2 days)"}
QUEUE = {"sqs": {"arn": "arn:aws:sqs:x:1:q"}}
GUARDED = {"httpApi": {"method": "get", "path": "/a", "authorizer": {"name": "jwt"}}}
SHARED = {"http": {"method": "get", "path": "/a", "cors": True}}
MAPPED = {"http": {"method": "get", "path": "/a", "integration": "lambda"}}


@pytest.mark.parametrize(
    ("event", "overrides"),
    [
        (SCHEDULE, Overrides(schedule=True)),
        (QUEUE, Overrides(subscribes=True)),
        ({"schedule": {"rate": "rate(1 day)", "enabled": False}}, Overrides()),
        ({"stream": {"arn": "x", "enabled": False}}, Overrides()),
        (GUARDED, Overrides(access=True)),
        (SHARED, Overrides(cors=True)),
        (MAPPED, Overrides(integration="event")),
    ],
)
def test_what_mesh_toml_does_is_no_fault(event: Any, overrides: Overrides) -> None:
    of_events({"events": [event]}, overrides)


def test_mesh_toml_says_what_the_handler_of_a_mapped_route_gets() -> None:
    assert of_events({"events": [MAPPED]}, Overrides(integration="event"))[0].event == BODY
    assert of_events({"events": [MAPPED]}, Overrides(integration="proxy"))[0].event == REST


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], 'expected an object with "events"'),
        ({}, 'expected an object with "events"'),
        ({"events": 7}, 'expected an object with "events"'),
        ({"events": []}, "expected at least one such as"),
        ({"events": ["x"]}, "events[0]: expected an object"),
        ({"events": [{}]}, "events[0]: expected an object"),
        ({"events": [{"http": 7}]}, "events[0].http: expected an object with method and path"),
        ({"events": [{"http": None}]}, "events[0].http: expected an object with method and path"),
        ({"events": [{"http": "GET"}]}, "events[0].http: expected a method and a path such as 'GET /hello', got 'GET'"),
        ({"events": [{"http": {"method": "get"}}]}, "events[0].http.path: expected a path such as /hello, got None"),
        ({"events": [{"http": {"method": "FETCH", "path": "/a"}}]}, "events[0].http.method: expected an HTTP method"),
        ({"events": [{"http": {"method": "GET", "path": "/a{"}}]}, "events[0].http.path: a segment is text"),
        (
            {"events": [{"http": "*"}]},
            "events[0].http.path: a REST API has no route for every path; write one for / and",
        ),
        ({"events": [{"http": "GET /a/*"}]}, "events[0].http.path: '*' is no wildcard in a path; write {proxy+}"),
        ({"events": [{"httpApi": {"method": "GET", "path": "*"}}]}, "takes every method, not only GET"),
        (
            {"events": [{"httpApi": "GET /a"}], "httpApi": {"payload": "3.0"}},
            "the payload format is 1.0 or 2.0, not '3.0'",
        ),
        (
            {"events": [SCHEDULE]},
            'events[0].schedule: schedules belong in mesh.toml: set schedule = "@every 48h"',
        ),
        ({"events": [{"schedule": {"rate": ["rate(1 hour)"]}}]}, 'set schedule = "@every 1h" there'),
        (
            {"events": [QUEUE]},
            "events[0].sqs: HTTP, schedules and events of the mesh invoke a function, sqs does not",
        ),
        ({"events": [{"websocket": "$connect"}]}, "events[0].websocket: the mesh does not support websocket"),
        ({"events": [{"alb": {}}]}, "events[0].alb: the mesh does not support alb"),
        ({"events": [{"htpp": "GET /a"}]}, "events[0].htpp: unknown kind of event; did you mean 'http'?"),
        ({"events": [GUARDED]}, "events[0].httpApi.authorizer: access belongs in mesh.toml: set access = "),
        (
            {"events": [{"http": {"method": "get", "path": "/a", "private": True}}]},
            "events[0].http.private: access belongs in mesh.toml",
        ),
        ({"events": [SHARED]}, "events[0].http.cors: CORS belongs in mesh.toml: set [edge] cors = "),
        ({"events": [MAPPED]}, "events[0].http.integration: 'lambda' needs mapping templates, which are not run here"),
        (
            {"events": [{"http": {"method": "get", "path": "/a", "async": True}}]},
            "events[0].http.async: the caller always waits",
        ),
        ({"events": [], "url": {"authorizer": "aws_iam"}}, "url.authorizer: access belongs in mesh.toml"),
        (
            {"FunctionUrlConfig": {"AuthType": "AWS_IAM"}},
            "url.AuthType: access belongs in mesh.toml",
        ),
        ({"Events": {"A": {"Properties": {}}}}, 'Events.A: expected an object with "Type" and "Properties"'),
        ({"Events": {"A": {"Type": "SQS", "Properties": {}}}}, "Events.A: HTTP, schedules and events"),
        (
            {
                "Events": {
                    "A": {"Type": "Api", "Properties": {"Path": "/a", "Method": "get", "Auth": {}}},
                    "B": {"Type": "S3"},
                }
            },
            "Events.B: HTTP, schedules and events of the mesh invoke a function",
        ),
        (
            {"functions": {"a": {}, "b": {}}},
            "functions: this is a whole serverless.yml (a, b); give each service the object",
        ),
        ({"Resources": {"F": {}}}, "Resources: this is a whole SAM template (F)"),
    ],
)
def test_what_is_no_event_list(document: Any, text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        of_events(document)
    assert text in str(caught.value)


def test_every_fault_is_named() -> None:
    with pytest.raises(DocumentError) as caught:
        of_events({"events": [SCHEDULE, {"http": "GET /a"}, QUEUE, GUARDED]})
    assert [text.partition(":")[0] for text in caught.value.args] == [
        "events[0].schedule", "events[2].sqs", "events[3].httpApi.authorizer",
    ]  # fmt: skip

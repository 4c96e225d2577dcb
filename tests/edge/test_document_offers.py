"""The OpenAPI document against the running edge, on a large and odd contract (tests/protos/odd).

The edge accepts what the document offers: every operation, each query parameter alone and some together, bodies made
from the schemas. The function gets the message that the codec makes of the same values. The document offers what the
edge accepts: messages of every type, printed by protobuf's ``json_format``, are valid requests and responses.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import quote, quote_plus

import jsonschema
import pytest
from arbitrary import messages
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schema_values import Values

from mesh.contract.model import Contract, Method, Route
from mesh.edge.openapi.document import document
from mesh.edge.openapi.paths import MULTI_SEGMENT, PathTemplate
from mesh.edge.parameters import Parameters
from mesh.message_methods import serialize
from mesh.protojson.codec import Codecs

METHODS = (
    "Query", "Make", "Update", "Choose", "Path", "Body", "JsonNames", "MethodNames", "Extend", "Default",
    "LegacyNames", "Nothing", "Watch",
)  # fmt: skip
MANY = 40
"""Query parameters of an operation. Of an operation with more, only those of ``Query`` are sent one by one."""
CODECS = Codecs()


class Edge:
    """A running edge, its document, and a client of it."""

    def __init__(self, contract: Contract, running: Any) -> None:
        self.requests = running.library.requests
        host, port = running.address.rsplit(":", 1)
        self._address = host, int(port)
        self.document = json.loads(json.dumps(document(contract)))
        self.values = Values(self.document)

    def validator(self, schema: dict[str, Any]) -> Any:
        whole = {**schema, "components": self.document["components"]}
        formats = jsonschema.Draft202012Validator.FORMAT_CHECKER
        return jsonschema.Draft202012Validator(whole, format_checker=formats)

    def ask(self, verb: str, target: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"content-type": "application/json"} if body is not None else {}
        with closing(http.client.HTTPConnection(*self._address, timeout=20)) as connection:
            connection.request(verb.upper(), target, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()


@pytest.fixture(scope="module")
def edge(contract: Contract, threaded: Any) -> Edge:
    return Edge(contract, threaded)


class Operation:
    """One operation of the document with its route of the contract."""

    def __init__(self, edge: Edge, method: Method, route: Route, template: PathTemplate) -> None:
        self.edge, self.method, self.route, self.template = edge, method, route, template
        self.verb = "post" if route.verb == "*" else route.verb.lower()
        said = edge.document["paths"][template.text][self.verb]
        parameters = said.get("parameters", [])
        self.path = {one["name"]: one for one in parameters if one["in"] == "path"}
        self.query = {one["name"]: one for one in parameters if one["in"] == "query"}
        self.fields = dict(Parameters(method, route).offered()) if self.query else {}
        self.status = int(next(iter(said["responses"])))
        self.answer = said["responses"][str(self.status)].get("content", {}).get("application/json", {}).get("schema")
        self.validator = edge.validator(self.answer or {})
        body = said.get("requestBody", {})
        self.body = body.get("content", {}).get("application/json", {}).get("schema")
        self.needs_body = body.get("required", False)

    def together(self, names: list[str]) -> list[str]:
        """Return the names without those that set another member of a oneof."""
        chosen: dict[Any, str] = {}
        kept = []
        for name in dict.fromkeys([*(one for one, said in self.query.items() if said.get("required")), *names]):
            way = self.fields[name]
            members = {
                (tuple(field.name for field in way[:depth]), field.containing_oneof.name): field.name
                for depth, field in enumerate(way)
                if field.containing_oneof is not None
            }
            if all(chosen.setdefault(oneof, member) == member for oneof, member in members.items()):
                kept.append(name)
        return kept

    def send(self, draw: Any, names: list[str]) -> None:
        """Send values for the path, the body and the named parameters of the query, and compare what arrives."""
        values = {name: draw(self._path_value(one)) for name, one in self.path.items()}
        target = self.template.text
        for name, value in values.items():
            safe = "/" if self.path[name].get(MULTI_SEGMENT) else ""
            target = target.replace(f"{{{name}}}", quote(_text(value), safe=safe))
        body = None
        if self.body is not None and (self.needs_body or draw(st.integers(0, 4))):
            body = json.dumps(draw(self.edge.values.of(self.body))).encode()
        query: list[tuple[str, Any]] = []
        for name in names:
            value = draw(self.edge.values.of(self.query[name]["schema"]))
            query += [(name, one) for one in (value if isinstance(value, list) else [value])]
        pairs = "&".join(f"{quote_plus(name)}={quote_plus(_text(value))}" for name, value in query)
        seen = len(self.edge.requests)
        status, answer = self.edge.ask(self.verb, f"{target}?{pairs}", body)
        assert status == self.status, answer
        (arrived,) = self.edge.requests[seen:]
        assert _same(arrived, self._expected(values, body, query))
        self._check(answer, arrived)

    def _path_value(self, parameter: dict[str, Any]) -> st.SearchStrategy[Any]:
        """Return values whose text has no segment that clients normalise (empty, ``.`` and ``..``)."""
        made = self.edge.values.of(parameter["schema"])
        return made.filter(lambda value: not {".", "..", ""} & set(_text(value).split("/")))

    def _expected(self, values: dict[str, Any], body: bytes | None, query: list[tuple[str, Any]]) -> Any:
        message = self.method.input()
        descriptor: Any = self.method.input.DESCRIPTOR
        if body is not None and self.route.body == "*":
            CODECS.of(self.method.input).fill(message, json.loads(body))
        elif body is not None:
            CODECS.field(descriptor.fields_by_name[self.route.body])[0](message, json.loads(body))
        for name, value in query:
            _put(message, self.fields[name], value)
        for variable in self.route.template.variables:
            value = text = self.template.pattern(variable)
            for name, one in values.items():
                value = one if text == f"{{{name}}}" else value
            if value == text:
                for name, one in values.items():  # within several segments a slash of one of them stays escaped
                    part = _text(one) if self.path[name].get(MULTI_SEGMENT) else _text(one).replace("/", "%2F")
                    value = value.replace(f"{{{name}}}", part)
            fields, at = [], descriptor
            for part in variable.field:
                fields.append(at.fields_by_name[part])
                at = fields[-1].message_type
            _put(message, tuple(fields), value, anew=True)
        return message

    def _check(self, answer: bytes, arrived: Any) -> None:
        """Check that the response matches the document and holds what arrived."""
        if self.answer is None:
            assert answer == b""
            return
        self.validator.validate(json.loads(answer))
        if not self.route.response_body and not self.method.server_streaming:
            assert _same(CODECS.of(self.method.output).parse(answer), arrived)


def _same(left: Any, right: Any) -> bool:
    """Whether two values are equal, NaN equal to itself."""
    return serialize(left, deterministic=True) == serialize(right, deterministic=True)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _put(message: Any, fields: tuple[Any, ...], value: Any, *, anew: bool = False) -> None:
    """Set the leaf field of a parameter, or add an element to it."""
    *parents, field = fields
    for parent in parents:
        message = getattr(message, parent.name)
    if anew:
        message.ClearField(field.name)
    if value == "NULL_VALUE" and field.enum_type is not None:
        value = None
    CODECS.field(field)[0](message, [value] if field.is_repeated else value)


def operations(edge: Edge, contract: Contract, name: str) -> Iterator[Operation]:
    """Yield the operations of a method of the odd contract."""
    known: dict[Any, PathTemplate] = {}
    for method in contract.methods.values():
        for route in method.routes:
            template = PathTemplate.of(route.template)
            template.rename(known.setdefault(template.shape, template))
            if (method.service, method.name) == ("odd.v1.Odd", name):
                yield Operation(edge, method, route, template)


def test_every_method_is_tried(contract: Contract) -> None:
    assert tuple(contract.services["odd.v1.Odd"].methods) == METHODS


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_what_the_document_offers_arrives(edge: Edge, contract: Contract, name: str) -> None:
    for operation in operations(edge, contract, name):
        offered = st.lists(st.sampled_from(sorted(operation.query)), max_size=5) if operation.query else st.just([])
        examples(10, operation, offered)
        if len(operation.query) <= MANY or name == "Query":
            for parameter in operation.query:
                examples(3, operation, st.just([parameter]))


def examples(count: int, operation: Operation, names: st.SearchStrategy[list[str]]) -> None:
    """Send some examples of an operation with query parameters of these names."""

    @settings(max_examples=count, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def send(data: st.DataObject) -> None:
        operation.send(data.draw, operation.together(data.draw(names)))

    send()


TYPES = (
    "odd.v1.Thing", "odd.v1.Choice", "odd.v1.Names", "odd.v1.Extended", "odd.v1.Defaults", "odd.v1.Deep",
    "odd.v1.Methods", "odd.v1.FewMethods", "odd.v1.Legacy",
)  # fmt: skip
"""Types that are printed and sent; without ``UpdateRequest``, because only functions guarantee its REQUIRED fields."""
UNREADABLE = ("odd.v1.Methods", "odd.v1.FewMethods", "odd.v1.Legacy")
"""Types that json_format cannot print: it calls their fields, or prints two fields under one name."""


@pytest.mark.parametrize("name", TYPES)
def test_what_json_format_prints_is_offered_and_taken(edge: Edge, contract: Contract, name: str) -> None:
    message = contract.message(name)
    codec = CODECS.of(message)
    validator = edge.validator({"$ref": f"#/components/schemas/{name}"})

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(messages(message, 2, unknown=False, without=UNREADABLE if name not in UNREADABLE else ()))
    def offered(made: Any) -> None:
        printed = codec.dump(made)
        if name not in UNREADABLE:
            assert printed == json_format.MessageToDict(made, descriptor_pool=contract.pool)
        validator.validate(printed)
        assert _same(codec.parse_value(json.loads(json.dumps(printed))), made)

    offered()

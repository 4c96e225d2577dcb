"""The OpenAPI document as a whole: its operations and texts, and the verdict of a validator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from described import PROTO
from openapi_spec_validator import OpenAPIV31SpecValidator

from mesh.contract import loader, protoc
from mesh.contract.model import Access, Contract
from mesh.edge.openapi.document import document
from mesh.edge.openapi.json_patterns import TIMESTAMP

ROOT = Path(__file__).parent.parent.parent
ALWAYS = {"400", "401", "403", "404", "406", "409", "414", "429", "431", "500", "501", "503", "504"}
WITH_BODY = {"408", "413", "415"}


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Contract:
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.proto").write_text(PROTO)
    return loader.read(protoc.load([folder], folder / "out"))


@pytest.fixture(scope="session")
def described(shop: Contract) -> dict[str, Any]:
    return document(shop)


def test_every_document_is_valid(contract: Contract, shop: Contract, tmp_path: Path) -> None:
    sample = loader.read(protoc.load([ROOT / "protos"], tmp_path / "stubs"))
    for one in (contract, shop, sample):
        OpenAPIV31SpecValidator(document(one)).validate()


def test_every_route_of_the_contract_is_there(contract: Contract) -> None:
    made = document(contract)
    listed = [one for item in made["paths"].values() for one in item.values()] + made["x-other-operations"]
    routes = [
        (method.service, method.name)
        for method in contract.methods.values()
        if method.access is not Access.INTERNAL
        for route in method.routes
        for _ in range(5 if route.verb == "*" else 1)
    ]
    assert len(listed) == len(routes)
    ids = [one["operationId"] for one in listed]
    assert len(set(ids)) == len(ids)
    assert "Library_Hidden" not in ids
    assert {"Library_GetBook", "Library_GetBook_7", "Library_PurgeBook", "Library_AnyVerb_5"} <= set(ids)


def test_the_comment_of_a_method_is_its_headline_and_text(described: dict[str, Any]) -> None:
    operation = described["paths"]["/v1/shelves/{shelves_id}/items/{items_id}"]["get"]
    assert operation["summary"] == "Finds an item"
    assert operation["description"] == "It is exact.\n\nTwice."
    assert operation["tags"] == ["shop.v1.Shop"]
    assert described["tags"] == [{"name": "shop.v1.Shop", "description": "What the shop sells.\n\nAll of it."}]


def test_a_variable_of_several_segments(described: dict[str, Any]) -> None:
    parameters = described["paths"]["/v1/shelves/{shelves_id}/items/{items_id}"]["get"]["parameters"]
    assert [one["name"] for one in parameters if one["in"] == "path"] == ["shelves_id", "items_id"]
    assert parameters[0] == {
        "name": "shelves_id",
        "in": "path",
        "required": True,
        "description": "Its place.\n\n`name` is `shelves/{shelves_id}/items/{items_id}`.",
        "schema": {"type": "string", "minLength": 1},
    }


def test_query_parameters(described: dict[str, Any]) -> None:
    parameters = described["paths"]["/v1/shelves/{shelves_id}/items/{items_id}"]["get"]["parameters"]
    query = {one["name"]: one for one in parameters if one["in"] == "query"}
    assert list(query) == ["secret", "old", "kind", "cents", "free", "count"]  # `part` refers back to Item
    assert query["old"]["deprecated"] is True
    assert query["kind"]["schema"] == {"$ref": "#/components/schemas/shop.v1.Item.Kind"}
    assert query["cents"]["description"] == "In cents.\n\nAt most one of `cents`, `free` is set. What it costs."
    assert query["count"]["schema"]["type"] == "integer"


def test_nested_and_repeated_query_parameters(contract: Contract) -> None:
    parameters = document(contract)["paths"]["/v1/books"]["get"]["parameters"]
    query = {one["name"]: one["schema"] for one in parameters}
    assert query["author.name"] == {"type": "string"}
    assert "author.teacher.name" not in query
    assert query["tags"] == {"type": "array", "items": {"type": "string"}}
    assert query["genres"] == {"type": "array", "items": {"$ref": "#/components/schemas/edge.v1.Genre"}}
    assert query["inPrint"] == {"type": "boolean"}
    assert not {"labels", "editors", "extra", "author"} & query.keys()


def test_a_body_that_is_a_field(described: dict[str, Any]) -> None:
    operation = described["paths"]["/v1/shelves/{shelves_id}"]["put"]
    body = operation["requestBody"]
    assert "required" not in body
    assert body["content"]["application/x-protobuf"] == {"schema": {"description": "A serialized `shop.v1.Item`."}}
    item = described["components"]["schemas"]["shop.v1.Item-request"]
    assert item["required"] == ["name"]
    assert "made" not in item["properties"]  # OUTPUT_ONLY
    own = {key: value for key, value in item.items() if key != "required"}  # its name is in the path
    assert body["content"]["application/json"]["schema"] == own
    assert [one["name"] for one in operation["parameters"]] == ["shelves_id", "reason"]
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer.pop("pattern") == TIMESTAMP
    assert answer == {"type": ["string", "null"], "format": "date-time", "readOnly": True}
    assert operation["deprecated"] is True


def test_the_whole_request_as_body_takes_no_query(contract: Contract) -> None:
    operation = document(contract)["paths"]["/v1/shelves/{shelves_id}/books/{books_id}:archive"]["post"]
    assert [one["in"] for one in operation["parameters"]] == ["path", "path"]
    assert operation["requestBody"]["description"] == "The path sets `name`; values in the body are ignored."
    assert "required" not in operation["requestBody"]


def test_a_route_of_any_verb_leaves_the_verbs_that_are_named(described: dict[str, Any]) -> None:
    item = described["paths"]["/v1/all"]
    assert {verb: one["operationId"] for verb, one in item.items()} == {
        "get": "Shop_OnlyGet",
        "put": "Shop_AnyOf",
        "post": "Shop_AnyOf_2",
        "delete": "Shop_AnyOf_3",
        "patch": "Shop_AnyOf_4",
    }


def test_what_openapi_has_no_place_for(described: dict[str, Any]) -> None:
    others = [(one["method"], one["path"], one["operationId"]) for one in described["x-other-operations"]]
    assert others == [("PURGE", "/v1/all", "Shop_OnlyGet_3"), ("GET", "/v3/{name}", "Shop_OnlyGet_5")]
    assert described["x-other-operations"][1]["parameters"][0]["x-multi-segment"] is True


def test_an_answer_that_is_a_field_without_value_is_null(described: dict[str, Any]) -> None:
    schema = described["paths"]["/v2/all"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["type"] == ["integer", "null"]


def test_streams(described: dict[str, Any]) -> None:
    item = {"$ref": "#/components/schemas/shop.v1.Item"}
    content = described["paths"]["/v1/watch"]["get"]["responses"]["200"]["content"]
    assert list(content) == ["application/json", "application/x-ndjson", "text/event-stream"]
    array, failed = content["application/json"]["schema"]["items"]["anyOf"]
    assert (array, list(failed["properties"])) == (item, ["error"])
    assert content["application/x-ndjson"]["schema"]["contentSchema"] == {"anyOf": [item, failed]}
    assert content["text/event-stream"]["schema"]["contentSchema"]["anyOf"][0] == item
    sent = described["paths"]["/v1/send"]["post"]
    request = {"$ref": "#/components/schemas/shop.v1.Item-request"}
    assert sent["requestBody"]["content"]["application/x-ndjson"]["schema"]["contentSchema"] == request
    assert sent["requestBody"]["content"]["application/json"]["schema"] == {"type": "array", "items": request}
    assert list(sent["responses"]["200"]["content"]) == ["application/json", "application/x-protobuf"]
    assert "WebSocket" in described["paths"]["/v1/talk"]["post"]["description"]


def test_bytes_of_any_type(described: dict[str, Any]) -> None:
    assert described["paths"]["/v1/files/{name}"]["get"]["responses"]["200"]["content"] == {"*/*": {"schema": {}}}
    assert described["paths"]["/v1/files/{name}"]["post"]["requestBody"]["content"] == {"*/*": {"schema": {}}}


def test_the_status_of_success(described: dict[str, Any]) -> None:
    made = described["paths"]["/v1/made"]["post"]["responses"]
    assert "200" not in made
    assert "application/json" in made["201"]["content"]
    gone = described["paths"]["/v1/made/{name}"]["delete"]["responses"]
    assert "200" not in gone
    assert "content" not in gone["204"]


@pytest.mark.parametrize(
    ("path", "verb", "expected"),
    [
        ("/v1/watch", "get", [{"bearer": []}]),
        ("/v1/all", "get", []),
        ("/v1/shelves/{shelves_id}", "put", [{"bearer": ["admin"]}, {"bearer": ["owner"]}]),
    ],
)
def test_who_may_call(described: dict[str, Any], path: str, verb: str, expected: Any) -> None:
    assert described["paths"][path][verb]["security"] == expected


@pytest.mark.parametrize(
    ("path", "verb", "statuses"),
    [("/v1/watch", "get", ALWAYS), ("/v1/all", "post", ALWAYS | WITH_BODY), ("/v1/send", "post", ALWAYS | WITH_BODY)],
)
def test_how_it_may_be_refused(described: dict[str, Any], path: str, verb: str, statuses: set[str]) -> None:
    responses = described["paths"][path][verb]["responses"]
    assert set(responses) == statuses | {"200"}
    for status in statuses:
        found = described["components"]["responses"][responses[status]["$ref"].rpartition("/")[2]]
        assert found["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/google.rpc.Status"}


def test_what_fields_and_enums_say(described: dict[str, Any]) -> None:
    item = described["components"]["schemas"]["shop.v1.Item"]
    said = item["properties"]
    assert item["description"] == "One thing."
    assert item["required"] == ["name"]
    assert said["name"]["description"] == "Its place.\n\nIt cannot be changed after it is set."
    assert said["made"]["readOnly"] is True
    assert said["secret"]["writeOnly"] is True
    assert said["old"]["deprecated"] is True
    assert said["cents"]["description"] == "In cents.\n\nAt most one of `cents`, `free` is set. What it costs."
    assert said["part"] == {"$ref": "#/components/schemas/shop.v1.Item", "description": "What it is part of."}
    kind = described["components"]["schemas"]["shop.v1.Item.Kind"]
    assert kind["deprecated"] is True
    assert kind["description"] == "- `KIND_UNSPECIFIED`\n- `FOOD`: To eat.\n- `TOOL` (deprecated)"


def test_what_is_said_from_outside(shop: Contract) -> None:
    made = document(shop, title="Shop", version="2.1", servers=["https://shop.example"])
    assert (made["info"]["title"], made["info"]["version"]) == ("Shop", "2.1")
    assert made["servers"] == [{"url": "https://shop.example"}]


def test_the_version_follows_the_contract(shop: Contract, contract: Contract) -> None:
    assert document(shop)["info"]["version"] == document(shop)["info"]["version"]
    assert document(shop)["info"]["version"] != document(contract)["info"]["version"]

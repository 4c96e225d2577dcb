"""The OpenAPI documents of Lambda functions, as the edge's own document has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from mesh.config import manifest
from mesh.contract import loader, protoc
from mesh.edge.openapi.document import document
from mesh.faults import Faults
from mesh.lambdas.service_descriptor import extend

USERS: dict[str, Any] = {
    "openapi": "3.0.3",
    "info": {"title": "users", "version": "1"},
    "tags": [{"name": "people", "description": "Who they are."}, {"name": "unused"}],
    "paths": {
        "/users": {
            "parameters": [{"$ref": "#/components/parameters/page"}, {"name": "q", "in": "query", "schema": {}}],
            "post": {
                "operationId": "createUser",
                "summary": "Creates a user",
                "description": "At once.",
                "tags": ["people"],
                "deprecated": True,
                "security": [{"nowhere": []}],
                "x-amazon-apigateway-integration": {"type": "aws_proxy"},
                "parameters": [
                    {"name": "q", "in": "query", "required": True, "schema": {"type": "string", "nullable": True}},
                    {"name": "Authorization", "in": "header", "schema": {"type": "string"}},
                ],
                "requestBody": {"$ref": "#/components/requestBodies/user"},
                "responses": {
                    "201": {
                        "description": "Made.",
                        "headers": {"location": {"schema": {"type": "string", "format": "uri"}}},
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/User"}}},
                    },
                    "404": {"description": "No such team."},
                },
            },
        },
        "/users/{user-id}": {
            "get": {
                "operationId": "createUser",
                "parameters": [
                    {
                        "name": "user-id", "in": "path", "required": True, "description": "Whom.",
                        "schema": {"$ref": "#/components/schemas/User/properties/id"},
                    }
                ],
                "responses": {"default": {"description": ""}},
            },
        },
    },
    "components": {
        "parameters": {"page": {"name": "page", "in": "query", "schema": {"type": "integer"}}},
        "requestBodies": {
            "user": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/User"}, "example": {"id": "a"}}
                },
            }
        },
        "schemas": {
            "User": {
                "type": "object",
                "required": ["id"],
                "properties": {
                    "id": {"type": "string", "minLength": 2},
                    "age": {"type": "integer", "minimum": 0, "exclusiveMinimum": True, "nullable": True},
                    "height": {"type": "number", "maximum": 3, "exclusiveMaximum": False},
                    "$ref": {"type": "string"},
                    "friends": {"type": "array", "items": {"$ref": "#/components/schemas/User"}},
                    "pet": {"$ref": "#/components/schemas/Pet", "minLength": 5},
                },
            },
            "Pet": {
                "oneOf": [{"$ref": "#/components/schemas/Cat"}],
                "discriminator": {"propertyName": "kind", "mapping": {"c": "Cat"}},
            },
            "Cat": {"type": "object", "required": ["kind"], "properties": {"kind": {"enum": ["c"]}}},
            "Unused": {"type": "string"},
        },
    },
}  # fmt: skip

SWAGGER: dict[str, Any] = {
    "swagger": "2.0",
    "info": {"title": "pets", "version": "1"},
    "basePath": "/v1",
    "produces": ["application/json"],
    "paths": {
        "/pets": {
            "post": {
                "consumes": ["application/json", "application/merge-patch+json"],
                "parameters": [
                    {"in": "body", "name": "pet", "required": True, "schema": {"$ref": "#/definitions/Pet"}},
                    {
                        "in": "query", "name": "ids", "type": "array", "items": {"type": "integer"},
                        "collectionFormat": "multi",
                    },
                ],
                "responses": {
                    "200": {
                        "description": "It.",
                        "schema": {"$ref": "#/definitions/Pet"},
                        "headers": {"x-left": {"type": "integer", "description": "Calls left."}},
                        "examples": {"application/json": {"kind": "c"}},
                    }
                },
            },
        },
        "/files/{proxy+}": {
            "put": {
                "parameters": [
                    {"in": "path", "name": "proxy", "required": True, "type": "string"},
                    {"in": "formData", "name": "file", "type": "file", "required": True},
                    {"in": "formData", "name": "note", "type": "string", "description": "Why."},
                ],
                "responses": {"default": {"description": "Done."}},
            },
        },
    },
    "definitions": {"Pet": {"type": "object", "discriminator": "kind", "properties": {"kind": {"type": "string"}}}},
}  # fmt: skip


def described(folder: Path, **functions: dict[str, Any]) -> dict[str, Any]:
    """Return the edge's document of functions, after a validator has accepted it."""
    toml = ""
    for name, api in functions.items():
        (folder / f"{name}.json").write_text(json.dumps(api))
        toml += f'[services.{name}]\nlambda = "{name}:handler"\nopenapi = "{name}.json"\n'
    (folder / "mesh.toml").write_text(toml)
    loaded = manifest.load(folder / "mesh.toml", {})
    files = extend(protoc.load(loaded.protos, folder / "gen"), loaded.lambdas.values())
    made = document(loader.read(files))
    OpenAPIV31SpecValidator(made).validate()
    return made


def test_an_operation_is_what_its_document_says(tmp_path: Path) -> None:
    made = described(tmp_path, users=USERS)
    post = made["paths"]["/users"]["post"]
    assert (post["operationId"], post["summary"], post["description"]) == ("createUser", "Creates a user", "At once.")
    assert (post["tags"], post["deprecated"], post["security"]) == (["people"], True, [])
    assert {"name": "people", "description": "Who they are."} in made["tags"]
    assert "unused" not in {tag["name"] for tag in made["tags"]}
    assert post["parameters"] == [
        {"name": "page", "in": "query", "schema": {"type": "integer"}},
        {"name": "q", "in": "query", "required": True, "schema": {"type": ["string", "null"]}},
    ]
    user = {"$ref": "#/components/schemas/functions.v1.Users.User"}
    body = {"schema": user, "example": {"id": "a"}}
    assert post["requestBody"] == {"required": True, "content": {"application/json": body}}
    assert post["responses"]["201"] == {
        "description": "Made.",
        "headers": {"location": {"schema": {"type": "string", "format": "uri"}}},
        "content": {"application/json": {"schema": user}},
    }
    assert post["responses"]["404"] == {"description": "No such team."}
    assert post["responses"]["413"] == {"$ref": "#/components/responses/ContentTooLarge"}  # the edge's own


def test_a_path_parameter_has_the_name_of_the_route(tmp_path: Path) -> None:
    made = described(tmp_path, users=USERS)
    get = made["paths"]["/users/{user_id}"]["get"]
    assert get["operationId"] == "createUser_2"
    assert get["parameters"] == [
        {
            "name": "user_id", "in": "path", "required": True, "description": "Whom.",
            "schema": {"$ref": "#/components/schemas/functions.v1.Users.components_schemas_User_properties_id"},
        }
    ]  # fmt: skip
    assert "requestBody" not in get
    assert made["components"]["schemas"]["functions.v1.Users.components_schemas_User_properties_id"] == {
        "type": "string", "minLength": 2,
    }  # fmt: skip


def test_schemas_of_3_0_become_those_of_3_1(tmp_path: Path) -> None:
    schemas = described(tmp_path, users=USERS)["components"]["schemas"]
    user = schemas["functions.v1.Users.User"]
    assert user["required"] == ["id"]
    assert user["properties"] == {
        "id": {"type": "string", "minLength": 2},
        "age": {"type": ["integer", "null"], "exclusiveMinimum": 0},
        "height": {"type": "number", "maximum": 3},
        "$ref": {"type": "string"},
        "friends": {"type": "array", "items": {"$ref": "#/components/schemas/functions.v1.Users.User"}},
        "pet": {"$ref": "#/components/schemas/functions.v1.Users.Pet"},
    }
    mapping = schemas["functions.v1.Users.Pet"]["discriminator"]["mapping"]
    assert mapping == {"c": "#/components/schemas/functions.v1.Users.Cat"}
    assert "functions.v1.Users.Unused" not in schemas


def test_schemas_of_3_1_stay(tmp_path: Path) -> None:
    schema = {
        "type": ["string", "null"], "exclusiveMinimum": 3, "const": {"$ref": "no reference"}, "nullable": True,
        "$defs": {"A": {"type": "string"}}, "not": {"$ref": "#/components/schemas/S/$defs/A", "maxLength": 3},
    }  # fmt: skip
    content = {"text/plain": {"schema": {"$ref": "#/components/schemas/S"}}}
    api = {
        "openapi": "3.1.0",
        "paths": {"/a": {"put": {"requestBody": {"content": content}}}},
        "components": {"schemas": {"S": schema}},
    }
    schemas = described(tmp_path, f=api)["components"]["schemas"]
    assert schemas["functions.v1.F.S"] == {
        "type": ["string", "null"], "exclusiveMinimum": 3, "const": {"$ref": "no reference"},
        "not": {"$ref": "#/components/schemas/functions.v1.F.components_schemas_S__defs_A", "maxLength": 3},
    }  # fmt: skip


def test_swagger(tmp_path: Path) -> None:
    made = described(tmp_path, pets=SWAGGER)
    post = made["paths"]["/v1/pets"]["post"]
    pet = {"$ref": "#/components/schemas/functions.v1.Pets.Pet"}
    assert made["components"]["schemas"]["functions.v1.Pets.Pet"]["discriminator"] == {"propertyName": "kind"}
    assert post["operationId"] == "Pets_Invoke"
    assert post["requestBody"] == {
        "required": True,
        "content": {"application/json": {"schema": pet}, "application/merge-patch+json": {"schema": pet}},
    }
    assert post["parameters"] == [
        {
            "name": "ids", "in": "query", "style": "form", "explode": True,
            "schema": {"type": "array", "items": {"type": "integer"}},
        }
    ]  # fmt: skip
    assert post["responses"]["200"] == {
        "description": "It.",
        "headers": {"x-left": {"description": "Calls left.", "schema": {"type": "integer"}}},
        "content": {"application/json": {"schema": pet, "example": {"kind": "c"}}},
    }
    put = made["paths"]["/v1/files/{proxy}/{proxy_2}"]["put"]
    assert [(one["name"], one.get("x-multi-segment")) for one in put["parameters"]] == [
        ("proxy", None),
        ("proxy_2", True),
    ]
    assert put["requestBody"] == {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {}, "note": {"type": "string", "description": "Why."}},
                    "required": ["file"],
                }
            }
        },
    }


def test_two_functions_with_the_same_names_do_not_clash(tmp_path: Path) -> None:
    renamed = {**USERS, "paths": {f"/other{path}": item for path, item in USERS["paths"].items()}}
    made = described(tmp_path, users=USERS, others=renamed)
    ids = [one["operationId"] for item in made["paths"].values() for one in item.values()]
    assert sorted(ids) == ["createUser", "createUser_2", "createUser_3", "createUser_4"]
    assert {"functions.v1.Users.User", "functions.v1.Others.User"} <= made["components"]["schemas"].keys()
    names = [tag["name"] for tag in made["tags"]]
    assert sorted(names) == ["functions.v1.Others", "functions.v1.Users", "people"]


def test_an_operation_of_every_method(tmp_path: Path) -> None:
    any_method = {"operationId": "all", "responses": {"200": {"description": "It."}}}
    made = described(tmp_path, f={"openapi": "3.0.1", "paths": {"/a": {"x-amazon-apigateway-any-method": any_method}}})
    ids = {verb: one["operationId"] for verb, one in made["paths"]["/a"].items()}
    assert ids == {"get": "all", "put": "all_2", "post": "all_3", "delete": "all_4", "patch": "all_5"}


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        ({"summary": 3}, "paths /a post summary: expected a text, not 3"),
        ({"parameters": [{"in": "query"}]}, "paths /a post parameters 0: a parameter has a name, and in: query, path"),
        ({"parameters": {}}, "paths /a post parameters: expected a list, not {}"),
        (
            {"parameters": [{"in": "header", "name": "x", "style": "form"}]},
            "paths /a post parameters 0 style: header parameters have simple",
        ),
        ({"responses": {"20": {"description": ""}}}, "paths /a post responses 20: a response has an HTTP status"),
        ({"requestBody": {"$ref": "#/components/x"}}, "paths /a post requestBody: $ref '#/components/x' names nothing"),
        ({"requestBody": {"$ref": "other.json"}}, "requestBody: $ref 'other.json' names no part of this document"),
        ({"requestBody": {"$ref": "#/paths/~1a/post/requestBody"}}, "requestBody: its $ref leads back to itself"),
        (
            {"requestBody": {"content": {"application/json": {"schema": {"properties": {"a": {"type": "strin"}}}}}}},
            "paths /a post requestBody content application/json schema properties a type: no valid JSON Schema",
        ),
        (
            {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/No"}}}}},
            "content application/json schema $ref: $ref '#/components/schemas/No' names nothing: there is no 'No'",
        ),
        (
            {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Bad"}}}}},
            "components schemas Bad required: no valid JSON Schema",
        ),
    ],
)
def test_a_fault_of_a_document_has_its_place(tmp_path: Path, operation: Any, text: str) -> None:
    api = {
        "openapi": "3.0.3",
        "paths": {"/a": {"post": operation}},
        "components": {"schemas": {"Bad": {"type": "object", "required": True}}},
    }
    with pytest.raises(Faults) as caught:
        described(tmp_path, f=api)
    [fault] = caught.value.faults
    assert "[services.f] openapi" in fault.place
    assert f"{tmp_path / 'f.json'}: " in fault.text
    assert text in fault.text

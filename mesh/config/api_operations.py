"""Operations of a Lambda function's API document, as OpenAPI 3.1. Pure.

The edge shows it in ``/openapi.json`` (``mesh.edge.openapi.lambda_operations``). It does not check requests by it.

- Schemas that a ``$ref`` names become components, with the full name of the service before their own, so that they
  clash with no message of the contract. Other references are replaced by what they name.
- JSON Schema of Swagger 2.0 and OpenAPI 3.0 becomes that of OpenAPI 3.1: ``nullable``, ``exclusiveMinimum`` and
  ``exclusiveMaximum`` as booleans, ``items`` as a list, keywords beside ``$ref``, which 3.0 ignores.
- Bodies and types of Swagger 2.0 become ``requestBody``, ``content`` and ``schema``.
- ``security``, ``servers``, ``callbacks``, ``links`` and API Gateway's extensions are left out: the mesh decides them.

Sources: https://swagger.io/specification/v2/, https://spec.openapis.org/oas/v3.0.4.html,
https://spec.openapis.org/oas/v3.1.1.html, JSON Schema 2020-12.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

from mesh.config.api_document import DocumentError, HttpRoute, operations_of

__all__ = ["describe"]

JsonObject = dict[str, Any]

_OPERATION: Mapping[str, type] = {
    "operationId": str, "summary": str, "description": str, "deprecated": bool, "externalDocs": dict,
}  # fmt: skip
_PARAMETER: Mapping[str, type] = {
    "description": str, "required": bool, "deprecated": bool, "style": str, "explode": bool, "allowReserved": bool,
    "example": object,
}  # fmt: skip
_HEADER: Mapping[str, type] = {"description": str, "required": bool, "deprecated": bool, "example": object}
_EXAMPLE: Mapping[str, type] = {"summary": str, "description": str, "value": object, "externalValue": str}
_TAG: Mapping[str, type] = {"description": str, "externalDocs": dict}
_ENCODING: Mapping[str, type] = {"contentType": str, "style": str, "explode": bool, "allowReserved": bool}
"""Key → type of the value, of the parts of an operation that are kept."""
_TYPE_NAMES = {str: "a text", bool: "true or false", dict: "an object", list: "a list"}

_STYLES = {
    "query": ("form", "spaceDelimited", "pipeDelimited", "deepObject"),
    "path": ("simple", "label", "matrix"),
    "header": ("simple",),
    "cookie": ("form",),
}
"""Location of a parameter → its styles (OpenAPI 3.1, "Style Values")."""
_IGNORED_HEADERS = frozenset(("accept", "content-type", "authorization"))
"""Header parameters that have no effect (OpenAPI 3.1, "Parameter Object")."""
_COLLECTIONS = {
    "csv": {"style": "form", "explode": False},
    "multi": {"style": "form", "explode": True},
    "ssv": {"style": "spaceDelimited", "explode": False},
    "pipes": {"style": "pipeDelimited", "explode": False},
}
"""``collectionFormat`` of Swagger 2.0 → serialization of a query parameter. ``tsv`` has none."""
_SWAGGER_PARAMETER = frozenset(("name", "in", "description", "required", "collectionFormat", "allowEmptyValue"))
"""Keys of a parameter or header of Swagger 2.0 that are not part of its schema."""
_RESPONSE = re.compile(r"[1-5](?:\d\d|XX)\Z|default\Z")

_BY_NAME = frozenset(("properties", "patternProperties", "dependentSchemas"))
_IN_LIST = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
_IN_PLACE = frozenset((
    "items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedItems",
    "unevaluatedProperties", "contentSchema",
))  # fmt: skip
"""Keywords with schemas: by name, as a list, one."""
_DROPPED = frozenset(("$schema", "$id", "id", "$defs", "definitions", "$anchor", "$comment", "nullable", "x-nullable"))
"""Keywords that have no meaning in a component. What refers to ``$defs`` refers to a component afterwards."""
_BOUNDS = {
    "minimum": "exclusiveMinimum", "exclusiveMinimum": "minimum",
    "maximum": "exclusiveMaximum", "exclusiveMaximum": "maximum",
}  # fmt: skip
"""Keyword of a bound → the other one of the same side."""
_DYNAMIC = ("$dynamicRef", "$recursiveRef")
_MAX_CHAIN = 32
"""References in a chain, ``$ref`` to ``$ref``."""


def describe(document: JsonObject, routes: Iterable[HttpRoute], prefix: str) -> JsonObject:
    """Return what a document says of routes, as JSON values of OpenAPI 3.1.

    Args:
        document: A document that ``of_openapi`` has read.
        routes: Its routes.
        prefix: Begins the names of all components: full name of the function's service.

    Returns:
        ``operations``: an Operation Object for each route, in order, without ``responses`` if it says nothing of them;
        path parameters have the names of the document. ``schemas``: the components that the operations refer to.
        ``tags``: the Tag Objects that they name.

    Raises:
        DocumentError: A part of an operation is not what the specification says, or a reference names nothing.
    """
    reader = _OperationReader(document, prefix)
    found = {(route.verb, route.resource): (item, operation, place) for route, item, operation, place in reader.all()}
    operations = [reader.operation(*found[route.verb, route.resource]) for route in routes]
    return {"operations": operations, "schemas": reader.schemas, "tags": list(reader.tags(operations))}


class _OperationReader:
    def __init__(self, document: JsonObject, prefix: str) -> None:
        self.schemas: dict[str, Any] = {}
        self._document = document
        self._prefix = prefix
        self._swagger = "swagger" in document
        self._old = self._swagger or str(document.get("openapi")).startswith("3.0")
        self._names: dict[str, str] = {}

    def all(self) -> Iterator[tuple[HttpRoute, JsonObject, JsonObject, str]]:
        """Yield each operation: route, path item, operation, place."""
        return operations_of(self._document)

    def operation(self, item: JsonObject, operation: JsonObject, place: str) -> JsonObject:
        """Return an Operation Object."""
        made = _copied(operation, _OPERATION, place)
        for key in ("summary", "description"):
            if key not in made and isinstance(item.get(key), str):
                made[key] = item[key]
        tags = _typed(operation.get("tags", []), list, f"{place} tags")
        if tags:
            made["tags"] = list(dict.fromkeys(str(tag) for tag in tags))
        parameters, body = self._inputs(item, operation, place)
        if parameters:
            made["parameters"] = parameters
        if body:
            made["requestBody"] = body
        responses = self._responses(operation, f"{place} responses")
        if responses:
            made["responses"] = responses
        return made

    def tags(self, operations: Iterable[JsonObject]) -> Iterator[JsonObject]:
        """Yield the Tag Objects of the document that operations name."""
        used = {tag for operation in operations for tag in operation.get("tags", ())}
        for index, value in enumerate(_typed(self._document.get("tags", []), list, "tags")):
            place = f"tags {index}"
            tag = _typed(value, dict, place)
            if tag.get("name") in used:
                used.discard(tag["name"])
                yield {"name": tag["name"], **_copied(tag, _TAG, place)}

    # -- parameters and bodies --

    def _inputs(self, item: JsonObject, operation: JsonObject, place: str) -> tuple[list[JsonObject], JsonObject]:
        """Return the parameters and the request body of an operation; a body of Swagger 2.0 is a parameter too."""
        parameters: list[JsonObject] = []
        form: list[JsonObject] = []
        body: JsonObject = {}
        for parameter, where in self._parameters(item, operation, place).values():
            kind = parameter["in"]
            if kind == "body":
                body = self._swagger_body(parameter, self._media_types(operation, "consumes"), where)
            elif kind == "formData":
                form.append(parameter)
            elif kind != "header" or parameter["name"].lower() not in _IGNORED_HEADERS:
                parameters.append(self._parameter(parameter, where))
        if form:
            body = self._form(form, self._media_types(operation, "consumes"), place)
        elif not self._swagger and "requestBody" in operation:
            body = self._request_body(operation["requestBody"], f"{place} requestBody")
        return parameters, body

    def _parameters(
        self, item: JsonObject, operation: JsonObject, place: str
    ) -> dict[tuple[str, str], tuple[JsonObject, str]]:
        """Return the parameters of an operation and of its path by name and location, each with its place."""
        found: dict[tuple[str, str], tuple[JsonObject, str]] = {}
        for owner, where in ((item, place.rpartition(" ")[0]), (operation, place)):
            for index, value in enumerate(_typed(owner.get("parameters", []), list, f"{where} parameters")):
                at = f"{where} parameters {index}"
                parameter = self._target(value, at)
                name, kind = parameter.get("name"), parameter.get("in")
                kinds = (*_STYLES, "body", "formData") if self._swagger else tuple(_STYLES)
                if not isinstance(name, str) or kind not in kinds:
                    raise DocumentError(f"{at}: a parameter has a name, and in: {', '.join(kinds)}")
                found[name, kind] = parameter, at
        return found

    def _parameter(self, value: JsonObject, place: str) -> JsonObject:
        name, kind = value["name"], value["in"]
        made: JsonObject = {"name": name, "in": kind, **_copied(value, _PARAMETER, place)}
        if self._swagger:
            made["schema"] = self._swagger_type(value, place)
            if kind == "query" and value.get("type") == "array":
                made |= _COLLECTIONS.get(value.get("collectionFormat", "csv"), {})
        else:
            made |= self._schema_or_content(value, place)
        if made.get("style", _STYLES[kind][0]) not in _STYLES[kind]:
            raise DocumentError(f"{place} style: {kind} parameters have {', '.join(_STYLES[kind])}")
        if kind == "path":
            made["required"] = True
        return made

    def _schema_or_content(self, value: JsonObject, place: str) -> JsonObject:
        made: JsonObject = {}
        if "content" in value:
            made["content"] = self._content(value["content"], f"{place} content")
        else:
            made["schema"] = self.schema(value.get("schema", {}), f"{place} schema")
            if "examples" in value:
                made["examples"] = self._examples(value["examples"], f"{place} examples")
        return made

    def _swagger_type(self, value: JsonObject, place: str) -> Any:
        return self.schema({key: part for key, part in value.items() if key not in _SWAGGER_PARAMETER}, place)

    def _swagger_body(self, parameter: JsonObject, media_types: list[str], place: str) -> JsonObject:
        schema = self.schema(parameter.get("schema", {}), f"{place} schema")
        kept = _copied(parameter, {"description": str, "required": bool}, place)
        return {**kept, "content": {media_type: {"schema": schema} for media_type in media_types}}

    def _form(self, fields: list[JsonObject], consumes: list[str], place: str) -> JsonObject:
        files = any(field.get("type") == "file" for field in fields)
        forms = [one for one in consumes if one.startswith("multipart/") or one.endswith("x-www-form-urlencoded")]
        kinds = forms or ["multipart/form-data" if files else "application/x-www-form-urlencoded"]
        schema: JsonObject = {
            "type": "object",
            "properties": {
                field["name"]: {
                    **self._swagger_type(field, f"{place} parameters {field['name']}"),
                    **_copied(field, {"description": str}, place),
                }
                for field in fields
            },
        }
        required = [field["name"] for field in fields if field.get("required") is True]
        if required:
            schema["required"] = required
        return {"content": {kind: {"schema": schema} for kind in kinds}, **({"required": True} if required else {})}

    def _media_types(self, operation: JsonObject, key: str) -> list[str]:
        found = operation.get(key, self._document.get(key)) if self._swagger else None
        return [str(one) for one in found] if isinstance(found, list) and found else ["application/json"]

    def _request_body(self, value: Any, place: str) -> JsonObject:
        body = self._target(value, place)
        return {
            **_copied(body, {"description": str, "required": bool}, place),
            "content": self._content(body.get("content", {}), f"{place} content"),
        }

    def _content(self, value: Any, place: str) -> JsonObject:
        made: JsonObject = {}
        for media_type, entry in _typed(value, dict, place).items():
            at = f"{place} {media_type}"
            described = self._target(entry, at)
            one: JsonObject = {}
            if "schema" in described:
                one["schema"] = self.schema(described["schema"], f"{at} schema")
            if "example" in described:
                one["example"] = described["example"]
            elif "examples" in described:
                one["examples"] = self._examples(described["examples"], f"{at} examples")
            if "encoding" in described:
                encodings = _typed(described["encoding"], dict, f"{at} encoding")
                one["encoding"] = {
                    name: _copied(_typed(encoding, dict, f"{at} encoding {name}"), _ENCODING, f"{at} encoding {name}")
                    for name, encoding in encodings.items()
                }
            made[str(media_type)] = one
        return made

    def _examples(self, value: Any, place: str) -> JsonObject:
        made: JsonObject = {}
        for name, one in _typed(value, dict, place).items():
            at = f"{place} {name}"
            made[name] = _copied(self._target(one, at), _EXAMPLE, at)
        return made

    def _responses(self, operation: JsonObject, place: str) -> JsonObject:
        made: JsonObject = {}
        for key, value in _typed(operation.get("responses", {}), dict, place).items():
            status, at = str(key), f"{place} {key}"
            if status.startswith("x-"):
                continue
            if not _RESPONSE.match(status):
                raise DocumentError(f"{at}: a response has an HTTP status, 2XX, or default")
            response = self._target(value, at)
            one: JsonObject = {"description": _typed(response.get("description", ""), str, f"{at} description")}
            headers = _typed(response.get("headers", {}), dict, f"{at} headers")
            if headers:
                one["headers"] = {
                    name: self._header(header, f"{at} headers {name}")
                    for name, header in headers.items()
                    if name.lower() != "content-type"
                }
            if self._swagger and "schema" in response:
                schema = self.schema(response["schema"], f"{at} schema")
                examples = _typed(response.get("examples", {}), dict, f"{at} examples")
                one["content"] = {
                    kind: {"schema": schema, **({"example": examples[kind]} if kind in examples else {})}
                    for kind in self._media_types(operation, "produces")
                }
            elif "content" in response:
                one["content"] = self._content(response["content"], f"{at} content")
            made[status] = one
        return made

    def _header(self, value: Any, place: str) -> JsonObject:
        header = self._target(value, place)
        made = _copied(header, _HEADER, place)
        if self._swagger:
            return {**made, "schema": self._swagger_type(header, place)}
        return made | self._schema_or_content(header, place)

    # -- references --

    def _target(self, value: Any, place: str) -> JsonObject:
        """Return the object that a value is, or that its reference names."""
        for _ in range(_MAX_CHAIN):
            if not isinstance(value, dict) or not isinstance(value.get("$ref"), str):
                target: JsonObject = _typed(value, dict, place)
                return target
            value = self._find(value["$ref"], place)
        raise DocumentError(f"{place}: its $ref leads back to itself")

    def _find(self, reference: str, place: str) -> Any:
        if not reference.startswith("#/"):
            raise DocumentError(
                f"{place}: $ref {reference!r} names no part of this document; write it into the document and "
                "refer to it as #/components/…"
            )
        found: Any = self._document
        for part in _parts(reference):
            if isinstance(found, dict) and part in found:
                found = found[part]
            elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            else:
                raise DocumentError(f"{place}: $ref {reference!r} names nothing: there is no {part!r}")
        return found

    def _component(self, reference: str, place: str) -> str:
        """Return the name of the component that a schema's reference becomes."""
        if reference not in self._names:
            target = self._find(reference, place)
            parts = _parts(reference)
            model = parts[:-1] in (["components", "schemas"], ["definitions"])
            own = re.sub(r"[^A-Za-z0-9._-]", "_", parts[-1] if model else "_".join(parts))
            name, number = f"{self._prefix}.{own}", 1
            while name in self.schemas:
                number += 1
                name = f"{self._prefix}.{own}_{number}"
            self._names[reference] = name
            self.schemas[name] = True  # a schema may refer to itself
            self.schemas[name] = self._checked(target, " ".join(parts))
        return self._names[reference]

    # -- schemas --

    def schema(self, value: Any, place: str) -> Any:
        """Return a schema in the dialect of OpenAPI 3.1."""
        return self._checked(value, place)

    def _checked(self, value: Any, place: str) -> Any:
        made = self._schema(value, place)
        try:
            jsonschema_rs.meta.validate(made)
        except jsonschema_rs.ValidationError as error:
            path = " ".join(map(str, error.instance_path))
            raise DocumentError(f"{place} {path}".rstrip() + f": no valid JSON Schema: {error.message}") from None
        return made

    def _schema(self, value: Any, place: str) -> Any:
        if isinstance(value, bool):
            return value
        schema = _typed(value, dict, place)
        made: JsonObject = {}
        if isinstance(schema.get("$ref"), str):
            made["$ref"] = f"#/components/schemas/{self._component(schema['$ref'], f'{place} $ref')}"
            if self._old:
                return made
        for key, part in schema.items():
            at = f"{place} {key}"
            if key in _DYNAMIC:
                raise DocumentError(f"{at}: only $ref is read")
            if key in _DROPPED or key == "$ref" or str(key).startswith("x-amazon-"):
                continue
            made |= self._keyword(key, part, schema, at)
        if self._old and (schema.get("nullable") is True or (self._swagger and schema.get("x-nullable") is True)):
            kind = made.get("type")
            if isinstance(kind, str):
                made["type"] = [kind, "null"]
        return made

    def _keyword(self, key: str, part: Any, schema: JsonObject, at: str) -> JsonObject:
        """Return the keywords that a keyword becomes."""
        made: JsonObject = {}
        if key in _BY_NAME:
            made[key] = {name: self._schema(one, f"{at} {name}") for name, one in _typed(part, dict, at).items()}
        elif key in _IN_LIST:
            made[key] = [self._schema(one, f"{at} {index}") for index, one in enumerate(_typed(part, list, at))]
        elif key == "items" and isinstance(part, list):  # until draft 2019-09
            made["prefixItems"] = [self._schema(one, f"{at} {index}") for index, one in enumerate(part)]
            if "additionalItems" in schema:
                made["items"] = self._schema(schema["additionalItems"], f"{at} additionalItems")
        elif key in _IN_PLACE:
            made[key] = self._schema(part, at)
        elif key == "discriminator":
            made[key] = self._discriminator(part, at)
        elif key in _BOUNDS:
            made |= _bound(key, part, schema)
        elif key != "additionalItems" and not (key == "type" and part == "file"):
            made[key] = part
        return made

    def _discriminator(self, value: Any, place: str) -> JsonObject:
        if isinstance(value, str):
            return {"propertyName": value}
        made = _copied(_typed(value, dict, place), {"propertyName": str}, place)
        mapping = _typed(value.get("mapping", {}), dict, f"{place} mapping")
        if mapping:
            made["mapping"] = {
                name: f"#/components/schemas/{self._component(self._reference(str(one)), f'{place} mapping {name}')}"
                for name, one in mapping.items()
            }
        return made

    def _reference(self, schema: str) -> str:
        """Return the reference of a discriminator's value, which may be the name of a schema."""
        if "/" in schema or "#" in schema:
            return schema
        return f"#/definitions/{schema}" if self._swagger else f"#/components/schemas/{schema}"


def _parts(reference: str) -> list[str]:
    """Return the parts of a JSON pointer in a URI fragment (RFC 6901, section 6)."""
    return [unquote(part).replace("~1", "/").replace("~0", "~") for part in reference[2:].split("/")]


def _bound(key: str, value: Any, schema: JsonObject) -> JsonObject:
    """Return a bound. Until draft 4, ``exclusiveMinimum`` is a boolean that says what ``minimum`` means."""
    other = schema.get(_BOUNDS[key])
    if isinstance(value, bool):
        return {key: other} if value and other is not None else {}
    return {} if other is True else {key: value}


def _typed(value: Any, kind: type, place: str) -> Any:
    if not isinstance(value, kind):
        raise DocumentError(f"{place}: expected {_TYPE_NAMES[kind]}, not {value!r:.80}")
    return value


def _copied(source: JsonObject, keys: Mapping[str, type], place: str) -> JsonObject:
    """Return the keys of an object that are kept, in their order."""
    return {key: _typed(value, keys[key], f"{place} {key}") for key, value in source.items() if key in keys}

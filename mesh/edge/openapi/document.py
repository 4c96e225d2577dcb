"""OpenAPI 3.1 document of the routes that the edge offers, made from the contract. Pure.

It describes the edge as it is: routes, parameters and bodies as ``mesh.edge.http.transcoder`` reads them, JSON as
``mesh.protojson.codec`` writes it, errors as ``mesh.edge.http.response`` writes them.

Source: https://spec.openapis.org/oas/v3.1.1.html
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from mesh.contract.model import Access, Contract, GrpcService
from mesh.edge.openapi import comments, responses
from mesh.edge.openapi.operations import API_KEY, BEARER, Operations
from mesh.edge.openapi.schemas import Schemas

__all__ = ["TITLE", "document"]

TITLE = "Mesh"

_DESCRIPTION = """\
JSON is [proto3 JSON](https://protobuf.dev/programming-guides/json/): 64-bit integers are strings, bytes are base64, \
and a field at its default is left out of a response.

A query parameter can be named as here or as in the .proto file; a repeated one is given once for each value.

The response to a request that fails is a `google.rpc.Status`. Every response names its trace in `x-trace-id`.\
"""


def document(
    contract: Contract, *, title: str = TITLE, version: str = "", servers: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the document as JSON values.

    Args:
        contract: The contract.
        title: Title of the API.
        version: Version of the API; ``""``: a digest of the contract, so that it changes with the contract.
        servers: URLs of the API; none: the server that the document comes from.
    """
    schemas = Schemas(contract.pool, comments.read(contract.files))
    operations = Operations(schemas)
    methods = []
    tags: list[dict[str, Any]] = []
    short_names = [name.rpartition(".")[2] for name in contract.services]
    for service in contract.services.values():
        offered = [
            method for method in service.methods.values() if method.access is not Access.INTERNAL and method.routes
        ]
        if not offered:
            continue
        name = service.name.rpartition(".")[2]
        prefix = name if short_names.count(name) == 1 else service.name.replace(".", "_")
        methods += [(method, prefix) for method in offered]
        tags.append(_tag(service))
    operations.add(methods)
    schemas.components |= operations.lambdas.schemas
    tags = _tags(operations, tags)
    keys = any(method.access is Access.KEY for method, _ in methods)
    details = [schemas.detail(descriptor) for descriptor in responses.DETAILS]
    schemas.components[responses.STATUS] = responses.status_schema([*details, schemas.any()])
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version or _digest(contract), "description": _DESCRIPTION},
    }
    if servers:
        made["servers"] = [{"url": url} for url in servers]
    made |= {
        "tags": tags,
        "paths": operations.paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            **responses.components(),
            "securitySchemes": {BEARER: _BEARER, **({API_KEY: _API_KEY} if keys else {})},
        },
    }
    if operations.others:
        made["x-other-operations"] = operations.others
    return made


_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "A user's access token: `authorization: Bearer TOKEN`.",
}

_API_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key: `authorization: Bearer mesh_…`.",
}


def _tag(service: GrpcService) -> dict[str, Any]:
    return {"name": service.name, **({"description": service.comment} if service.comment else {})}


def _tags(operations: Operations, services: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tags that operations have: those of services, then those of Lambda functions' own documents."""
    listed = [*(one for item in operations.paths.values() for one in item.values()), *operations.others]
    used = {tag for operation in listed for tag in operation["tags"]}
    own = operations.lambdas.tags
    names = {tag["name"] for tag in services}
    others = [name for operation in listed for name in operation["tags"] if name not in names]
    return [
        *(tag for tag in services if tag["name"] in used),
        *(own.get(name, {"name": name}) for name in dict.fromkeys(others)),
    ]


def _digest(contract: Contract) -> str:
    return hashlib.sha256(contract.files.SerializeToString(deterministic=True)).hexdigest()[:12]

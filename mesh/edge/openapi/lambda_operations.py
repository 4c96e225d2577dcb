"""OpenAPI operations of Lambda functions, from their own documents and what the edge adds. Pure.

A function's own document (``mesh.config.api_operations``) says what its requests and responses are. The edge knows the
path and its parameters, who may call, and which errors it responds with itself.
"""

from __future__ import annotations

import json
from typing import Any

from mesh.config.api_document import HttpRoute
from mesh.contract.model import Method, Route
from mesh.edge.openapi import responses
from mesh.edge.openapi.paths import PathTemplate

__all__ = ["LambdaOperations"]

_ANY_CONTENT: dict[str, Any] = {"content": {"*/*": {"schema": {}}}}
_ANY_RESPONSE = {"default": {"description": "The response of the function.", **_ANY_CONTENT}}
_WITH_BODY = ("POST", "PUT", "PATCH")


class LambdaOperations:
    """Operations of the routes of Lambda functions.

    Attributes:
        schemas: The components that the operations refer to.
        tags: Tag Objects of the documents by name.
    """

    def __init__(self) -> None:
        self.schemas: dict[str, Any] = {}
        self.tags: dict[str, dict[str, Any]] = {}
        self._operations: dict[str, list[dict[str, Any]]] = {}

    def described(self, method: Method, route: Route) -> dict[str, Any]:
        """Return the Operation Object of the function's own document for a route; empty if it has none."""
        gateway = method.gateway
        if gateway is None or not gateway.openapi:
            return {}
        if method.service not in self._operations:
            document = json.loads(gateway.openapi)
            self._operations[method.service] = document["operations"]
            self.schemas |= document["schemas"]
            for tag in document["tags"]:
                self.tags.setdefault(tag["name"], tag)
        return self._operations[method.service][method.routes.index(route)]

    def body(self, method: Method, route: Route, path: PathTemplate) -> dict[str, Any]:
        """Return parameters, request body and responses of a route."""
        own = self.described(method, route)
        documented = {(one["in"], one["name"].removesuffix("+")): one for one in own.get("parameters", ())}
        assert method.gateway is not None  # noqa: S101 - the caller has looked
        names = HttpRoute(route.verb, method.gateway.resources[method.routes.index(route)]).names
        parameters = []
        for parameter in path.parameters:
            variable = parameter.variable
            if variable is None:
                continue
            made = parameter.to_object(lambda _: {"type": "string"}, "", path.pattern(variable))
            key = "path", names[route.template.variables.index(variable)]
            if parameter.whole_value:
                made = _merged(made, documented.pop(key, {}))
            elif parameter.multi_segment:  # the last one of the rest of a path, which has two
                documented.pop(key, None)
            parameters.append(made)
        parameters += documented.values()
        found: dict[str, Any] = {"parameters": parameters}
        if "requestBody" in own:
            found["requestBody"] = own["requestBody"]
        elif route.verb in _WITH_BODY and not own:
            found["requestBody"] = dict(_ANY_CONTENT)
        if "responses" in own:
            errors = responses.error_responses(body="requestBody" in own)
            found["responses"] = {**own["responses"], **{s: e for s, e in errors.items() if s not in own["responses"]}}
        else:
            found["responses"] = dict(_ANY_RESPONSE)
        return found


def _merged(made: dict[str, Any], documented: dict[str, Any]) -> dict[str, Any]:
    """Return a path parameter with what the function's document says of it."""
    own = {key: value for key, value in documented.items() if key not in ("name", "in", "required")}
    notes = [one["description"] for one in (own, made) if one.get("description")]
    if "content" in own:
        del made["schema"]
    merged = {**made, **own}
    if notes:
        merged["description"] = "\n\n".join(notes)
    return merged

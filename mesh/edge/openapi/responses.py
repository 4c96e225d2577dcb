"""Error responses of the OpenAPI document: response objects, and the statuses that each operation can have. Pure.

A function may end with any code, so most statuses are listed at every operation.

Sources: google/rpc/{status,code,error_details}.proto, RFC 9110, ``mesh.errors``, ``mesh.edge.refusals``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.rpc import error_details_pb2

from mesh.headers import TRACE_ID
from mesh.media_types import JSON

__all__ = ["DETAILS", "STATUS", "TRACE", "components", "error_responses", "headers", "status_schema"]

STATUS = "google.rpc.Status"
DETAILS: tuple[Descriptor, ...] = (
    error_details_pb2.BadRequest.DESCRIPTOR,
    error_details_pb2.ErrorInfo.DESCRIPTOR,
    error_details_pb2.RetryInfo.DESCRIPTOR,
)
"""Details that clients meet most. A status may hold others."""

TRACE = TRACE_ID.decode()

_HEADERS: Mapping[str, dict[str, Any]] = {
    TRACE: {
        "description": "The id of the request's trace (W3C Trace Context).",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    "retry-after": {
        "description": "Seconds after which a retry may succeed.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "www-authenticate": {"description": "How to authenticate (RFC 9110).", "schema": {"type": "string"}},
}

_ERRORS: Mapping[int, tuple[str, str, tuple[str, ...]]] = {
    400: ("BadRequest", "The request is wrong; `google.rpc.BadRequest` among the details names the fields.", ()),
    401: ("Unauthorized", "The credentials are missing or not valid.", ("www-authenticate",)),
    403: ("Forbidden", "The caller is authenticated and may not do this.", ()),
    404: ("NotFound", "The resource does not exist.", ()),
    406: ("NotAcceptable", "The response has no media type that `accept` allows.", ()),
    408: ("RequestTimeout", "The request body did not come in time.", ()),
    409: ("Conflict", "The resource exists already, or another request changed it first.", ()),
    413: ("ContentTooLarge", "The request body is larger than the edge accepts.", ()),
    414: ("UriTooLong", "The URL is longer than the edge accepts.", ()),
    415: ("UnsupportedMediaType", "The media type of the request body is not accepted here.", ()),
    429: ("TooManyRequests", "A limit was reached.", ("retry-after",)),
    431: ("HeadersTooLarge", "The request headers are larger than the edge accepts.", ()),
    500: ("InternalServerError", "A fault of the server; the message does not describe it.", ()),
    501: ("NotImplemented", "The service does not offer this.", ()),
    503: ("ServiceUnavailable", "The service is not available now; a retry may succeed.", ("retry-after",)),
    504: ("GatewayTimeout", "The deadline passed; the request may have taken effect all the same.", ()),
}
"""HTTP status → name of its response object, description, names of its headers."""

_BODY_ERRORS = frozenset((408, 413, 415))
"""Statuses of operations with a request body only."""


def error_responses(*, body: bool) -> dict[str, Any]:
    """Return references to the error responses of an operation.

    Args:
        body: Whether the operation has a request body.
    """
    return {
        str(status): {"$ref": f"#/components/responses/{name}"}
        for status, (name, _, _) in _ERRORS.items()
        if body or status not in _BODY_ERRORS
    }


def headers(*names: str) -> dict[str, Any]:
    """Return references to response headers."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def components() -> dict[str, Any]:
    """Return the targets of the references: the sections ``responses`` and ``headers`` of the components."""
    content = {JSON: {"schema": {"$ref": f"#/components/schemas/{STATUS}"}}}
    return {
        "responses": {
            name: {"description": text, "headers": headers(TRACE, *header_names), "content": content}
            for name, text, header_names in _ERRORS.values()
        },
        "headers": dict(_HEADERS),
    }


def status_schema(details: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of the body of every error response.

    Args:
        details: Schemas that a detail may have.
    """
    return {
        "type": "object",
        "description": "Error of a request.",
        "properties": {
            "code": {
                "type": "integer",
                "format": "int32",
                "minimum": 1,
                "maximum": 16,
                "description": "The code of `google.rpc.Code`; the HTTP status follows from it.",
            },
            "message": {"type": "string", "description": "Description of the error for people."},
            "details": {"type": "array", "items": {"anyOf": details}},
        },
        "required": ["code", "message", "details"],
        "additionalProperties": False,
    }

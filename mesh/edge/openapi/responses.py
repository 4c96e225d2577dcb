"""How the edge refuses, as response objects of an OpenAPI document, and which operation can be refused how. Pure.

A function may end with any code, so most of them stand at every operation.
Sources: google/rpc/{status,code,error_details}.proto, RFC 9110, ``mesh.errors``, ``mesh.edge.refusals``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.rpc import error_details_pb2

from mesh.headers import TRACE_ID

__all__ = ["DETAILS", "STATUS", "TRACE", "components", "headers", "refusals", "status_schema"]

STATUS = "google.rpc.Status"
DETAILS: tuple[Descriptor, ...] = (
    error_details_pb2.BadRequest.DESCRIPTOR,
    error_details_pb2.ErrorInfo.DESCRIPTOR,
    error_details_pb2.RetryInfo.DESCRIPTOR,
)
"""Details that a client meets most; others may be there."""

TRACE = TRACE_ID.decode()

_HEADERS: Mapping[str, dict[str, Any]] = {
    TRACE: {
        "description": "The id of the request's trace (W3C Trace Context).",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    "retry-after": {
        "description": "Seconds after which another try has a chance.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "www-authenticate": {"description": "How to authenticate (RFC 9110).", "schema": {"type": "string"}},
}
_REFUSALS: Mapping[int, tuple[str, str, tuple[str, ...]]] = {
    400: ("BadRequest", "The request is wrong; `google.rpc.BadRequest` among the details names the fields.", ()),
    401: ("Unauthorized", "Nobody is known by these credentials, or there are none.", ("www-authenticate",)),
    403: ("Forbidden", "The caller is known and may not do this.", ()),
    404: ("NotFound", "What was asked for does not exist.", ()),
    406: ("NotAcceptable", "There is no answer in a media type that `accept` names.", ()),
    408: ("RequestTimeout", "The request body did not come in time.", ()),
    409: ("Conflict", "What was to be created exists, or another request was faster.", ()),
    413: ("ContentTooLarge", "The request body is larger than the edge takes.", ()),
    414: ("UriTooLong", "The URL is longer than the edge takes.", ()),
    415: ("UnsupportedMediaType", "The request body is of a media type that is not taken here.", ()),
    429: ("TooManyRequests", "A limit was reached.", ("retry-after",)),
    431: ("HeadersTooLarge", "The request headers are larger than the edge takes.", ()),
    500: ("InternalServerError", "A fault on the server's side; the text says nothing of it.", ()),
    501: ("NotImplemented", "The service does not offer this.", ()),
    503: ("ServiceUnavailable", "Not now; another try may succeed.", ("retry-after",)),
    504: ("GatewayTimeout", "It was not done in time; the effect may have happened all the same.", ()),
}
"""HTTP status → name of its response object, what it means, the headers that come with it."""

_WITH_BODY = frozenset((408, 413, 415))


def refusals(*, body: bool) -> dict[str, Any]:
    """Return the refusals of an operation as references.

    Args:
        body: The operation takes a body.
    """
    return {
        str(status): {"$ref": f"#/components/responses/{name}"}
        for status, (name, _, _) in _REFUSALS.items()
        if body or status not in _WITH_BODY
    }


def headers(*names: str) -> dict[str, Any]:
    """Return references to response headers."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def components() -> dict[str, Any]:
    """Return what ``refusals`` and ``headers`` lead to: the sections ``responses`` and ``headers``."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{STATUS}"}}}
    return {
        "responses": {
            name: {"description": text, "headers": headers(TRACE, *more), "content": content}
            for name, text, more in _REFUSALS.values()
        },
        "headers": dict(_HEADERS),
    }


def status_schema(details: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of every refusal's body.

    Args:
        details: The schemas that a detail may have.
    """
    return {
        "type": "object",
        "description": "How a request failed.",
        "properties": {
            "code": {
                "type": "integer",
                "format": "int32",
                "minimum": 1,
                "maximum": 16,
                "description": "The code of `google.rpc.Code`; the HTTP status follows from it.",
            },
            "message": {"type": "string", "description": "What was wrong, for people."},
            "details": {"type": "array", "items": {"anyOf": details}},
        },
        "required": ["code", "message", "details"],
        "additionalProperties": False,
    }

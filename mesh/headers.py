"""Header names that have one owner: the connection, gRPC, or the mesh. Pure.

Every list of header names in the mesh stands here, so that no two of them differ by accident. Names are in lower case,
as HTTP/2 has them. A set that differs from another for a reason is derived from it, with the reason.

Sources: RFC 9110 (6.5.1 trailers, 7.6.1 hop-by-hop); RFC 9113, 8.2.2; PROTOCOL-HTTP2.md in
https://github.com/grpc/grpc/tree/master/doc; W3C Trace Context; the Fetch standard (CORS).
"""

from __future__ import annotations

from collections.abc import Iterable

from mesh import trace_context

__all__ = [
    "ATTEMPTS",
    "AUTHORIZATION",
    "BROWSER",
    "CLIENT_ADDRESS",
    "CLIENT_CLAIMS",
    "CLIENT_ONLY",
    "CORS_PREFIX",
    "EXPOSED",
    "GATEWAY_FORWARDED",
    "HOP_BY_HOP",
    "LAMBDA_OWNED",
    "MESH_PREFIXES",
    "NO_RETRY",
    "PROPAGATED",
    "PUSHBACK",
    "REQUEST_PREFIXES",
    "RESERVED",
    "RESPONSE_OWNED",
    "RETRY",
    "SERVER",
    "TRACERESPONSE",
    "TRACE_ID",
    "TRANSPORT",
    "UNTRAILED",
    "Headers",
    "etag_matches",
    "is_owned",
    "is_reserved",
    "is_settable",
    "without_owned",
]

Headers = list[tuple[bytes, bytes]]

# -- connection and message --

HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
"""Headers of one connection (RFC 9110, 7.6.1; RFC 9113, 8.2.2): each hop writes its own."""

RESERVED = HOP_BY_HOP | {
    b"accept-encoding", b"content-encoding", b"content-length", b"content-type", b"expect", b"host",
}  # fmt: skip
"""Headers that are no metadata of a call: ``HOP_BY_HOP``, and those that describe one HTTP message."""

UNTRAILED = frozenset({
    b"authorization", b"cache-control", b"content-language", b"content-location", b"content-range", b"etag",
    b"expires", b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since",
    b"last-modified", b"pragma", b"proxy-authenticate", b"proxy-authorization", b"www-authenticate",
})  # fmt: skip
"""Headers that no server writes as trailers: they mean nothing after a message (RFC 9110, 6.5.1)."""

# -- gRPC --

TRANSPORT = RESERVED | {
    b"user-agent", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"grpc-status", b"grpc-message",
    b"grpc-message-type", b"grpc-status-details-bin",
}  # fmt: skip
"""Headers that a gRPC channel writes itself and never passes on. Other ``grpc-`` names are metadata, such as
``grpc-server-stats-bin`` of another server."""

ATTEMPTS = b"grpc-previous-rpc-attempts"
"""Request header of a retry: attempts before this one (gRPC proposal A6). grpcio does not send it for its caller."""

RETRY = b"mesh-retry"
"""Request header of a retry, and of the calls that a function makes while it answers one: they are not retried."""

AUTHORIZATION = b"authorization"
"""Request header with the credentials of a user, or an API key."""

CLIENT_ADDRESS = b"mesh-client-address"
"""Request header between components: the address of the edge's client, for whom the call is made."""

PUSHBACK = b"grpc-retry-pushback-ms"
"""Trailer: milliseconds that the server asks a client to wait before a retry; negative: no retry (proposal A6)."""

NO_RETRY = (PUSHBACK, b"-1")
"""Trailer of a call that must not be retried, because it was retried in vain further down the chain of calls."""

_GRPC_PREFIXES = (b":", b"grpc-")


def is_reserved(name: bytes) -> bool:
    """Whether a header belongs to the transport, so that it is no metadata of a call."""
    return name in RESERVED or name.startswith(_GRPC_PREFIXES)


# -- requests --

MESH_PREFIXES = (b"grpc-", b"mesh-")
"""Prefixes of the request headers that gRPC and the mesh write. The edge passes none on from a client."""

REQUEST_PREFIXES = (b":", b"proxy-", *MESH_PREFIXES)
"""``MESH_PREFIXES``, and the prefixes of request headers that belong to one connection."""

PROPAGATED = frozenset({b"authorization"}) | trace_context.REQUEST_HEADERS
"""Request headers that the mesh passes on under rules of its own."""

CLIENT_CLAIMS = frozenset({
    b"authorization", b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port",
    b"x-forwarded-proto", b"x-real-ip",
})  # fmt: skip
"""Request headers in which a client names its identity and address. The edge establishes both itself."""

BROWSER = frozenset({
    b"content-type", b"content-length", b"accept", b"accept-language", b"cache-control", b"cookie", b"dnt", b"origin",
    b"pragma", b"priority", b"referer", b"upgrade-insecure-requests", b"x-grpc-web", b"x-requested-with",
    b"x-user-agent",
})  # fmt: skip
"""Request headers that a browser sends on its own account, beside ``sec-*``. A function does not see them as metadata
of a gRPC-Web or Connect call."""

GATEWAY_FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-port", b"x-forwarded-proto"})
"""The part of ``CLIENT_CLAIMS`` that API Gateway writes itself. It hands the others to a Lambda handler as sent."""

CLIENT_ONLY = RESERVED | {b"proxy-authenticate", b"proxy-authorization", b"user-agent"}
"""Request headers that ``[edge] metadata`` must not name: they mean nothing behind the edge."""

# -- responses --

TRACE_ID = b"x-trace-id"
TRACERESPONSE = b"traceresponse"
"""The server span, written as a ``traceparent`` (a draft of Trace Context Level 2)."""

CORS_PREFIX = b"access-control-"

SERVER = frozenset({b"date", b"server"})
"""Response headers that the HTTP server writes."""

_EVERY_RESPONSE = frozenset({b"date", b"ratelimit", b"ratelimit-policy", TRACE_ID, TRACERESPONSE})
"""Response headers that the edge or its server can write to every response, also to that of a Lambda handler."""

RESPONSE_OWNED = TRANSPORT | SERVER | _EVERY_RESPONSE | {
    b"accept-post", b"allow", b"www-authenticate", b"x-accel-buffering", b"x-content-type-options",
}  # fmt: skip
"""Response headers that only the mesh writes, besides those of ``is_owned``'s prefixes.

Other ``grpc-`` names are not among them: another server may address them to the client, such as
``grpc-retry-pushback-ms`` (gRPC proposal A6)."""

LAMBDA_OWNED = HOP_BY_HOP | _EVERY_RESPONSE | {b"content-length"}
"""The part of ``RESPONSE_OWNED`` that a Lambda handler cannot set.

Its result is a whole HTTP response, as behind API Gateway. So it writes the headers that describe the body or explain
a refusal: ``content-type``, ``content-encoding``, ``allow``, ``www-authenticate``, ``x-content-type-options``."""

_SETTABLE = frozenset({
    b"cache-control", b"content-disposition", b"content-language", b"content-location", b"deprecation", b"etag",
    b"expires", b"last-modified", b"link", b"location", b"retry-after", b"set-cookie", b"sunset", b"vary",
})  # fmt: skip

_OWNED_PREFIXES = (b":", CORS_PREFIX)

EXPOSED = (
    TRACE_ID, TRACERESPONSE, b"grpc-status", b"grpc-message", b"grpc-status-details-bin", b"connect-content-encoding",
    b"location", b"retry-after", b"ratelimit", b"ratelimit-policy", b"etag", b"link", b"content-disposition",
)  # fmt: skip
"""Response headers that pages of other origins may read, besides those that they always may."""


def is_owned(name: bytes) -> bool:
    """Whether only the mesh may write a response header."""
    return name in RESPONSE_OWNED or name.startswith(_OWNED_PREFIXES)


def is_settable(name: bytes) -> bool:
    """Whether a function may set a header of the HTTP response. Its other response metadata stays inside the mesh."""
    return name in _SETTABLE or (name.startswith(b"x-") and not name.endswith(b"-bin") and name not in RESPONSE_OWNED)


def without_owned(pairs: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return response metadata without what only the mesh may write."""
    return [pair for pair in pairs if not is_owned(pair[0])]


def etag_matches(if_none_match: bytes | None, etag: bytes) -> bool:
    """Whether ``If-None-Match`` names an entity tag, by the weak comparison (RFC 9110, 13.1.2).

    Args:
        if_none_match: The header, or None.
        etag: The tag of the response, weak or strong.
    """
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix(b"W/") for tag in if_none_match.split(b",")]
    return if_none_match.strip() == b"*" or etag.removeprefix(b"W/") in tags

"""Requests of the Connect protocol: recognized by media type, and their headers or query parsed. Pure.

A request that is malformed has a ``refusal``. It becomes a call all the same, so that its error passes the layers.

Source: https://connectrpc.com/docs/protocol/ (Unary-Request, Unary-Get-Request, Streaming-Request).
"""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from mesh.call import Metadata
from mesh.content_coding import CODINGS
from mesh.errors import InvalidArgument, StatusError, Unimplemented
from mesh.headers import BROWSER, is_reserved
from mesh.media_types import JSON, is_utf8, media_type
from mesh.rpc.server.inbound_call import MAX_HEADER_FIELDS, too_many_fields

if TYPE_CHECKING:
    from mesh.asgi import Scope
    from mesh.contract.model import Method

__all__ = [
    "PROTOCOL_VERSION",
    "ConnectRequest",
    "is_connect_type",
    "is_marked",
    "media_types",
    "read",
    "takes",
    "verbs",
]

PROTOCOL_VERSION = b"connect-protocol-version"
"""Header that names a POST as Connect's. Generated clients send it, and people with curl need not."""

_PROTO = "application/proto"
_STREAM_PREFIX = "application/connect+"
_UNARY_TYPES = (JSON, _PROTO)
_STREAM_TYPES = (f"{_STREAM_PREFIX}json", f"{_STREAM_PREFIX}proto")
_TYPES = frozenset((*_UNARY_TYPES, *_STREAM_TYPES))
_ENCODINGS = ("json", "proto")

_RESERVED_PREFIXES = (b"connect-", b"sec-")
"""Prefixes of request headers that are no metadata of a call, besides those of ``mesh.headers.is_reserved``."""

_TIMEOUT = re.compile(rb"[0-9]{1,10}(?:\.[0-9]*)?\Z")
"""The protocol has whole milliseconds. connect-es sends the fraction of a timeout that a program has computed."""
_MAX_PARAMETERS = 100
_CACHED_VALUES = 128


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """Parsed request of a Connect call.

    Attributes:
        method: The method.
        metadata: The caller's metadata, without the headers of the protocol and of browsers.
        json: Whether messages are JSON; else they are serialized.
        enveloped: Whether messages are enveloped, as in every stream.
        message: Request message of a GET, as it stands in the query; None: it is in the body.
        coding: Content coding of the request; ``""``: none.
        response_coding: Content coding of the response; ``""``: none.
        timeout: Seconds; None: no timeout.
        if_none_match: The header of a GET.
        refusal: Status of a request that cannot be served, or None.
        refusal_status: HTTP status of the refusal; 0: that of its code.
        refusal_headers: Headers of the refusal.
    """

    method: Method
    metadata: Metadata
    json: bool
    enveloped: bool = False
    message: bytes | None = None
    coding: str = ""
    response_coding: str = ""
    timeout: float | None = None
    if_none_match: bytes | None = None
    refusal: StatusError | None = None
    refusal_status: int = 0
    refusal_headers: tuple[tuple[bytes, bytes], ...] = ()


# -- recognition --


def media_types(method: Method) -> tuple[str, ...]:
    """Return the media types of Connect requests for a method."""
    return _STREAM_TYPES if method.client_streaming or method.server_streaming else _UNARY_TYPES


def verbs(method: Method) -> tuple[str, ...]:
    """Return the HTTP methods of Connect requests for a method."""
    return ("GET", "POST") if method.safe and media_types(method) is _UNARY_TYPES else ("POST",)


def takes(method: Method, verb: str, content_type: bytes) -> bool:
    """Whether a request to the path of a method is a Connect call: its media type fits the method, or it is a GET."""
    if verb == "POST":
        return media_type(content_type) in media_types(method) and is_utf8(content_type)
    return verb in verbs(method)


def is_connect_type(content_type: bytes) -> bool:
    """Whether a ``content-type`` is that of Connect calls of some method."""
    return media_type(content_type) in _TYPES


def is_marked(scope: Scope) -> bool:
    """Whether a request says that it is a Connect call, whatever its path is.

    A POST says so by its media type for streams or by the protocol version, a GET by ``connect=v1``.
    """
    if scope["method"] == "GET":
        return any(part.startswith(b"connect=") for part in scope["query_string"].split(b"&"))
    return scope["method"] == "POST" and any(
        name == PROTOCOL_VERSION or (name == b"content-type" and media_type(value).startswith(_STREAM_PREFIX))
        for name, value in scope["headers"]
    )


# -- parsing --


def read(scope: Scope, metadata: Metadata, method: Method, refusal: StatusError | None = None) -> ConnectRequest:
    """Return the parsed request of a Connect call.

    Args:
        scope: The request.
        metadata: Its headers.
        method: The method.
        refusal: Status of a request whose path is not served.
    """
    pairs = [pair for pair in metadata.pairs if not _is_transport(pair[0])]
    kind = media_type(metadata.wire(b"content-type"))
    fields: dict[str, Any] = {"method": method, "metadata": Metadata.from_wire(pairs)}
    get = scope["method"] == "GET"
    fields |= {"json": get or kind.endswith("json"), "enveloped": not get and kind.startswith(_STREAM_PREFIX)}
    try:
        if len(pairs) > MAX_HEADER_FIELDS:
            fields["metadata"] = Metadata()
            raise too_many_fields()
        if refusal is not None:
            raise refusal
        if get:
            _read_query(scope["query_string"], metadata, fields)
        else:
            _read_headers(metadata, fields)
        fields["timeout"] = _timeout(metadata.wire(b"connect-timeout-ms"))
    except StatusError as error:
        fields["refusal"] = error
        if error is refusal:
            fields["refusal_status"] = 404
    return ConnectRequest(**fields)


def _is_transport(name: bytes) -> bool:
    return name in BROWSER or is_reserved(name) or name.startswith(_RESERVED_PREFIXES)


def _read_headers(metadata: Metadata, fields: dict[str, Any]) -> None:
    version = metadata.wire(PROTOCOL_VERSION)
    if version is not None and version != b"1":
        raise InvalidArgument(f"{PROTOCOL_VERSION.decode()} is {_shown(version)}; version 1 is spoken here")
    prefix = b"connect-" if fields["enveloped"] else b""
    coding = _coding(metadata.wire(prefix + b"content-encoding"), fields, prefix)
    accepted = metadata.wire(prefix + b"accept-encoding")
    fields["coding"] = coding
    fields["response_coding"] = coding if accepted is None else _first_known(accepted)


def _read_query(query: bytes, metadata: Metadata, fields: dict[str, Any]) -> None:
    parameters = _parameters(query)
    version = parameters.get("connect")
    if version is not None and version != b"v1":
        raise InvalidArgument(f"query parameter 'connect' is {_shown(version)}; v1 is spoken here")
    encoding = parameters.get("encoding", b"").decode("latin-1")
    if encoding not in _ENCODINGS:
        if encoding:
            fields["refusal_status"] = 415
            fields["refusal_headers"] = ((b"accept-post", ", ".join(_UNARY_TYPES).encode()),)
        raise InvalidArgument(f"query parameter 'encoding' is {encoding[:100]!r}; json or proto is needed")
    fields["json"] = encoding == "json"
    message = parameters.get("message")
    if message is None:
        raise InvalidArgument("query parameter 'message' is missing; it is the request message")
    if parameters.get("base64") == b"1":
        message = _from_base64(message)
    coding = _coding(parameters.get("compression"), fields, b"")
    accepted = metadata.wire(b"accept-encoding")
    fields["message"] = message
    fields["coding"] = coding
    fields["response_coding"] = coding if accepted is None else _first_known(accepted)
    fields["if_none_match"] = metadata.wire(b"if-none-match")


def _parameters(query: bytes) -> dict[str, bytes]:
    """Return the parameters of a query (application/x-www-form-urlencoded), of equal names the first.

    Raises:
        InvalidArgument: There are too many.
    """
    try:
        pairs = parse_qsl(
            query.decode("latin-1"), keep_blank_values=True, encoding="latin-1", max_num_fields=_MAX_PARAMETERS
        )
    except ValueError:
        raise InvalidArgument(f"the query has more than {_MAX_PARAMETERS} parameters") from None
    return {name: value.encode("latin-1") for name, value in reversed(pairs)}


def _from_base64(text: bytes) -> bytes:
    """Return the bytes of URL-safe base64 (RFC 4648, 5), with or without padding.

    Raises:
        InvalidArgument: It is malformed.
    """
    text = text.rstrip(b"=")
    try:
        return b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise InvalidArgument("query parameter 'message' is not URL-safe base64, and 'base64' is 1") from None


def _coding(value: bytes | None, fields: dict[str, Any], prefix: bytes) -> str:
    """Return the content coding of a request; ``""`` for none.

    Raises:
        Unimplemented: It is not known.
    """
    name = (value or b"").strip().lower().decode("latin-1")
    if name in ("", "identity"):
        return ""
    if name not in CODINGS:
        known = ", ".join((*CODINGS, "identity"))
        fields["refusal_headers"] = ((prefix + b"accept-encoding", known.encode()),)
        raise Unimplemented(f"the content coding {name[:100]!r} is not understood; {known} are")
    return name


@lru_cache(_CACHED_VALUES)
def _first_known(accepted: bytes) -> str:
    """Return the first content coding of an ``accept-encoding`` that is known; ``""`` for none.

    The protocol reads the header as an ordered list. Of quality values only 0 is honoured, which forbids a coding.
    """
    for part in accepted.decode("latin-1").lower().split(","):
        name, _, parameters = part.partition(";")
        if name.strip() in CODINGS and not re.fullmatch(r"q=0(?:\.0*)?", parameters.replace(" ", "")):
            return name.strip()
    return ""


def _timeout(value: bytes | None) -> float | None:
    """Return the seconds of a ``connect-timeout-ms``.

    Raises:
        InvalidArgument: It is no number of at most ten digits.
    """
    if value is None:
        return None
    if not _TIMEOUT.match(value):
        raise InvalidArgument(f"connect-timeout-ms is {_shown(value)}; milliseconds of up to ten digits are needed")
    return float(value) / 1000


def _shown(value: bytes) -> str:
    return repr(value[:100].decode("latin-1"))

"""HTTP responses: content negotiation, the head of every response, complete bodies and error bodies.

Every response of the transcoder passes here: one message, a ``google.api.HttpBody``, the head of a stream
(``mesh.edge.http.streaming`` writes its body), the result of a Lambda function, an error. Response headers are those of
the body, then those of ``call.headers``: what layers have added, and what a function may set (``forward_headers``).

Sources: RFC 9110; RFC 8259.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import orjson

from mesh import content_coding
from mesh.edge import refusals
from mesh.edge.http import negotiation
from mesh.edge.http.negotiation import Form
from mesh.edge.http.status_json import status_json
from mesh.errors import Internal, InvalidArgument, http_status
from mesh.headers import Headers, is_settable
from mesh.media_types import JSON, OCTET_STREAM, is_compressible
from mesh.message_methods import descriptor_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message

    from mesh.call import Call
    from mesh.edge.calls import HttpCall
    from mesh.edge.http.transcoder import Transcoder
    from mesh.errors import StatusError

__all__ = [
    "JSON_HEADERS", "ResponseFormat", "content_type_of", "forward_headers", "head", "negotiate", "send", "send_error",
    "send_message",
]  # fmt: skip

_NOSNIFF = (b"x-content-type-options", b"nosniff")
JSON_HEADERS: Headers = [(b"content-type", JSON.encode()), _NOSNIFF]
_VARY_ENCODING = (b"vary", b"accept-encoding")
_VARY_ACCEPT = (b"vary", b"accept")
_VARY_BOTH = (b"vary", b"accept, accept-encoding")
_SHORT_JSON: Headers = [*JSON_HEADERS, _VARY_ACCEPT]

_NO_CONTENT, _RESET_CONTENT, _NOT_MODIFIED = 204, 205, 304
_WITHOUT_CONTENT = frozenset((_NO_CONTENT, _RESET_CONTENT))
"""Statuses of a success whose response has no body (RFC 9110, 15.3.5 and 15.3.6)."""
_WITHOUT_LENGTH = frozenset((_NO_CONTENT, _NOT_MODIFIED))
"""Statuses whose responses have neither body nor ``content-length`` (RFC 9110, 8.6)."""

_UNAUTHORIZED = 401
_DEFAULT_RETRY_AFTER = {429: b"1", 503: b"1"}
"""HTTP status → ``retry-after`` in seconds, for an error without ``google.rpc.RetryInfo``."""

_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*(?:;[ -~]*)?")
_UNARY_FORMS = (Form.JSON, Form.PROTOBUF)
_STREAM_FORMS = (Form.JSON, Form.LINES, Form.EVENTS)


# -- negotiation --


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """Negotiated format of a response.

    Attributes:
        form: The form of its messages.
        media_type: Its media type; ``""`` for MEDIA, where each ``HttpBody`` names its own.
        numbers: Enums as numbers.
        pretty: JSON over several lines.
    """

    form: Form
    media_type: str
    numbers: bool = False
    pretty: bool = False


_JSON_FORMAT = ResponseFormat(Form.JSON, JSON)
_MEDIA_FORMAT = ResponseFormat(Form.MEDIA, "")


def negotiate(call: HttpCall, transcoder: Transcoder) -> ResponseFormat:
    """Return the format that the client asks for by ``$alt``, else by ``Accept``.

    Raises:
        StatusError: 400 for an ``$alt`` that the method does not have, 406.
    """
    accepts = [value for name, value in call.metadata.pairs if name == b"accept"]
    query = call.query
    parameters = negotiation.system_parameters(query) if query else negotiation.NO_PARAMETERS
    if parameters.form is None and transcoder.gives_media:
        return _MEDIA_FORMAT
    streams = transcoder.method.server_streaming
    if parameters is negotiation.NO_PARAMETERS and not streams and (not accepts or accepts == [b"*/*"]):
        return _JSON_FORMAT  # the usual request
    offered: tuple[Form, ...] = _STREAM_FORMS if streams else _UNARY_FORMS
    if not transcoder.gives_protobuf:
        offered = tuple(form for form in offered if form is not Form.PROTOBUF)
    if parameters.form is not None:
        media = transcoder.gives_media and parameters.form is Form.MEDIA
        if not media and parameters.form not in offered:
            names = " or ".join(form.value for form in offered)
            raise InvalidArgument(f"query parameter '$alt': this method answers with {names}")
        media_type = "" if media else parameters.form.value
        return ResponseFormat(parameters.form, media_type, parameters.numbers, parameters.pretty)
    chosen = negotiation.choose(b",".join(accepts), offered)
    if chosen is None:
        raise refusals.unacceptable(call, [form.value for form in offered])
    return ResponseFormat(chosen[0], chosen[1], parameters.numbers, parameters.pretty)


# -- heads --


def forward_headers(call: HttpCall, upstream: Call) -> None:
    """Add the response metadata of a function to the response, without what a function may not set."""
    call.headers += [pair for pair in upstream.headers if is_settable(pair[0])]


def head(call: HttpCall, media_type: str, form: Form, size: int | None = None) -> tuple[Headers, str]:
    """Return the headers that describe the body of a response, and its content coding (``""``: none).

    ``call.headers`` are changed where they depend on the coding.

    Args:
        call: The request.
        media_type: Media type of the body.
        form: Form of its messages.
        size: Bytes of the body; None for a stream.
    """
    headers: Headers = [(b"content-type", media_type.encode()), _NOSNIFF]
    if (size is None or size >= content_coding.MIN_SIZE) and _may_compress(call, media_type):
        headers.append(_VARY_ENCODING if form is Form.MEDIA else _VARY_BOTH)
        coding = negotiation.content_coding(call.metadata.wire(b"accept-encoding"), content_coding.CODINGS)
        if coding:
            headers.append((b"content-encoding", coding.encode()))
            # Other bytes are another representation, of which a strong validator is not true (RFC 9110, 8.8.3.3).
            call.headers[:] = [
                (name, b"W/" + value if name == b"etag" and not value.startswith(b"W/") else value)
                for name, value in call.headers
            ]
        return headers, coding
    if size is not None and form is not Form.MEDIA:
        headers.append(_VARY_ACCEPT)
    return headers, ""


def _may_compress(call: HttpCall, media_type: str) -> bool:
    if not is_compressible(media_type.partition(";")[0].strip().lower()):
        return False
    return not any(
        name == b"content-encoding" or (name == b"cache-control" and b"no-transform" in value.lower())
        for name, value in call.headers
    )


# -- complete responses --


async def send(call: HttpCall, status: int, headers: Headers, body: bytes) -> None:
    """Send a complete response.

    Args:
        call: The request; its ``headers`` are sent too.
        status: The HTTP status.
        headers: Headers that describe the body, without its length.
        body: The body; empty for a status that has none.
    """
    if status not in _WITHOUT_LENGTH:
        headers = [*headers, (b"content-length", b"%d" % len(body))]
    await call.answer(status, [*headers, *call.headers], body)


async def send_message(
    call: HttpCall, transcoder: Transcoder, response_format: ResponseFormat, message: bytes, status: int = 200
) -> None:
    """Send one response message.

    Raises:
        Internal: The function named a malformed media type.
    """
    if status in _WITHOUT_CONTENT:
        await send(call, status, [], b"")
        return
    form = response_format.form
    if form is Form.MEDIA:
        media_type, body = transcoder.media(message)
        media_type = content_type_of(media_type)
    else:
        media_type = response_format.media_type
        body = transcoder.response(message, form, numbers=response_format.numbers, pretty=response_format.pretty)
    del message  # the body may be as large, and its client slow
    if len(body) < content_coding.MIN_SIZE and response_format is _JSON_FORMAT:
        await call.answer(status, [*_SHORT_JSON, (b"content-length", b"%d" % len(body)), *call.headers], body)
        return
    headers, coding = head(call, media_type, form, len(body))
    if coding and len(body) >= content_coding.THREAD_SIZE:
        body = await asyncio.to_thread(content_coding.compress, coding, body)
    elif coding:
        body = content_coding.compress(coding, body)
    await send(call, status, headers, body)


def content_type_of(media_type: str) -> str:
    """Return the ``content-type`` for the media type of an ``HttpBody``.

    Raises:
        Internal: It is malformed.
    """
    if not media_type:
        return OCTET_STREAM
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise Internal("the service returned a malformed media type")
    return media_type.rstrip()


# -- errors --


async def send_error(call: HttpCall, error: StatusError) -> None:
    """Send an error as ``google.rpc.Status``, with the headers that belong to its HTTP status.

    Args:
        call: The request. Its ``status`` is used if it is set.
        error: The status.
    """
    status = call.status or http_status(error.code)
    if status == _UNAUTHORIZED:  # RFC 9110, 15.5.2
        call.headers.append((b"www-authenticate", b"Bearer"))
    if status in _DEFAULT_RETRY_AFTER and not any(name == b"retry-after" for name, _ in call.headers):
        call.headers.append((b"retry-after", _retry_after(error.details) or _DEFAULT_RETRY_AFTER[status]))
    await send(call, status, JSON_HEADERS, orjson.dumps(status_json(error, call.method)))


def _retry_after(details: Iterable[Message]) -> bytes | None:
    for detail in details:
        if descriptor_of(detail).full_name == "google.rpc.RetryInfo":
            delay: Any = detail.retry_delay  # type: ignore[attr-defined]
            return b"%d" % max(1, ceil(delay.seconds + delay.nanos / 1e9))
    return None

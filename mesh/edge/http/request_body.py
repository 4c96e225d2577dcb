"""Request messages from the body: one for a unary request, a sequence for a stream; plain or gzip, within a limit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mesh.edge import refusals
from mesh.edge.http import negotiation
from mesh.edge.http.json_stream import Lines, TooLarge, Values
from mesh.edge.http.negotiation import Form
from mesh.edge.http.stream_coding import PIECE_SIZE, Gunzip
from mesh.errors import Code, InvalidArgument
from mesh.media_types import JSON, NDJSON, PROTOBUF, is_utf8, media_type

if TYPE_CHECKING:
    from mesh.edge.calls import HttpCall
    from mesh.edge.http.transcoder import Transcoder

__all__ = ["RequestMessages", "read_request"]

_JSON = JSON.encode()


def _form_of(call: HttpCall, transcoder: Transcoder) -> Form | None:
    """Return the form of the body by its ``content-type``; None without one.

    Raises:
        StatusError: 415, for a type that the route does not take.
    """
    value = call.metadata.wire(b"content-type")
    if transcoder.takes_media:
        return Form.MEDIA
    if value is None:
        return None
    if value == _JSON:
        return Form.JSON
    streams = transcoder.method.client_streaming
    form = negotiation.form_of(media_type(value))
    taken = {
        Form.JSON: is_utf8(value),
        Form.LINES: streams and is_utf8(value),
        Form.PROTOBUF: transcoder.takes_protobuf and not streams,
    }
    if form is not None and taken.get(form):
        return form
    if call.metadata.wire(b"content-length") == b"0":
        return None
    if streams:
        text = f"the body must be JSON messages: send `content-type: {NDJSON}`"
    elif form is Form.PROTOBUF or not transcoder.takes_protobuf:
        text = f"the body must be JSON: send `content-type: {JSON}`"
    else:
        text = f"the body must be JSON (`content-type: {JSON}`) or a message (`{PROTOBUF}`)"
    raise refusals.unsupported_media(call, text)


def _gunzip(call: HttpCall) -> Gunzip | None:
    """Return the decompressor of the body; None if the body is not compressed.

    Raises:
        StatusError: 415, for another coding than gzip.
    """
    value = call.metadata.wire(b"content-encoding")
    if value is None:
        return None
    name = value.strip().lower()
    if name in (b"gzip", b"x-gzip"):
        return Gunzip()
    if name in (b"identity", b""):
        return None
    call.headers.append((b"accept-encoding", b"gzip"))  # RFC 9110, 12.5.3
    raise refusals.unsupported_media(
        call, "the body may be compressed with gzip only: send `content-encoding: gzip`, or none"
    )


async def read_request(
    call: HttpCall, transcoder: Transcoder, values: tuple[str, ...], limit: int, body_timeout: float | None
) -> bytes:
    """Return the serialized request message of a method with one request.

    Args:
        call: The request.
        transcoder: The transcoder of the route.
        values: Texts of the path variables.
        limit: Largest body, compressed and decompressed, bytes.
        body_timeout: Seconds that reading the body may take; None: no limit.

    Raises:
        StatusError: 400, 408, 413 or 415.
    """
    if not transcoder.has_body:
        return transcoder.request(values, call.query, b"")
    call.check_content_length(limit)
    form = _form_of(call, transcoder)
    gunzip = _gunzip(call)
    body = await call.read_body(limit, body_timeout)
    if gunzip is not None:
        body = _decompressed(call, gunzip, body, limit)
        call.hold_request(len(body))
    if form is None and body:
        raise refusals.unsupported_media(call, f"the body has no media type: send `content-type: {JSON}`")
    content_type = call.metadata.wire(b"content-type") or b""
    return transcoder.request(values, call.query, body, form or Form.JSON, content_type)


def _decompressed(call: HttpCall, gunzip: Gunzip, data: bytes, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    for piece in gunzip.feed(data):
        parts.append(piece)
        size += len(piece)
        if size > limit:
            raise call.body_too_large(limit)
    gunzip.end()
    return b"".join(parts)


class RequestMessages:
    """Messages of a request stream, parsed while its body comes in. The body is read no faster than they are taken.

    Args:
        call: The request.
        transcoder: The transcoder of the route.
        values: Texts of the path variables. They and the query are part of the first message.
        limit: Largest message as it stands in the body, bytes.
        ended: Called when the body is complete.

    Raises:
        StatusError: 415.
    """

    def __init__(
        self,
        call: HttpCall,
        transcoder: Transcoder,
        values: tuple[str, ...],
        limit: int,
        ended: Callable[[], None],
    ) -> None:
        call.expect_messages()
        self._call = call
        self._transcoder = transcoder
        self._values: tuple[str, ...] | None = values
        self._limit = limit
        self._ended = ended
        self._form = _form_of(call, transcoder)
        self._content_type = call.metadata.wire(b"content-type") or b""
        self._gunzip = _gunzip(call)
        self._parser = Lines(limit) if self._form is Form.LINES else Values(limit)
        self._pieces: Iterator[bytes] = iter(())
        self._ready: deque[bytes] = deque()
        self._complete = False
        self._count = 0

    async def receive(self) -> bytes | None:
        """Return the next message, or None after the last.

        Raises:
            StatusError: 400 with the number of the message, 413.
        """
        try:
            while not self._ready:
                if self._complete:
                    return None
                await self._fill()
        except TooLarge:
            text = f"message {self._count + 1} of the request is larger than {self._limit} bytes"
            raise self._call.http_error(413, Code.OUT_OF_RANGE, text) from None
        message = self._message(self._ready.popleft())
        if not self._ready:
            self._call.release_request(incomplete=self._parser.pending)
        return message

    async def _fill(self) -> None:
        piece = next(self._pieces, None)
        if piece is not None:
            self._take(piece)
            return
        chunk = await self._call.read_chunk()
        if chunk is not None:
            self._pieces = _sliced(chunk) if self._gunzip is None else self._gunzip.feed(chunk)
            return
        self._complete = True
        if self._gunzip is not None:
            self._gunzip.end()
        if self._form is not Form.MEDIA:
            self._ready.extend(self._parser.end())
        if not self._count and not self._ready and (self._values or self._form is Form.MEDIA):
            self._ready.append(b"")  # the path variables must reach the function
        self._ended()

    def _take(self, piece: bytes) -> None:
        if self._form is Form.MEDIA:
            self._ready.append(piece)
        elif self._form is not None:
            if self._gunzip is not None:
                self._call.hold_request(len(piece))
            self._ready.extend(self._parser.feed(piece))
            if not self._ready and not self._parser.pending:  # white space
                self._call.release_request()
        elif piece:
            text = f"the body has no media type: send `content-type: {NDJSON}`"
            raise refusals.unsupported_media(self._call, text)

    def _message(self, text: bytes) -> bytes:
        values, self._values = self._values, None
        first = values is not None
        self._count += 1
        if self._form is Form.MEDIA:  # only the first part has a content type (google/api/httpbody.proto)
            return self._transcoder.request(
                values, self._call.query if first else b"", text, Form.MEDIA, self._content_type if first else b""
            )
        try:
            return self._transcoder.request(values, self._call.query if first else b"", text)
        except InvalidArgument as error:
            raise InvalidArgument(f"message {self._count}: {error.message}", details=error.details) from None


def _sliced(chunk: bytes) -> Iterator[bytes]:
    for start in range(0, len(chunk), PIECE_SIZE):
        yield chunk[start : start + PIECE_SIZE]

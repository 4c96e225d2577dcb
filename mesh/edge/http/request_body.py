"""The request body: whole for a unary request, message by message for a stream; plain or in gzip, within a limit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mesh.edge import refusals
from mesh.edge.http import negotiation
from mesh.edge.http.content_coding import PIECE, Gunzip
from mesh.edge.http.json_stream import Lines, TooLarge, Values
from mesh.edge.http.negotiation import Form
from mesh.errors import Code, InvalidArgument
from mesh.media_types import media_type

if TYPE_CHECKING:
    from mesh.edge.call import HttpCall
    from mesh.edge.http.transcoder import Transcoder

__all__ = ["Requests", "form_of", "read"]


def form_of(call: HttpCall, transcoder: Transcoder) -> Form | None:
    """Return how the body is written, by its ``content-type``; None if there is no ``content-type``.

    Raises:
        StatusError: 415, for a type that this route does not take.
    """
    value = call.metadata.wire(b"content-type")
    if transcoder.takes_media:
        return Form.MEDIA
    if value is None:
        return None
    if value == b"application/json":
        return Form.JSON
    streams = transcoder.method.client_streaming
    form = negotiation.form_of(media_type(value))
    taken = {
        Form.JSON: _utf8(value),
        Form.LINES: streams and _utf8(value),
        Form.PROTOBUF: transcoder.takes_protobuf and not streams,
    }
    if form is not None and taken.get(form):
        return form
    if call.metadata.wire(b"content-length") == b"0":
        return None
    if streams:
        text = "the body must be JSON messages: send `content-type: application/x-ndjson`"
    elif form is Form.PROTOBUF or not transcoder.takes_protobuf:
        text = "the body must be JSON: send `content-type: application/json`"
    else:
        text = "the body must be JSON (`content-type: application/json`) or a message (`application/x-protobuf`)"
    raise refusals.unsupported_media(call, text)


def _utf8(media: bytes) -> bool:
    """Whether it is in UTF-8, if it says anything of it."""
    for parameter in media.lower().split(b";")[1:]:
        name, _, value = parameter.partition(b"=")
        if name.strip() == b"charset" and value.strip().strip(b'"') not in (b"utf-8", b"utf8"):
            return False
    return True


def _gunzip(call: HttpCall) -> Gunzip | None:
    """Return what unpacks the body; None if it is not packed.

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
        call, "the body may be packed in gzip only: send `content-encoding: gzip`, or none"
    )


async def read(call: HttpCall, transcoder: Transcoder, limit: int, seconds: float | None) -> tuple[bytes, Form]:
    """Return the whole body (empty if there is none) and how it is written.

    Args:
        call: The request.
        transcoder: Of its route.
        limit: Largest body, packed and unpacked, bytes.
        seconds: How long it may take; None: as long as it likes.

    Raises:
        StatusError: 400, 408, 413 or 415.
    """
    length = call.metadata.wire(b"content-length")
    if length is not None and length.isdigit() and int(length) > limit:
        raise refusals.too_large(call, limit)
    form = form_of(call, transcoder)
    gunzip = _gunzip(call)
    try:
        body = await call.read(limit, seconds)
    except TimeoutError:
        raise refusals.too_slow(call) from None
    if body is not None and gunzip is not None:
        body = _unpacked(gunzip, body, limit)
    if body is None:
        raise refusals.too_large(call, limit)
    if body and form is None:
        raise refusals.unsupported_media(call, "the body has no media type: send `content-type: application/json`")
    return body, form or Form.JSON


def _unpacked(gunzip: Gunzip, data: bytes, limit: int) -> bytes | None:
    parts: list[bytes] = []
    size = 0
    for piece in gunzip.feed(data):
        parts.append(piece)
        size += len(piece)
        if size > limit:
            return None
    gunzip.end()
    return b"".join(parts)


class Requests:
    """The messages of a request stream, made while its body comes in; it reads no faster than they are taken.

    Args:
        call: The request.
        transcoder: Of its route.
        values: Texts of the path variables: they and the query go into the first message.
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
        self._call = call
        self._transcoder = transcoder
        self._values: tuple[str, ...] | None = values
        self._limit = limit
        self._ended = ended
        self._form = form_of(call, transcoder)
        self._kind = call.metadata.wire(b"content-type") or b""
        self._gunzip = _gunzip(call)
        self._cut = Lines(limit) if self._form is Form.LINES else Values(limit)
        self._pieces: Iterator[bytes] = iter(())
        self._ready: deque[bytes] = deque()
        self._over = False
        self._count = 0

    async def receive(self) -> bytes | None:
        """Return the next message, or None after the last.

        Raises:
            StatusError: 400 with the number of the message, 413.
        """
        try:
            while not self._ready:
                if self._over:
                    return None
                await self._fill()
        except TooLarge:
            text = f"message {self._count + 1} of the request is larger than {self._limit} bytes"
            raise refusals.refuse(self._call, 413, Code.OUT_OF_RANGE, text) from None
        return self._message(self._ready.popleft())

    async def _fill(self) -> None:
        piece = next(self._pieces, None)
        if piece is not None:
            self._take(piece)
            return
        chunk = await self._call.chunk()
        if chunk is not None:
            self._pieces = _sliced(chunk) if self._gunzip is None else self._gunzip.feed(chunk)
            return
        self._over = True
        if self._gunzip is not None:
            self._gunzip.end()
        if self._form is not Form.MEDIA:
            self._ready.extend(self._cut.end())
        if not self._count and not self._ready and (self._values or self._form is Form.MEDIA):
            self._ready.append(b"")  # what the path says must reach the function
        self._ended()

    def _take(self, piece: bytes) -> None:
        if self._form is Form.MEDIA:
            self._ready.append(piece)
        elif self._form is not None:
            self._ready.extend(self._cut.feed(piece))
        elif piece:
            text = "the body has no media type: send `content-type: application/x-ndjson`"
            raise refusals.unsupported_media(self._call, text)

    def _message(self, text: bytes) -> bytes:
        values, self._values = self._values, None
        first = values is not None
        self._count += 1
        if self._form is Form.MEDIA:  # of a stream's parts only the first says what it is (google/api/httpbody.proto)
            return self._transcoder.request(
                values, self._call.query if first else b"", text, Form.MEDIA, self._kind if first else b""
            )
        try:
            return self._transcoder.request(values, self._call.query if first else b"", text)
        except InvalidArgument as error:
            raise InvalidArgument(f"message {self._count}: {error.message}", details=error.details) from None


def _sliced(chunk: bytes) -> Iterator[bytes]:
    for start in range(0, len(chunk), PIECE):
        yield chunk[start : start + PIECE]

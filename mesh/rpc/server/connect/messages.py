"""Messages of Connect calls: their codecs, and the readers of request bodies.

A reader has the interface of ``mesh.rpc.framing.Deframer``, so that ``InboundCall`` reads either.

Source: https://connectrpc.com/docs/protocol/ (Bare-Message, Enveloped-Message).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from google.protobuf.message import DecodeError

from mesh.asgi import AsgiEvent, Receive
from mesh.content_coding import BadCodingError, decompress
from mesh.errors import Internal, InvalidArgument
from mesh.message_methods import parser
from mesh.message_size import Side, too_large
from mesh.protojson.codec import Codecs
from mesh.protojson.scalars import JsonError
from mesh.protojson.serialized import is_deep, serialized
from mesh.protojson.syntax import JsonSyntaxError
from mesh.protojson.wellknown import JsonEncodeError
from mesh.rpc.framing import PREFIX

if TYPE_CHECKING:
    from mesh.contract.model import Method

__all__ = ["COMPRESSED", "END_STREAM", "BareReader", "EnvelopeReader", "JsonCodec", "QueryReader", "Source", "envelope"]

COMPRESSED = 0b01
"""Flag of an envelope whose message is compressed."""
END_STREAM = 0b10
"""Flag of the last envelope of a response stream."""

Decode: TypeAlias = Callable[[bytes], bytes]
"""Text of a request message → serialized message."""


def envelope(flags: int, data: bytes) -> bytes:
    """Return an enveloped message."""
    return PREFIX.pack(flags, len(data)) + data


class JsonCodec:
    """JSON codec of one method: request text → serialized message, serialized message → response text.

    Args:
        method: The method.
        codecs: The JSON codecs, with their options.
    """

    __slots__ = ("_input", "_output", "_parse_output", "_path")

    def __init__(self, method: Method, codecs: Codecs) -> None:
        self._path = method.path
        self._input = codecs.of(method.input)
        self._output = codecs.of(method.output)
        self._parse_output = parser(method.output)

    def decode(self, text: bytes) -> bytes:
        """Return the serialized message of a JSON text.

        Raises:
            InvalidArgument: With the field and what was expected.
        """
        if not text:
            raise InvalidArgument("the message is empty; the JSON text of a message without fields is {}")
        try:
            message = self._input.parse(text)
        except JsonSyntaxError as error:
            place = f"line {error.line}, column {error.column}"
            raise InvalidArgument(f"the message is not valid JSON: {error.text} ({place})") from None
        except JsonError as error:
            where = error.path or "the message"
            raise InvalidArgument(f"{where}: {error.text}", violations={error.path: error.text}) from None
        return serialized(message, deep=is_deep(text))

    def encode(self, message: bytes) -> bytes:
        """Return the JSON text of a serialized message.

        Raises:
            Internal: It has no JSON form.
        """
        try:
            return self._output.print(self._parse_output(message))
        except (JsonEncodeError, DecodeError) as error:
            text = f"a response message of {self._path} has no JSON form; call the method with protobuf messages"
            raise Internal(text) from error


class Source:
    """ASGI ``receive`` of a request, which knows whether the request is complete.

    Args:
        receive: As in ASGI.

    Attributes:
        ended: Whether the request is complete, or its client has gone.
    """

    __slots__ = ("_receive", "ended")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended = False

    async def __call__(self) -> AsgiEvent:
        """Return the next event."""
        event = await self._receive()
        if event["type"] != "http.request" or not event.get("more_body", False):
            self.ended = True
        return event


class EnvelopeReader:
    """Reader of enveloped request messages.

    Args:
        source: The events of the request.
        limit: Bytes of the largest message, compressed, decompressed and as text.
        coding: Content coding of compressed messages; ``""``: none may be compressed.
        decode: Text of a message → serialized message; None: they are serialized.
    """

    __slots__ = ("_buffer", "_coding", "_decode", "_limit", "_source")

    def __init__(self, source: Source, limit: int, coding: str, decode: Decode | None) -> None:
        self._source = source
        self._limit = limit
        self._coding = coding
        self._decode = decode
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of an incomplete message, or of messages that ``next`` has not returned yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add bytes of the request; envelopes may be cut anywhere."""
        self._buffer += data

    def next(self) -> bytes | None:
        """Return the next serialized message, or None if more bytes are needed.

        Raises:
            ResourceExhausted: The message is larger than the limit.
            Internal: It is marked as compressed, and the request declares no coding.
            InvalidArgument: The envelope or the message is malformed, or the request ends inside of it.
        """
        buffer = self._buffer
        if len(buffer) < PREFIX.size:
            self._check_incomplete()
            return None
        flags, length = PREFIX.unpack_from(buffer)
        if flags & ~COMPRESSED:
            raise InvalidArgument(f"malformed request: the flags of an envelope are {flags}; 0 or 1 was expected")
        if flags and not self._coding:
            text = "malformed request: a message is marked as compressed, and there is no connect-content-encoding"
            raise Internal(text)  # the code that the protocol's reference implementation has
        if length > self._limit:
            raise too_large(Side.REQUEST, self._limit, length)
        end = PREFIX.size + length
        if len(buffer) < end:
            self._check_incomplete()
            return None
        data = bytes(memoryview(buffer)[PREFIX.size : end])
        del buffer[:end]
        if flags and data:
            data = _decompressed(self._coding, data, self._limit)
        return data if self._decode is None else self._decode(data)

    def _check_incomplete(self) -> None:
        if self._source.ended:
            raise InvalidArgument("malformed request: the stream ended inside a message")


class BareReader:
    """Reader of a body that is one request message.

    Args:
        source: The events of the request.
        limit: Bytes of the largest message, compressed, decompressed and as text.
        coding: Content coding of the body; ``""``: none.
        decode: Text of the message → serialized message; None: it is serialized.
    """

    __slots__ = ("_coding", "_decode", "_limit", "_parts", "_size", "_source", "_taken")

    def __init__(self, source: Source, limit: int, coding: str, decode: Decode | None) -> None:
        self._source = source
        self._limit = limit
        self._coding = coding
        self._decode = decode
        self._parts: list[bytes] = []
        self._size = 0
        self._taken = False

    @property
    def pending(self) -> int:
        """Bytes of the message and one more, because a message may be empty; 0 when ``next`` has returned it."""
        return 0 if self._taken else self._size + 1

    def feed(self, data: bytes) -> None:
        """Add bytes of the body.

        Raises:
            ResourceExhausted: The message is larger than the limit.
        """
        self._size += len(data)
        self._parts.append(data)
        self._check_size()

    def next(self) -> bytes | None:
        """Return the serialized message, or None if the body is not complete.

        Raises:
            ResourceExhausted: The message is larger than the limit.
            InvalidArgument: It is malformed.
        """
        if not self._source.ended:
            return None
        self._check_size()
        self._taken = True
        data = b"".join(self._parts)
        self._parts.clear()
        if self._coding and data:
            data = _decompressed(self._coding, data, self._limit)
        return data if self._decode is None else self._decode(data)

    def _check_size(self) -> None:
        if self._size > self._limit:
            self._parts.clear()
            raise too_large(Side.REQUEST, self._limit, self._size)


class QueryReader(BareReader):
    """Reader of the request message in the query of a GET. The body of the request is ignored."""

    __slots__ = ()

    def __init__(self, message: bytes, source: Source, limit: int, coding: str, decode: Decode | None) -> None:
        super().__init__(source, limit, coding, decode)
        self._parts.append(message)
        self._size = len(message)

    def feed(self, data: bytes) -> None:
        """Ignore a piece of the body."""


def _decompressed(coding: str, data: bytes, limit: int) -> bytes:
    try:
        message = decompress(coding, data, limit)
    except BadCodingError as error:
        raise InvalidArgument(f"malformed message: {error}") from None
    if message is None:
        raise too_large(Side.REQUEST, limit)
    return message

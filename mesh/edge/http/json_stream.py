"""Incremental parser for streams of JSON messages in a request body. Pure.

There are two forms: one message a line (NDJSON), and messages one after the other or in one array. A parser holds one
message at most and finds its end. Whether it is valid JSON is checked where it is parsed.
Sources: https://github.com/ndjson/ndjson-spec; RFC 8259.
"""

from __future__ import annotations

import re

from mesh.errors import InvalidArgument

__all__ = ["Lines", "TooLarge", "Values"]

_BLANK = b" \t\r\n"
_MAX_BLANK_BYTES = 64
"""Bytes of white space between two messages that count as nothing."""
_IN_STRING = re.compile(rb'["\\]')
_OUTSIDE = re.compile(rb'["{}\[\],]')


class TooLarge(Exception):
    """A message is larger than the limit."""


class Lines:
    """NDJSON parser. Blank lines are ignored. The last line needs no line feed.

    Args:
        limit: Largest message, bytes.
    """

    __slots__ = ("_limit", "_parts", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def pending(self) -> bool:
        """Whether a part of a message is held."""
        return self._size > 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that these bytes complete.

        Raises:
            TooLarge: A message is larger than the limit.
        """
        first, *rest = data.split(b"\n")
        if not rest:
            self._hold(first)
            return []
        self._hold(first)
        complete = [b"".join(self._parts), *rest[:-1]]
        self._parts, self._size = [], 0
        if any(len(line) > self._limit for line in complete):
            raise TooLarge
        self._hold(rest[-1])
        return [line for line in map(_strip, complete) if line]

    def end(self) -> list[bytes]:
        """Return the message that the end of the body completes."""
        last = _strip(b"".join(self._parts))
        return [last] if last else []

    def _hold(self, part: bytes) -> None:
        if part:
            self._parts.append(part)
            self._size += len(part)
            if self._size > self._limit:
                raise TooLarge


def _strip(line: bytes) -> bytes:
    return line.strip(_BLANK)


class Values:
    """Parser for JSON objects or arrays one after the other, or for an array of messages.

    Args:
        limit: Largest message, bytes.
    """

    __slots__ = (
        "_at", "_buffer", "_depth", "_is_array", "_limit", "_over", "_several", "_start", "_started", "_string",
    )  # fmt: skip

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._at = 0  # end of what was scanned
        self._start = 0  # beginning of the message
        self._depth = 0
        self._string = False
        self._started = False
        self._is_array = False
        self._several = False  # whether the array has a comma
        self._over = False

    @property
    def pending(self) -> bool:
        """Whether a part of a message is held, or more than a little white space."""
        return len(self._buffer) > _MAX_BLANK_BYTES or bool(self._buffer.strip(_BLANK))

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that these bytes complete.

        Raises:
            TooLarge: A message is larger than the limit.
            InvalidArgument: Something follows the array, or an element is empty.
        """
        self._buffer += data
        if not self._started:
            text = self._buffer.lstrip(_BLANK)
            if not text:
                self._buffer.clear()
                return []
            self._started = True
            self._is_array = text[:1] == b"["
            self._buffer = text[1:] if self._is_array else text
        found: list[bytes] = []
        while not self._over and self._step(found):
            pass
        if self._over and self._buffer[self._at :].strip(_BLANK):
            raise InvalidArgument("the body goes on after the end of its array")
        if self._over:
            self._start = self._at = len(self._buffer)
        del self._buffer[: self._start]
        self._at -= self._start
        self._start = 0
        if len(self._buffer) > self._limit:
            raise TooLarge
        return found

    def _step(self, found: list[bytes]) -> bool:
        """Go to the next structural character. Return False if there is none."""
        buffer = self._buffer
        match = (_IN_STRING if self._string else _OUTSIDE).search(buffer, self._at)
        if match is None:
            self._at = len(buffer)
            return False
        sign = match.group()
        self._at = match.end()
        if self._string:
            return self._in_string(sign)
        if sign == b'"':
            self._string = True
        elif sign in b"{[":
            self._depth += 1
        elif sign in b"}]":
            self._close(found, sign, match.start())
        elif self._depth == 0 and self._is_array:  # a comma
            self._several = True
            self._take(found, match.start(), needed=True)
        return True

    def _in_string(self, sign: bytes) -> bool:
        if sign == b'"':
            self._string = False
        elif self._at == len(self._buffer):  # the escaped character is in the next piece
            self._at -= 1
            return False
        else:
            self._at += 1
        return True

    def _close(self, found: list[bytes], sign: bytes, at: int) -> None:
        if self._depth:
            self._depth -= 1
            if self._depth == 0 and not self._is_array:
                self._take(found, self._at, needed=True)
        elif self._is_array and sign == b"]":
            self._take(found, at, needed=False)
            self._over = True
        else:
            raise InvalidArgument(f"the body has a '{sign.decode()}' that closes nothing")

    def _take(self, found: list[bytes], stop: int, *, needed: bool) -> None:
        text = bytes(self._buffer[self._start : stop]).strip(_BLANK)
        self._start = self._at
        if len(text) > self._limit:
            raise TooLarge
        if text:
            found.append(text)
        elif needed or self._several:  # `[]` is an array, `[{},]` and `[,{}]` are not
            raise InvalidArgument("the array of the body has an element that is empty")

    def end(self) -> list[bytes]:
        """Return the message that the end of the body completes.

        Raises:
            InvalidArgument: The array does not end.
        """
        if self._is_array and not self._over:
            raise InvalidArgument("the body ends within its array")
        last = bytes(self._buffer[self._start :]).strip(_BLANK)
        return [last] if last and not self._is_array else []

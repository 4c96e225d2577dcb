"""One shape for everything that answers: a ``Handler`` answers a ``Call``, a ``Layer`` wraps a handler.

A function, a worker, a balancer and a remote endpoint are all handlers. A unary call is a stream of one request and one
response, never the other way round, so ``try/finally`` around ``await next(call)`` is right for every kind of method.

Messages cross this seam as serialized bytes: only the two rims (the function, and whoever made the call) decode them.
What is here knows no wire and no server.
"""

from __future__ import annotations

import asyncio
import time
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias

from mesh.errors import DeadlineExceeded, StatusError, Unimplemented
from mesh.headers import is_reserved

__all__ = [
    "Call", "Handler", "Identity", "Layer", "Metadata", "chain", "current", "encode_pair", "field_bytes",
]  # fmt: skip

Handler: TypeAlias = Callable[["Call"], Awaitable[None]]
"""Answers a call: reads requests with ``call.receive()``, writes responses with ``call.send()``. Returning is status
OK; raising a ``StatusError`` is that status; anything else raised is a bug."""

Layer: TypeAlias = Callable[["Call", Handler], Awaitable[None]]
"""Wraps a handler: ``async def layer(call, next): … await next(call) …``. One that raises refuses the call."""


def chain(*parts: Any) -> Handler:
    """Compose layers and, last, a handler: the first given is the outermost, so the list reads as a call travels."""
    *layers, handler = parts
    for layer in reversed(layers):
        handler = partial(layer, next=handler)
    return handler  # type: ignore[no-any-return]


FIELD_OVERHEAD = 32
"""Bytes that a field counts besides its name and value (RFC 9113, 6.5.2, SETTINGS_MAX_HEADER_LIST_SIZE)."""
MOST_METADATA = 8192
"""Bytes of response headers, or of trailers, that every stock client takes (grpcio refuses some beyond 8 KiB)."""


class Metadata(Mapping[str, "str | bytes"]):
    """The key-value pairs beside the messages: ordered, keys in lower case, read-only for functions.

    ``metadata["key"]`` is the last value of the key, ``getall`` all of them in order. A key that ends in ``-bin`` has
    ``bytes`` values, every other key ``str`` (gRPC's PROTOCOL-HTTP2.md, Custom-Metadata).

    Keys that belong to the transport (``mesh.headers.is_reserved``) are on the wire but are not metadata: they are not
    listed, and are read with ``wire``.
    """

    __slots__ = ("_index", "_pairs")

    def __init__(self, pairs: Iterable[tuple[str, str | bytes]] = ()) -> None:
        self._pairs: list[tuple[bytes, bytes]] = [encode_pair(key, value) for key, value in pairs]
        self._index: dict[bytes, bytes] | None = None

    @classmethod
    def from_wire(cls, pairs: list[tuple[bytes, bytes]]) -> Metadata:
        """Take the header list as the server gives it, without decoding; the list is not copied."""
        self = cls.__new__(cls)
        self._pairs = pairs
        self._index = None
        return self

    def append(self, name: bytes, value: bytes) -> None:
        """Add a wire pair; for the layers of an outbound call, before it is sent."""
        self._pairs.append((name, value))
        self._index = None

    @property
    def pairs(self) -> list[tuple[bytes, bytes]]:
        """Every pair as it goes over the wire, transport keys included; not to be changed."""
        return self._pairs

    def wire(self, key: bytes) -> bytes | None:
        """Return the last wire value of any key, the transport's own included, or None."""
        index = self._index
        if index is None:
            index = self._index = dict(self._pairs)
        return index.get(key)

    def getall(self, key: str) -> list[str | bytes]:
        """Return all values of ``key`` in order; a ``-bin`` header that joins several with commas counts as several."""
        wanted = key.lower().encode()
        found: list[str | bytes] = []
        if not is_reserved(wanted):
            for name, value in self._pairs:
                if name == wanted:
                    found.extend(decode_values(name, value))
        return found

    def __getitem__(self, key: str) -> str | bytes:
        name = key.lower().encode()
        value = None if is_reserved(name) else self.wire(name)
        if value is None:
            raise KeyError(key)
        return decode_values(name, value)[-1]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.decode() for name, _ in self._pairs if not is_reserved(name)))

    def __len__(self) -> int:
        return len({name for name, _ in self._pairs if not is_reserved(name)})

    def __repr__(self) -> str:
        return f"Metadata({[(key, self.getall(key)) for key in self]!r})"


def field_bytes(pairs: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the size of a field section as HTTP/2 counts it (RFC 9113, 6.5.2)."""
    return sum(len(name) + len(value) + FIELD_OVERHEAD for name, value in pairs)


def encode_pair(key: str, value: str | bytes) -> tuple[bytes, bytes]:
    """Return one metadata pair as it goes over the wire, the key in lower case.

    A text value may hold printable ASCII and must not begin or end with a space: an HTTP/2 field value must not
    (RFC 9113, 8.2.1), so clients and proxies drop such a field, or the whole call. An empty value is fine.

    Raises:
        ValueError: The key has a character outside ``0-9 a-z _ - .``; a ``-bin`` key has a text value; or another key
            has a value that is not printable ASCII, or begins or ends with a space.
        TypeError: The key is not text, or the value neither text nor bytes.
    """
    if not isinstance(key, str) or not isinstance(value, str | bytes):
        found = f"key {key!r}" if not isinstance(key, str) else f"the value of {key!r}, {value!r},"
        raise TypeError(f"metadata {found} has the wrong type: a key is a str, a value a str, or bytes for -bin keys")
    name = key.lower().encode() if key.isascii() else b""
    if not name or name.translate(None, b"0123456789abcdefghijklmnopqrstuvwxyz_-."):
        raise ValueError(f"metadata key {key!r} may hold only digits, letters, '_', '-' and '.'")
    if name.endswith(b"-bin"):
        if isinstance(value, str):
            raise ValueError(f"metadata key {key!r} ends in -bin, so its value must be bytes")
        return name, b64encode(value).rstrip(b"=")
    text = value if isinstance(value, str) else value.decode("ascii", "replace")
    if not text.isascii() or not text.isprintable():
        raise ValueError(f"metadata {key!r} may hold only printable ASCII; use a key that ends in -bin for bytes")
    if text != text.strip(" "):
        raise ValueError(f"metadata {key!r} must not begin or end with a space; use a key that ends in -bin for bytes")
    return name, text.encode()


def decode_values(name: bytes, value: bytes) -> list[str | bytes]:
    """Return the values of one wire pair: text, or for a ``-bin`` key the bytes of each comma-separated part."""
    if name.endswith(b"-bin"):
        return [_unpad(part.strip()) for part in value.split(b",")]
    return [value.decode("utf-8", "replace")]


def _unpad(value: bytes) -> bytes:
    try:
        return b64decode(value + b"=" * (-len(value) % 4))
    except ValueError:
        return b""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the call is made for: a user whose token was verified here.

    Attributes:
        subject: The token's ``sub``.
        roles: The token's roles.
        claims: All claims of the token.
    """

    subject: str
    roles: frozenset[str] = frozenset()
    claims: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


class Call:
    """One call of one method, seen from the side that answers it.

    The rim that the call came in by (gRPC server, edge, stub, trigger) subclasses this with its ``receive`` and
    ``send``.

    Attributes:
        method: What is called (``mesh.contract.model.Method``).
        metadata: The caller's metadata.
        deadline: When the answer is worthless, in the loop's time (``loop.time()``, seconds); None if never.
        identity: The verified user, or None. Set by the authenticate layer.
        caller: The verified name of the calling service, or None. Set by the authenticate layer.
        doubt: Why the user token that came along is not valid, or None; ``identity`` is None then. Set by the
            authenticate layer.
        headers: Response metadata (wire pairs) to be sent before the first message.
        headers_sent: Whether they have gone.
        trailers: Response metadata (wire pairs) to be sent after the last message.
        peer: Where an onward call went: the ``host:port`` of the manifest, or "" while it has not gone anywhere.
        wait_for_ready: An onward call should wait for a connection even when every address has just failed.
        timed: Whether a layer of this chain cancels the call at its deadline, so that nobody else has to.
        compression: The encoding of an onward call's requests (``"gzip"``), or "" for none.
        task: What answers it, if that is one task and its rim knows it; None otherwise. (Asking for the current task
            is a system call up to Python 3.11.)
        delivered: Which event it is a delivery of (``mesh.events.consume.delivery_call.Delivered``), or None.
    """

    wait_for_ready: bool = False
    compression: str = ""
    delivered: Any = None

    __slots__ = (
        "caller", "deadline", "doubt", "headers", "headers_sent", "identity", "metadata", "method", "peer", "task",
        "timed", "trailers",
    )  # fmt: skip

    def __init__(self, method: Any, metadata: Metadata, deadline: float | None = None) -> None:
        self.method = method
        self.metadata = metadata
        self.deadline = deadline
        self.identity: Identity | None = None
        self.caller: str | None = None
        self.doubt: StatusError | None = None
        self.peer = ""
        self.timed = False
        self.task: asyncio.Task[Any] | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.headers_sent = False
        self.trailers: list[tuple[bytes, bytes]] = []

    async def receive(self) -> bytes | None:
        """Return the next request message, or None when the caller has sent its last.

        Raises:
            StatusError: The caller's stream is malformed, or a message exceeds the limit.
            asyncio.CancelledError: The caller went away.
        """
        raise NotImplementedError

    async def send(self, message: bytes) -> None:
        """Send a response message, after ``headers`` if they have not gone yet; waits while the caller has no room."""
        raise NotImplementedError

    async def send_headers(self) -> None:
        """Send ``headers`` now, before there is a message."""
        raise NotImplementedError

    async def left(self) -> bool:
        """Whether the server cancelled ``task``, because the caller has gone (asked by ``mesh.boundary``)."""
        return False

    def remaining(self) -> float | None:
        """Return the seconds left until the deadline (not below 0), or None without one."""
        if self.deadline is None:
            return None
        # The loops' clock is time.monotonic (asyncio's and uvloop's), which a function in a thread can read too.
        return max(0.0, self.deadline - time.monotonic())

    async def receive_one(self) -> bytes:
        """Return the one request message of a method that does not stream its requests.

        Raises:
            Unimplemented: There was no message, or more than one (gRPC core maps cardinality violations to this code).
        """
        message = await self.receive()
        if message is None:
            raise Unimplemented("the method takes one request message; the stream ended without one")
        if await self.receive() is not None:
            raise Unimplemented("the method takes one request message; the stream holds more")
        return message

    def check_deadline(self) -> None:
        """Raise ``DeadlineExceeded`` when no time is left."""
        if self.deadline is not None and self.deadline <= time.monotonic():
            raise DeadlineExceeded("the deadline passed before the call began")


current: ContextVar[Call | None] = ContextVar("mesh_call", default=None)
"""The call being answered by the code that runs now: what an onward call takes its deadline and identity from."""

"""Calls, handlers, layers and metadata: a ``Handler`` answers a ``Call``, a ``Layer`` wraps a handler.

A function, a worker, a balancer and a remote endpoint are all handlers. A unary call is a stream of one request and one
response, never the other way round. So ``try/finally`` around ``await next(call)`` is right for every kind of method.

Messages are serialized bytes here. Only the two ends decode them: the function, and the code that made the call. This
module knows no transport and no server.
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
from mesh.headers import AUTHORIZATION, CLIENT_ADDRESS, is_reserved

__all__ = [
    "Call", "Handler", "Identity", "Layer", "Metadata", "chain", "current", "encode_pair", "field_bytes",
    "forward_client", "note_wait",
]  # fmt: skip

Handler: TypeAlias = Callable[["Call"], Awaitable[None]]
"""Answers a call: reads requests with ``call.receive()``, writes responses with ``call.send()``. To return means status
OK. To raise a ``StatusError`` means that status. Any other exception is a bug."""

Layer: TypeAlias = Callable[["Call", Handler], Awaitable[None]]
"""Wraps a handler: ``async def layer(call, next): … await next(call) …``. A layer refuses a call by raising."""


def chain(*parts: Any) -> Handler:
    """Return one handler made of layers and, last, a handler. The first layer is the outermost one."""
    *layers, handler = parts
    for layer in reversed(layers):
        handler = partial(layer, next=handler)
    return handler  # type: ignore[no-any-return]


FIELD_OVERHEAD_BYTES = 32
"""Size of a field besides its name and value (RFC 9113, 6.5.2, SETTINGS_MAX_HEADER_LIST_SIZE)."""
MAX_METADATA_SIZE = 8192
"""Bytes of response headers, or of trailers, that every stock client accepts. grpcio refuses some beyond 8 KiB."""


class Metadata(Mapping[str, "str | bytes"]):
    """Key-value pairs of a call: ordered, keys in lower case, read-only for functions.

    ``metadata["key"]`` is the last value of the key. ``getall`` returns all its values in order. A key that ends in
    ``-bin`` has ``bytes`` values, every other key has ``str`` values (gRPC's PROTOCOL-HTTP2.md, Custom-Metadata).

    Keys of the transport (``mesh.headers.is_reserved``) are in the header list and are no metadata.
    The mapping does not contain them. ``wire`` reads them.
    """

    __slots__ = ("_index", "pairs")

    def __init__(self, pairs: Iterable[tuple[str, str | bytes]] = ()) -> None:
        self.pairs: list[tuple[bytes, bytes]] = [encode_pair(key, value) for key, value in pairs]
        self._index: dict[bytes, bytes] | None = None

    @classmethod
    def from_wire(cls, pairs: list[tuple[bytes, bytes]]) -> Metadata:
        """Return the metadata of a header list as the server gives it. The list is neither decoded nor copied."""
        self = cls.__new__(cls)
        self.pairs = pairs
        self._index = None
        return self

    def append(self, name: bytes, value: bytes) -> None:
        """Add an encoded pair to an outbound call that has not been sent yet."""
        self.pairs.append((name, value))
        self._index = None

    @property
    def fields(self) -> Mapping[bytes, bytes]:
        """The last encoded value of each key, also of the transport's own."""
        index = self._index
        if index is None:
            index = self._index = dict(self.pairs)
        return index

    def wire(self, key: bytes) -> bytes | None:
        """Return the last encoded value of any key, also of the transport's own, or None."""
        index = self._index
        if index is None:
            index = self._index = dict(self.pairs)
        return index.get(key)

    def getall(self, key: str) -> list[str | bytes]:
        """Return all values of ``key`` in order. A ``-bin`` header with commas holds several values."""
        wanted = key.lower().encode()
        found: list[str | bytes] = []
        if not is_reserved(wanted):
            for name, value in self.pairs:
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
        return iter(dict.fromkeys(name.decode() for name, _ in self.pairs if not is_reserved(name)))

    def __len__(self) -> int:
        return len({name for name, _ in self.pairs if not is_reserved(name)})

    def __repr__(self) -> str:
        return f"Metadata({[(key, self.getall(key)) for key in self]!r})"


def field_bytes(pairs: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the size of a field section as HTTP/2 counts it (RFC 9113, 6.5.2)."""
    return sum(len(name) + len(value) + FIELD_OVERHEAD_BYTES for name, value in pairs)


def encode_pair(key: str, value: str | bytes) -> tuple[bytes, bytes]:
    """Return one encoded metadata pair, the key in lower case.

    A text value may hold printable ASCII. It must not begin or end with a space, because HTTP/2 forbids that
    (RFC 9113, 8.2.1), and clients and proxies drop such a field or the whole call. An empty value is valid.

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
    """Return the values of one encoded pair: text, or for a ``-bin`` key the bytes of each comma-separated part."""
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
    """Verified user or API key of a call.

    Attributes:
        subject: The user's subject; of an API key ``key:NAME``.
        roles: The token's roles.
        claims: All claims of the token.
        scopes: The scopes of an API key; None for a user.
    """

    subject: str
    roles: frozenset[str] = frozenset()
    claims: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    scopes: frozenset[str] | None = None


class Call:
    """One call of one method, unary or streaming, as its handler sees it.

    Each source of calls (gRPC server, edge, stub, trigger) has a subclass with its own ``receive`` and ``send``.

    Attributes:
        method: The called method (``mesh.contract.model.Method``).
        metadata: The caller's metadata.
        deadline: Absolute deadline in loop time, seconds; None: no deadline.
        identity: The verified user, or None. Set by the authenticate layer.
        caller: The verified name of the calling service, or None. Set by the authenticate layer.
        auth_error: The error of an invalid user token on a call that goes on without a user; None otherwise. Set by
            the authenticate layer.
        headers: Response metadata (encoded pairs) to be sent before the first message.
        headers_sent: Whether the response headers were sent.
        trailers: Response metadata (encoded pairs) to be sent after the last message.
        peer: The ``host:port`` that an outbound call was sent to, as in the manifest; "" before it is sent.
        wait_for_ready: Whether an outbound call waits for a connection even if every address has just failed.
        deadline_enforced: Whether a layer of this chain cancels the call at its deadline, so that others need not.
        compression: The encoding of an outbound call's requests (``"gzip"``), or "" for none.
        task: The task that answers the call, or None if it is not known. (Up to Python 3.11, to ask for the current
            task is a system call.)
        tried: What earlier attempts of an outbound call were sent to, which a later one avoids: a set that the attempts
            share; None if there is one attempt only.
        delivery: The event that this call delivers (``mesh.events.consume.delivery_call.Delivered``), or None.
        queued: Seconds that the call has waited in queues of this process behind its permit; None: it came to none.
        certificate: The certificate (PEM) of the connection's client, which the TLS handshake has verified, or None.
    """

    wait_for_ready: bool = False
    compression: str = ""
    delivery: Any = None
    tried: set[Any] | None = None
    certificate: str | None = None

    __slots__ = (
        "auth_error", "caller", "deadline", "deadline_enforced", "headers", "headers_sent", "identity", "metadata",
        "method", "peer", "queued", "task", "trailers",
    )  # fmt: skip

    def __init__(self, method: Any, metadata: Metadata, deadline: float | None = None) -> None:
        self.method = method
        self.metadata = metadata
        self.deadline = deadline
        self.identity: Identity | None = None
        self.caller: str | None = None
        self.auth_error: StatusError | None = None
        self.peer = ""
        self.queued: float | None = None
        self.deadline_enforced = False
        self.task: asyncio.Task[Any] | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.headers_sent = False
        self.trailers: list[tuple[bytes, bytes]] = []

    async def receive(self) -> bytes | None:
        """Return the next request message, or None at the end of the requests.

        Raises:
            StatusError: The caller's stream is malformed, or a message exceeds the limit.
            asyncio.CancelledError: The caller disconnected.
        """
        raise NotImplementedError

    async def send(self, message: bytes) -> None:
        """Send a response message, and before the first one ``headers``. Waits for the caller's flow control."""
        raise NotImplementedError

    async def send_headers(self) -> None:
        """Send ``headers`` before the first message."""
        raise NotImplementedError

    def expect_response(self, size: int) -> None:
        """Prepare for a response message of ``size`` bytes of an outbound call, of which the first bytes have come.

        Raises:
            ResourceExhausted: It cannot be held.
        """

    async def caller_disconnected(self) -> bool:
        """Whether the server cancelled ``task`` because the caller disconnected (for ``mesh.boundary``)."""
        return False

    @property
    def client_address(self) -> str | None:
        """The address of the edge's client, for whom the call is made; None if no verified component says it."""
        value = self.metadata.wire(CLIENT_ADDRESS) if self.caller is not None else None
        return None if value is None else value.decode("latin-1")

    def remaining(self) -> float | None:
        """Return the seconds until the deadline, 0 if it has passed, or None without a deadline."""
        if self.deadline is None:
            return None
        # Loop time is time.monotonic() in asyncio and uvloop, and threads can read that too.
        return max(0.0, self.deadline - time.monotonic())

    async def receive_one(self) -> bytes:
        """Return the one request message of a method that does not stream its requests.

        Raises:
            Unimplemented: There was no message, or more than one. gRPC core maps cardinality violations to this code.
        """
        message = await self.receive()
        if message is None:
            raise Unimplemented("the method takes one request message; the stream ended without one")
        if await self.receive() is not None:
            raise Unimplemented("the method takes one request message; the stream holds more")
        return message

    def check_deadline(self) -> None:
        """Raise ``DeadlineExceeded`` if the deadline has passed."""
        if self.deadline is not None and self.deadline <= time.monotonic():
            raise DeadlineExceeded("the deadline passed before the call began")


current: ContextVar[Call | None] = ContextVar("mesh_call", default=None)
"""Call that the running code answers. Outbound calls inherit its deadline and identity."""


def forward_client(received: Call | None, metadata: Metadata) -> None:
    """Add the user's credentials and the client's address of a received call to the metadata of an outbound call.

    Args:
        received: The call in progress, or None.
        metadata: Metadata of the outbound call. An ``authorization`` that it has already is not replaced.
    """
    if received is None:
        return
    if received.identity is not None and metadata.wire(AUTHORIZATION) is None:
        credentials = received.metadata.wire(AUTHORIZATION)
        if credentials is not None:
            metadata.append(AUTHORIZATION, credentials)
    address = received.client_address
    if address is not None:
        metadata.append(CLIENT_ADDRESS, address.encode("latin-1", "replace"))


def note_wait(seconds: float) -> None:
    """Note that the current call has waited in a queue of this process: for a thread, a connection, a lock.

    By such waits the mesh sees that a method is overloaded (docs/operations.md, Overload). It notes its own queues:
    permits, threads of ``def`` functions, workers, database connections, and SQLite's write lock. A function notes the
    waits for its own pools, also those of 0 seconds, and also if the call gives up. Outside of a call nothing happens.

    Args:
        seconds: Length of the wait.
    """
    call = current.get()
    if call is not None:
        call.queued = seconds if call.queued is None else call.queued + seconds

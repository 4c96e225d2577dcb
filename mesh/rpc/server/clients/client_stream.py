"""Client stream: ASGI ``receive`` and ``send`` of one request, with limits on the client's side of it.

The limits cost nothing while the client is as fast as the edge: an event that is there at once passes without a timer.
Only a wait for the client has a timer, can be displaced by another client's needs, and counts.

The server (h2corn) takes up to 32 events of a response before it makes the application wait, whatever their size. So
large pieces are cut, and each one is counted until the server has written it (``held_response``).

A stream of HTTP/2 whose client does not read is reset by the server's own timeout. Where there is none, and for a
client that gives back for another one, the wait ends here. A connection of HTTP/1.1 is then closed by the connection
guard, because the server logs a response that the application does not complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from contextlib import suppress
from math import inf
from time import monotonic  # the clock of the event loops
from types import coroutine
from typing import TYPE_CHECKING, Any, Protocol, Self

from mesh.asgi import AsgiEvent, Receive, Scope, Send
from mesh.errors import DeadlineExceeded, ResourceExhausted
from mesh.layers.timer_wheel import TaskTimeout, timer_wheel
from mesh.rpc.server.clients.budget import Holding
from mesh.rpc.server.clients.held_response import HeldResponse
from mesh.rpc.server.clients.limits import LARGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Hashable

    from mesh.rpc.server.clients.limits import ClientLimits

__all__ = [
    "CLIENT_STREAM", "CONNECTION_CLOSE", "SERVER", "ClientDroppedError", "ClientStream", "SlowBodyError",
]  # fmt: skip

CLIENT_STREAM = "mesh.client_stream"
"""Key of the scope under which the client stream of a request stands."""

SERVER = "mesh.server"
"""Key of the scope under which the server of a listener whose clients are not trusted stands (``Server``)."""

CONNECTION_CLOSE = (b"connection", b"close")
"""Header that tells a client of HTTP/1.1 to close the connection."""

MIN_RATE_BYTES = 240
"""Bytes a second that a client has to send after the stall time (Kestrel's ``MinRequestBodyDataRate``)."""
UNCOUNTED_BYTES = 16 * 2**10
"""Bytes of a request that are not counted. A small body costs less than its head."""
PIECE_SIZE = 16 * 2**10
"""Bytes of the pieces into which a large piece of a response is cut."""
QUEUED_SIZE = 32 * PIECE_SIZE
"""Bytes of a response that the server has besides the response itself, while its client reads slowly."""
RESET_DELAY = 1.0
"""Seconds after the stall time in which the server resets the stream of HTTP/2 itself."""
DISCONNECT_TIMEOUT = 1.0
"""Seconds that the server has to notice that the connection was closed."""
UNREAD_DELAY = 1.0
"""Seconds after which a response that was sent, and that the server could not write, makes its client one that does not
read. Its connection may be closed when others need the bytes."""
RETRY_AFTER_SECONDS = 1.0
"""Delay in the ``Retry-After`` of a refused request."""


class SlowBodyError(DeadlineExceeded):
    """The client is too slow to send its request (408)."""


class ClientDroppedError(OSError):
    """The client does not read its response. For the application it has disconnected, as ``OSError`` says in ASGI."""


class Guard(Protocol):
    """Connection guard of the listener (``mesh.rpc.server.connection_guard``)."""

    def close(self, peer: Any) -> bool:
        """Close a connection; False if it is not known."""

    def is_private(self, peer: Any) -> bool:
        """Whether a connection is known, and is that of one client."""


class Server(Protocol):
    """Server of the connection (``mesh.rpc.server.listener``)."""

    @property
    def retiring(self) -> bool:
        """Whether it tells clients of HTTP/1.1 to close their connections."""

    @property
    def guard(self) -> Guard | None:
        """The connection guard."""


class _NoServer:
    retiring = False
    guard = None


_NO_SERVER: Server = _NoServer()


class KnowsClient(Protocol):
    """Part of a request that the limits read."""

    @property
    def network(self) -> str:
        """Key of the client."""


class ClientStream:
    """ASGI events of one request.

    Args:
        limits: The limits of the component.
        scope: The request.
        receive: As in ASGI.
        send: As in ASGI.

    Attributes:
        request: The request, which knows its client behind a proxy; None: the client is the connection's other end.
        streaming: Whether the request is a stream of messages, between which its client may be silent.
        body_timeout: Seconds from the first wait in which the request has to be complete; None: no limit.
        server: The server of the connection.
    """

    __slots__ = (
        "_client", "_ended", "_http1", "_inbound", "_limits", "_outbound", "_receive", "_received", "_send", "_since",
        "_upload", "_waits", "body_timeout", "request", "server", "streaming",
    )  # fmt: skip

    def __init__(self, limits: ClientLimits, scope: Scope, receive: Receive, send: Send) -> None:
        self._limits = limits
        self._receive = receive
        self._send = send
        self._client = scope.get("client")
        self.request: KnowsClient | None = None
        self.streaming = False
        self._received = 0  # bytes of the request, or of the message of its stream that is incomplete; -1: complete
        self._since = 0.0
        self._upload: Holding | None = None
        self._inbound: Holding | None = None
        self._outbound: HeldResponse | None = None
        self._waits: list[_Waiting] = []
        self.body_timeout: float | None = None
        self.server: Server = scope.get(SERVER, _NO_SERVER)
        self._http1 = scope["http_version"] != "2"
        self._ended = inf

    def close(self) -> None:
        """Release everything but what the server has not written yet: the request has ended."""
        self.request = None
        if self._inbound is not None:
            self._limits.buffers.release(self._inbound)
        if self._outbound is not None:
            self._ended = monotonic()
            self._outbound.release()
        if self._upload is not None:
            self._limits.uploads.release(self._upload)

    # -- budget --

    def hold_request(self, size: int) -> None:
        """Count bytes of the request that are held.

        Raises:
            ResourceExhausted: The budget does not allow them.
        """
        if self._inbound is None:
            self._inbound = self._holding()
        if not self._limits.hold(self._inbound, size):
            text = "too many unfinished requests are held; try again later"
            raise ResourceExhausted(text, retry_after=RETRY_AFTER_SECONDS)

    def hold_response(self, size: int) -> None:
        """Count the bytes of a response, or of the next message of its stream, that is expected or there.

        They are held until ``release_response``, and then as far as the server has not written them.

        Raises:
            ResourceExhausted: The budget does not allow them.
        """
        if self._outbound is None:
            self._outbound = HeldResponse(self._limits, self._holding())
        if not self._outbound.reserve(size + min(size, QUEUED_SIZE)):
            text = "too many responses that are not read are held; try again later"
            raise ResourceExhausted(text, retry_after=RETRY_AFTER_SECONDS)

    def release_request(self, *, incomplete: bool = False) -> None:
        """Release the request, or the message of its stream that was passed on.

        Args:
            incomplete: Whether a part of the next message has come in already.
        """
        if self._received >= 0:
            self._received = int(incomplete)
        self._since = 0.0
        if self._inbound is not None:
            self._limits.buffers.release(self._inbound)

    def release_response(self) -> None:
        """Release the response, or the message of its stream that was sent."""
        if self._outbound is not None:
            self._outbound.release()

    def expect_known_response(self, path: str) -> None:
        """Count the response that a method is known to give, before it is called.

        Else the responses of many calls would be there before the first of them is counted.

        Raises:
            ResourceExhausted: The budget does not allow it.
        """
        expected = self._limits.response_sizes.get(path)
        if expected:
            self.hold_response(expected)

    def learn_size(self, path: str, size: int) -> None:
        """Remember how large the responses of a method are."""
        self._limits.learn_size(path, size)

    def discard(self) -> None:
        """Read the rest of the request without limits: the response is sent, and the rest is discarded."""
        self.release_request()
        self._received = -1
        if self._upload is not None:
            self._limits.uploads.release(self._upload)

    def _holding(self) -> Holding:
        client = self._client
        address: Hashable = client[0] if client else None
        return Holding(address if self.request is None else self.request.network, client, self)

    @property
    def counted(self) -> bool:
        """Whether the request, or its response, is so large that its bytes were counted."""
        return self._inbound is not None or self._outbound is not None

    @property
    def displaceable(self) -> bool:
        """Whether the request waits for its client, or its response was sent and is not read (``budget.Owner``)."""
        if self._waits:
            return not self._waits[-1].expired
        guard = self.server.guard
        return guard is not None and monotonic() - self._ended > UNREAD_DELAY and guard.is_private(self._client)

    def displace(self) -> None:
        """End the wait for the client, or close the connection that is not read."""
        if not self._waits:
            assert self.server.guard is not None  # noqa: S101 - see ``displaceable``
            self._limits.count("displaced")
            self.server.guard.close(self._client)
            return
        wait = self._waits[-1]
        wait.displaced = True
        wait.expire()

    # -- the request --

    @coroutine
    def receive(self) -> Generator[Any, Any, AsgiEvent]:
        """Return the next event (``receive`` of ASGI).

        Raises:
            SlowBodyError: The client is too slow.
            ResourceExhausted: The component cannot hold what the client sends, or cannot wait for it.
        """
        step = self._receive().__await__()
        if self._received < 0:
            return (yield from step)
        try:
            waiting = next(step)
        except StopIteration as ready:
            event: AsgiEvent = ready.value
        else:
            event = yield from self._wait_for_request(step, waiting)
        body = event.get("body")
        if body:
            self._received += len(body)
            if self._received > UNCOUNTED_BYTES:
                self.hold_request(len(body))
        if not event.get("more_body", False):
            self._received = -1
            if self._upload is not None:
                self._limits.uploads.release(self._upload)
        return event

    def _wait_for_request(self, step: Any, waiting: Any) -> Generator[Any, Any, AsgiEvent]:
        if self.streaming and not self._received:  # between two messages
            event: AsgiEvent = yield from _rest(step, waiting)
            return event
        limits = self._limits
        now = monotonic()
        if not self._since:
            self._since = now
        if self._upload is None and not self.streaming:
            self._upload = self._holding()
            if not limits.uploads.add(self._upload, 1):
                limits.count("uploads")
                raise ResourceExhausted(
                    "too many requests are incomplete; try again later", retry_after=RETRY_AFTER_SECONDS
                )
        until = max(self._since + limits.stall + self._received / MIN_RATE_BYTES, now)
        if self.body_timeout is not None:
            until = min(until, self._since + self.body_timeout)
        with _Waiting(self, until) as wait:
            try:
                event = yield from _rest(step, waiting)
            except asyncio.CancelledError:
                if not wait.sole_cause:
                    raise
                if not wait.displaced:
                    limits.count("slow_body")
                    raise SlowBodyError("the request body did not come in time") from None
                limits.count("displaced")
                text = "this request is no longer waited for: its client has the most of them; try again later"
                raise ResourceExhausted(text, retry_after=RETRY_AFTER_SECONDS) from None
            return event

    # -- the response --

    def send(self, event: AsgiEvent) -> Awaitable[None]:
        """Send an event (``send`` of ASGI).

        Raises:
            ClientDroppedError: The client does not read, or others need what is held for it.
        """
        body = event.get("body")
        if body is not None and len(body) > LARGE_SIZE and event["type"] == "http.response.body":
            return self._send_pieces(body, more=event.get("more_body", False))
        if self.server.retiring and self._http1 and event["type"] == "http.response.start":
            event = {**event, "headers": [*event.get("headers", ()), CONNECTION_CLOSE]}
        return self._write(event)

    async def _send_pieces(self, body: bytes, *, more: bool) -> None:
        size = len(body)
        view = memoryview(body)
        piece = bytes if self._outbound is None else self._outbound.piece
        for start in range(0, size, PIECE_SIZE):
            end = start + PIECE_SIZE
            event = {"type": "http.response.body", "body": piece(view[start:end]), "more_body": more or end < size}
            await self._write(event)

    @coroutine
    def _write(self, event: AsgiEvent) -> Generator[Any, Any, None]:
        step = self._send(event).__await__()
        try:
            waiting = next(step)
        except StopIteration:
            return
        limits = self._limits
        began = monotonic()
        guard = self.server.guard
        resets = guard is not None and not self._http1
        with _Waiting(self, began + limits.stall + (RESET_DELAY if resets else 0.0)) as wait:
            try:
                yield from _rest(step, waiting)
            except asyncio.CancelledError:
                if not wait.sole_cause:
                    if monotonic() - began >= limits.stall:  # by the server's own timeout
                        limits.count("slow_reader")
                    raise
                limits.count("displaced" if wait.displaced else "slow_reader")
                if self._http1 and guard is not None and guard.close(self._client):
                    yield from _disconnected()
                raise ClientDroppedError("the client does not read the response") from None


@coroutine
def _disconnected() -> Generator[Any, Any, None]:
    """Wait until the server has noticed that the connection was closed, and cancels the task."""
    with suppress(asyncio.CancelledError):
        yield from asyncio.sleep(DISCONNECT_TIMEOUT).__await__()


class _Waiting(TaskTimeout):
    """Wait for the client, in the task that waits, until a time.

    Attributes:
        displaced: Whether another client's needs have ended it.
    """

    __slots__ = ("_slot", "_stream", "_until", "displaced")

    def __init__(self, stream: ClientStream, until: float) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine always runs in a task here
        super().__init__(task)
        self.displaced = False
        self._stream = stream
        self._until = until

    def __enter__(self) -> Self:
        self._slot = timer_wheel(self._task).add(self._until, self)
        self._stream._waits.append(self)  # noqa: SLF001 - of this module
        return self

    def __exit__(self, *_: object) -> None:
        self._stream._waits.remove(self)  # noqa: SLF001 - of this module
        self._slot.discard(self)
        self.uncancel()


def _rest(step: Any, waiting: Any) -> Generator[Any, Any, Any]:
    """Go on with an awaitable whose first step has been taken, as ``yield from`` would."""
    while True:
        try:
            sent = yield waiting
        except BaseException as error:
            throw = getattr(step, "throw", None)
            if throw is None:
                raise
            try:
                waiting = throw(error)
            except StopIteration as ended:
                return ended.value
        else:
            try:
                waiting = next(step) if sent is None else step.send(sent)
            except StopIteration as ended:
                return ended.value

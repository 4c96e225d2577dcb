"""Client stream: ASGI ``receive`` and ``send`` of one request, with limits on the client's side of it.

The limits cost nothing while the client is as fast as the edge: an event that is there at once passes without a timer.
Only a wait for the client has a timer, can be displaced by another client's needs, and counts.

The server (h2corn) takes up to 32 events of a response before it makes the application wait, whatever their size. So
large pieces are cut: else the server would hold what the client does not read, where no limit sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from time import monotonic  # the clock of the event loops
from traceback import clear_frames
from types import coroutine
from typing import TYPE_CHECKING, Any, Protocol, Self

from mesh.asgi import AsgiEvent, Receive, Scope, Send
from mesh.edge.clients.budget import Holding
from mesh.errors import DeadlineExceeded, ResourceExhausted
from mesh.layers.timer_wheel import TaskTimeout, timer_wheel

if TYPE_CHECKING:
    from collections.abc import Hashable

    from mesh.edge.clients.limits import ClientLimits

__all__ = ["CLIENT_STREAM", "LARGE_SIZE", "ClientDroppedError", "ClientStream", "SlowBodyError", "release_frames"]

CLIENT_STREAM = "mesh.client_stream"
"""Key of the scope under which the client stream of a request stands."""

MIN_RATE_BYTES = 240
"""Bytes a second that a client has to send after the stall time (Kestrel's ``MinRequestBodyDataRate``)."""
UNCOUNTED_BYTES = 16 * 2**10
"""Bytes of a request that are not counted. A small body costs less than its head."""
PIECE_SIZE = 16 * 2**10
"""Bytes of the pieces into which a large piece of a response is cut."""
LARGE_SIZE = 64 * 2**10
"""Bytes from which on a piece of a response counts as large."""
FORGOTTEN_PART = 8
"""Part of the expected size of a method's response that a smaller response takes off: an eighth."""
MAX_CONTEXTS = 8
"""Exceptions in the context of one that are followed."""
RETRY_AFTER_SECONDS = 1.0
"""Delay in the ``Retry-After`` of a refused request."""


class SlowBodyError(DeadlineExceeded):
    """The client is too slow to send its request (408)."""


class ClientDroppedError(OSError):
    """The client does not read its response. For the application it has disconnected, as ``OSError`` says in ASGI."""


class KnowsClient(Protocol):
    """Part of a request that the limits read."""

    @property
    def network(self) -> str:
        """Key of the client."""


class ClientStream:
    """ASGI events of one request.

    Args:
        limits: The limits of the edge.
        scope: The request.
        receive: As in ASGI.
        send: As in ASGI.

    Attributes:
        request: The request, which knows its client behind a proxy; None: the client is the connection's other end.
        streaming: Whether the request is a stream of messages, between which its client may be silent.
    """

    __slots__ = (
        "_client", "_inbound", "_limits", "_outbound", "_receive", "_received", "_send", "_since", "_upload", "_waits",
        "request", "streaming",
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
        self._outbound: Holding | None = None
        self._waits: list[_Waiting] = []

    def close(self) -> None:
        """Release everything: the request has ended."""
        self.request = None
        buffers = self._limits.buffers
        if self._inbound is not None:
            buffers.release(self._inbound)
        if self._outbound is not None:
            buffers.release(self._outbound)
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
        self._hold(self._inbound, size, "the edge holds too many unfinished requests; try again later")

    def hold_response(self, size: int) -> None:
        """Count bytes of the response that are held until the client has read them.

        Raises:
            ResourceExhausted: The budget does not allow them.
        """
        if self._outbound is None:
            self._outbound = self._holding()
        self._hold(self._outbound, size, "the edge holds too many responses that are not read; try again later")

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
            self._limits.buffers.release(self._outbound)

    def reserve_response(self, path: str) -> None:
        """Count the response that a method is expected to give, before it is called.

        Else the responses of many calls would be there before the first of them is counted.

        Raises:
            ResourceExhausted: The budget does not allow it.
        """
        expected = self._limits.response_sizes.get(path)
        if expected:
            self.hold_response(expected)

    def settle_response(self, path: str, size: int) -> None:
        """Release what was reserved, and remember how large the responses of a method are."""
        sizes = self._limits.response_sizes
        known = sizes.get(path, 0)
        if not known and size <= LARGE_SIZE:
            return
        self.release_response()
        expected = max(size, known - known // FORGOTTEN_PART)
        if expected > LARGE_SIZE:
            sizes[path] = expected
        else:
            sizes.pop(path, None)

    def discard(self) -> None:
        """Read the rest of the request without limits: the response is sent, and the rest is discarded."""
        self.release_request()
        self._received = -1
        if self._upload is not None:
            self._limits.uploads.release(self._upload)

    def _hold(self, holding: Holding, size: int, text: str) -> None:
        if not self._limits.buffers.add(holding, size):
            self._limits.count("buffers")
            raise ResourceExhausted(text, retry_after=RETRY_AFTER_SECONDS)

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
        """Whether the request waits for its client (``mesh.edge.clients.budget.Owner``)."""
        return bool(self._waits) and not self._waits[-1].expired

    def displace(self) -> None:
        """End the wait for the client."""
        wait = self._waits[-1]
        wait.displaced = True
        wait.expire()

    # -- the request --

    def receive(self) -> Awaitable[AsgiEvent]:
        """Return the next event (``receive`` of ASGI).

        Raises:
            SlowBodyError: The client is too slow.
            ResourceExhausted: The edge cannot hold what the client sends, or cannot wait for it.
        """
        return self._receive() if self._received < 0 else self._read()

    @coroutine
    def _read(self) -> Generator[Any, Any, AsgiEvent]:
        step = self._receive().__await__()
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
        with _Waiting(self, max(self._since + limits.stall + self._received / MIN_RATE_BYTES, now)) as wait:
            try:
                event = yield from _rest(step, waiting)
            except asyncio.CancelledError:
                if not wait.sole_cause:
                    raise
                if not wait.displaced:
                    limits.count("slow_body")
                    raise SlowBodyError("the request body did not come in time") from None
                limits.count("displaced")
                text = "the edge no longer waits for this request: its client has the most of them; try again later"
                raise ResourceExhausted(text, retry_after=RETRY_AFTER_SECONDS) from None
            return event

    # -- the response --

    def send(self, event: AsgiEvent) -> Awaitable[None]:
        """Send an event (``send`` of ASGI).

        Raises:
            ClientDroppedError: The client does not read, or others need what the edge holds for it.
        """
        body = event.get("body")
        if body is not None and len(body) > LARGE_SIZE and event["type"] == "http.response.body":
            return self._send_pieces(body, more=event.get("more_body", False))
        return self._write(event)

    async def _send_pieces(self, body: bytes, *, more: bool) -> None:
        size = len(body)
        for start in range(0, size, PIECE_SIZE):
            end = start + PIECE_SIZE
            await self._write({"type": "http.response.body", "body": body[start:end], "more_body": more or end < size})

    @coroutine
    def _write(self, event: AsgiEvent) -> Generator[Any, Any, None]:
        step = self._send(event).__await__()
        try:
            waiting = next(step)
        except StopIteration:
            return
        limits = self._limits
        with _Waiting(self, monotonic() + limits.stall) as wait:
            try:
                yield from _rest(step, waiting)
            except asyncio.CancelledError:
                if not wait.sole_cause:
                    raise
                limits.count("displaced" if wait.displaced else "slow_reader")
                raise ClientDroppedError("the client does not read the response") from None


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


def release_frames(error: BaseException | None) -> None:
    """Clear the variables of the code that an exception has left.

    They hold the request or the response for as long as something holds the exception: the sending of its status to a
    client that does not read, or an exporter of spans.
    """
    for _ in range(MAX_CONTEXTS):
        if error is None:
            return
        clear_frames(error.__traceback__)
        error = error.__context__


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

"""Inbound gRPC call of a server whose callers have limits: on the bytes they make it hold, and on the time it waits.

The calls set no timers. Each one notes what it waits for (``InboundCall.waits_for``), and ``CallerWatch`` looks at all
calls in progress about once a second. A call whose caller sends nothing of its request, or reads nothing of its
response, for the stall time is ended. A stream that waits for the next message is left alone.
"""

from __future__ import annotations

import asyncio
from time import monotonic  # the clock of the event loops
from typing import TYPE_CHECKING, Any

from mesh.call import Metadata
from mesh.errors import DeadlineExceeded, Internal, ResourceExhausted
from mesh.rpc.server.clients.budget import Holding
from mesh.rpc.server.clients.exception_frames import release_frames
from mesh.rpc.server.clients.held_response import HeldResponse
from mesh.rpc.server.inbound_call import RECEIVING, UNREAD, InboundCall

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine

    from mesh.asgi import Receive, Scope, Send
    from mesh.contract.model import Method
    from mesh.rpc.server.clients.limits import ClientLimits

__all__ = ["CallerWatch", "LimitedCall"]

MIN_RATE_BYTES = 240
"""Bytes a second that a caller has to send after the stall time (Kestrel's ``MinRequestBodyDataRate``)."""
RESET_DELAY = 2.0
"""Seconds after the stall time in which the server resets a stream that is not read itself."""
WATCH_INTERVAL = 1.0
"""Seconds between two looks at the calls."""
RETRY_AFTER_SECONDS = 1.0
"""Delay that a refused caller is told."""


class LimitedCall(InboundCall):
    """Inbound call with a share in the budget of bytes (``mesh.rpc.server.clients.budget.Owner``).

    Args:
        limits: The limits of the server.
        scope: The request.
        method: As of ``InboundCall``, like the rest.

    Attributes:
        limits: As given.

    Raises (from the constructor):
        StatusError: As ``InboundCall``.
    """

    __slots__ = ("_client", "_inbound", "_measured", "_outbound", "_seen", "_since", "limits")

    def __init__(
        self,
        limits: ClientLimits,
        scope: Scope,
        method: Method,
        metadata: Metadata,
        receive: Receive,
        send: Send,
        max_message: int,
    ) -> None:
        InboundCall.__init__(self, method, metadata, receive, send, max_message)
        self.limits = limits
        self._client: tuple[str, int] | None = scope.get("client")
        self._inbound: Holding | None = None
        self._outbound: HeldResponse | None = None
        self._measured = False
        self._seen: object = None  # what it waited for at the last look
        self._since = 0.0

    def receive_one(self) -> Coroutine[Any, Any, bytes]:
        """Return the one request, and count the response that the method is known to give: the function is called next.

        Else the responses of many calls would be there before the first of them is counted.

        Raises:
            ResourceExhausted: The budget does not allow it.
            StatusError: As ``Call.receive_one``.
        """
        return self._receive_and_reserve() if self.limits.response_sizes else InboundCall.receive_one(self)

    async def _receive_and_reserve(self) -> bytes:
        message = await InboundCall.receive_one(self)
        sizes = self.limits.response_sizes
        if not self.method.server_streaming:
            expected = sizes.get(self.method.path)
            if expected and not self._reserve(expected):
                self._measured = True  # a refused call shows nothing
                raise self._refusal("too many responses that are not read are held; try again later")
        return message

    def forget(self, error: BaseException) -> None:
        """Release the variables of a large call that has failed. Its caller may not read the status."""
        if self._inbound is not None or self._outbound is not None:
            self.forget_request()
            release_frames(error)

    def close(self) -> None:
        """Release everything but what the server has not written yet: the call has ended."""
        limits = self.limits
        if (self._outbound is not None or limits.recent_sizes) and self.headers_sent and not self._measured:
            limits.learn_size(self.method.path, 0)  # the response was small, or an error
        if self._inbound is not None:
            limits.buffers.release(self._inbound)
        if self._outbound is not None:
            self._outbound.release()

    # -- mesh.rpc.server.clients.budget.Owner --

    @property
    def displaceable(self) -> bool:
        """Whether the call waits for its caller."""
        return self.waits_for is not None and self.dropped is None

    def displace(self) -> None:
        """End the call: others need what it holds."""
        self.limits.count("displaced")
        reading = self.waits_for is not RECEIVING
        text = "this request is no longer waited for: its caller has the most of them; try again later"
        self.drop(UNREAD if reading else self._refusal(text))

    # -- time --

    def look(self, now: float) -> None:
        """End the call if its caller has made it wait for too long.

        Args:
            now: Loop time, seconds.
        """
        waits_for = self.waits_for
        if waits_for is None or self.dropped is UNREAD:
            self._seen = None
            return
        deframer = self._deframer
        pending = 0 if deframer is None else deframer.pending
        if waits_for is RECEIVING and self.method.client_streaming and not pending:  # between two messages
            self._seen = None
            return
        if self._seen is not waits_for:
            self._seen, self._since = waits_for, now
            return
        stall = self.limits.stall
        if waits_for is RECEIVING:
            if now - self._since > stall + pending / MIN_RATE_BYTES:
                self.limits.count("slow_body")
                self._seen = None
                self.drop(DeadlineExceeded("the request did not come in time"))
        elif now - self._since > stall + RESET_DELAY:
            self.limits.count("slow_reader")
            self.drop(UNREAD)

    # -- bytes --

    def _hold_request(self, size: int) -> None:
        if self._inbound is None:
            self._inbound = self._holding()
        if not self.limits.hold(self._inbound, size):
            raise self._refusal("too many unfinished requests are held; try again later")

    def _keep_request(self, size: int) -> None:
        self._seen = None
        if self._inbound is not None:
            self.limits.buffers.reduce(self._inbound, size)

    def _hold_response(self, size: int) -> None:
        if not self.method.server_streaming:
            self._measured = True
            self.limits.learn_size(self.method.path, size)
        if self._reserve(size):
            return
        if self.method.idempotent or self.method.server_streaming:
            raise self._refusal("too many responses that are not read are held; try again later")
        raise Internal("the function has run, but its response could not be held")

    def _reserve(self, size: int) -> bool:
        if self._outbound is None:
            self._outbound = HeldResponse(self.limits, self._holding())
        return self._outbound.reserve(size)

    def _piece(self, message: bytes) -> bytes:
        return message if self._outbound is None else self._outbound.piece(message)

    def _release_response(self) -> None:
        if self._outbound is not None:
            self._outbound.release()

    def _holding(self) -> Holding:
        client = self._client
        return Holding(client[0] if client else None, client, self)

    def _refusal(self, text: str) -> ResourceExhausted:
        return ResourceExhausted(text, retry_after=RETRY_AFTER_SECONDS)


class CallerWatch:
    """Timer that looks at the calls in progress.

    Args:
        limits: The limits of the server.
        calls: The calls in progress.

    Attributes:
        running: Whether it looks.
    """

    __slots__ = ("_calls", "_interval", "running")

    def __init__(self, limits: ClientLimits, calls: Collection[Any]) -> None:
        self._calls = calls
        self._interval = min(WATCH_INTERVAL, limits.stall / 4)
        self.running = False

    def start(self) -> None:
        """Look from now on, while there are calls."""
        if not self.running:
            self.running = True
            asyncio.get_running_loop().call_later(self._interval, self._look)

    def _look(self) -> None:
        self.running = False
        now = monotonic()
        for call in list(self._calls):
            call.look(now)
        if self._calls:
            self.start()

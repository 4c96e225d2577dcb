"""Calls of a stub that stream requests, responses or both.

The handler runs in a task of its own, which refers to the inner call object only. A call object that its user drops
before the end is therefore garbage-collected, and that cancels the call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Any

import grpc.aio

from mesh.boundary import cancel_task, contain
from mesh.call import Call, Metadata
from mesh.errors import StatusError
from mesh.rpc.client.http2_stream import wrong_response_count
from mesh.rpc.client.unary_call import CallFacade, OutboundCall, undecodable_response

if TYPE_CHECKING:
    from mesh.rpc.client.channel import MultiCallable

__all__ = ["StreamStreamCall", "StreamUnaryCall", "UnaryStreamCall"]

EOF: Any = getattr(grpc.aio, "EOF")  # noqa: B009 - its type stubs leave it out
RESPONSE_BUFFER_BYTES = 64 * 2**10
"""Bytes of unread response messages at which the handler waits."""
MESSAGE_OVERHEAD_BYTES = 64
"""Bytes that each message counts besides its own: many small messages take memory too."""


class _Signal:
    """Wake-up for one waiting task; a notification that no task waits for is lost."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Return at the next ``notify``."""
        self._future = asyncio.get_running_loop().create_future()
        try:
            await self._future
        finally:
            self._future = None

    def notify(self) -> None:
        """Wake the waiting task, if there is one."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class _StreamingCore(OutboundCall):
    """The handler's side of a streaming call.

    Attributes:
        responses: Response messages that the user has not read.
        requests_closed: There will be no more request messages.
    """

    __slots__ = (
        "_buffered_bytes", "_headers_received", "_receiving", "_request", "_request_added", "_request_taken",
        "_response_added", "_response_taken", "_source", "requests_closed", "responses",
    )  # fmt: skip

    def __init__(
        self, multi: MultiCallable, request: Any, metadata: Metadata, timeout: float | None, parent: Call | None
    ) -> None:
        super().__init__(multi, metadata, timeout, parent)
        self.responses: deque[bytes] = deque()
        self._buffered_bytes = 0
        self.requests_closed = False
        self.task: asyncio.Task[None] | None = None
        self._request: bytes | None = None
        self._source: AsyncIterator[Any] | Iterator[Any] | None = None
        if not self.method.client_streaming:
            self._request = multi.serialize(request)
            self.requests_closed = True
        elif request is not None:
            self._source = aiter(request) if hasattr(request, "__aiter__") else iter(request)
        self._request_added, self._request_taken = _Signal(), _Signal()
        self._response_added, self._response_taken = _Signal(), _Signal()
        self._receiving, self._headers_received = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Run the handler."""
        try:
            await self.multi.handler(self)
        except BaseException as error:  # noqa: BLE001 - raised where the call is awaited
            self.finish(error)
        else:
            self.finish(None)

    def finish(self, error: BaseException | None) -> None:
        """Record the end of the call, and wake every task that waits."""
        super().finish(error)
        for signal in (self._request_added, self._request_taken, self._response_added, self._response_taken):
            signal.notify()
        self._receiving.set()
        self._headers_received.set()

    def stop(self) -> bool:
        """Cancel the call."""
        if self.ended or self.task is None:
            return False
        cancel_task(self.task)
        self.responses.clear()
        self._buffered_bytes = 0
        self.finish(asyncio.CancelledError())
        return True

    # -- the handler's side --

    async def receive(self) -> bytes | None:
        """Return the next request message, or None after the last."""
        self._receiving.set()
        source = self._source
        if source is not None:
            try:
                request = await contain(_next_request(source))
            except StopAsyncIteration:
                return None
            message: bytes | None = self.multi.serialize(request)
            return message
        while self._request is None:
            if self.requests_closed:
                return None
            await self._request_added.wait()
        message, self._request = self._request, None
        self._request_taken.notify()
        return message

    async def send(self, message: bytes) -> None:
        """Accept a response message; waits while ``RESPONSE_BUFFER_BYTES`` are unread."""
        self.headers_sent = True
        self._headers_received.set()
        self.responses.append(message)
        self._buffered_bytes += len(message) + MESSAGE_OVERHEAD_BYTES
        self._response_added.notify()
        while self._buffered_bytes >= RESPONSE_BUFFER_BYTES:
            await self._response_taken.wait()

    async def send_headers(self) -> None:
        """Accept the response headers."""
        self.headers_sent = True
        self._headers_received.set()

    # -- the user's side --

    async def put_request(self, message: bytes) -> None:
        """Add a request message, once the handler has taken the one before it."""
        while self._request is not None and not self.ended:
            await self._request_taken.wait()
        if self.ended:
            self.raise_error()
            raise asyncio.InvalidStateError("the call has ended: it takes no more messages")
        self._request = message
        self._request_added.notify()

    def close_requests(self) -> None:
        """End the request messages."""
        self.requests_closed = True
        self._request_added.notify()

    async def get_response(self) -> bytes | None:
        """Return the next response message, or None at the end.

        Raises:
            CallError: The call has failed.
        """
        while not self.responses:
            if self.ended:
                self.raise_error()
                return None
            try:
                await self._response_added.wait()
            except asyncio.CancelledError:
                self.stop()
                raise
        message = self.responses.popleft()
        self._buffered_bytes -= len(message) + MESSAGE_OVERHEAD_BYTES
        if self._buffered_bytes < RESPONSE_BUFFER_BYTES:
            self._response_taken.notify()
        return message

    def decode(self, message: bytes) -> Any:
        """Return a response message as the stub's deserializer returns it.

        Raises:
            CallError: The deserializer refuses it; the call has ended with INTERNAL.
        """
        try:
            return self.multi.deserialize(message)
        except Exception as error:
            raise self.fail(undecodable_response(self.multi)) from error

    def fail(self, status: StatusError) -> BaseException:
        """End the call because its response is wrong, even if it has ended, and return the failure."""
        self.ended = False  # this failure replaces the server's status
        self.finish(status)
        if self.task is not None:
            cancel_task(self.task)
        assert self.error is not None  # noqa: S101 - finish has set it
        return self.error

    async def wait_headers(self) -> None:
        """Return when the headers have arrived, or the call has ended."""
        await self._headers_received.wait()

    async def wait_connected(self) -> None:
        """Return when the call has a connection, or has ended."""
        await self._receiving.wait()


async def _next_request(source: AsyncIterator[Any] | Iterator[Any]) -> Any:
    """Return the next request of the user's iterator.

    Raises:
        StopAsyncIteration: There is none.
    """
    if isinstance(source, AsyncIterator):
        return await anext(source)
    try:
        return next(source)
    except StopIteration:  # a coroutine cannot raise it
        raise StopAsyncIteration from None


class _StreamingCall(CallFacade):
    """The user's side of a streaming call, for all three kinds."""

    __slots__ = ("__weakref__", "_core")

    def __init__(
        self, multi: MultiCallable, request: Any, metadata: Metadata, timeout: float | None, parent: Call | None
    ) -> None:
        self._core = _StreamingCore(multi, request, metadata, timeout, parent)

    @property
    def core(self) -> _StreamingCore:
        """The call object that the handler has."""
        return self._core

    def start(self) -> None:
        """Start the task that runs the handler."""
        core = self._core
        core.task = asyncio.get_running_loop().create_task(core.run(), name=core.method.path)

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is None or core.task is None or core.ended:
            return
        loop = core.task.get_loop()
        if not loop.is_closed():  # the garbage collector may run in any thread
            loop.call_soon_threadsafe(core.stop)


class _RequestStreamingCall(_StreamingCall):
    """A call that streams its requests."""

    __slots__ = ()

    async def write(self, request: Any) -> None:
        """Send a message; waits until the one before it has been taken.

        Raises:
            CallError: The call has failed.
            asyncio.InvalidStateError: The call has ended, or ``done_writing`` was called.
            grpc.aio.UsageError: The requests come from an iterator.
        """
        core = self._writable_core()
        if core.requests_closed:
            raise asyncio.InvalidStateError("done_writing() was called: the call takes no more messages")
        try:
            await core.put_request(core.multi.serialize(request))
        except asyncio.CancelledError:
            core.stop()
            raise

    async def done_writing(self) -> None:
        """End the request messages; a second call has no effect."""
        self._writable_core().close_requests()

    def _writable_core(self) -> _StreamingCore:
        core = self._core
        if core._source is not None:  # noqa: SLF001 - same module
            raise grpc.aio.UsageError("the requests of this call come from an iterator: write() does not mix with it")
        return core


class _ResponseStreamingCall(_StreamingCall):
    """A call that streams its responses."""

    __slots__ = ()

    async def read(self) -> Any:
        """Return the next message, or ``grpc.aio.EOF`` at the end.

        Raises:
            CallError: The call has failed.
        """
        message = await self._core.get_response()
        return EOF if message is None else self._core.decode(message)

    async def __aiter__(self) -> AsyncIterator[Any]:
        core = self._core
        while (message := await core.get_response()) is not None:
            yield core.decode(message)


class UnaryStreamCall(_ResponseStreamingCall):
    """A call with one request and a stream of responses."""

    kind = (False, True)

    __slots__ = ()


class StreamStreamCall(_RequestStreamingCall, _ResponseStreamingCall):
    """A call with a stream of requests and a stream of responses."""

    kind = (True, True)

    __slots__ = ()


class StreamUnaryCall(_RequestStreamingCall):
    """A call with a stream of requests and one response."""

    kind = (True, False)

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result().__await__()

    async def _result(self) -> Any:
        core = self._core
        try:
            await core.wait_ended()
        except asyncio.CancelledError:
            core.stop()
            raise
        core.raise_error()
        if not core.responses:
            raise core.fail(wrong_response_count(0))
        return core.decode(core.responses[0])


_abc: Any = grpc.aio  # its calls are ABCs, which its type stubs do not say
_abc.UnaryStreamCall.register(UnaryStreamCall)
_abc.StreamUnaryCall.register(StreamUnaryCall)
_abc.StreamStreamCall.register(StreamStreamCall)

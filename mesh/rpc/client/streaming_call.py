"""The calls of a stub that stream requests, responses or both.

The handler runs in a task of its own and holds only the inside of the call, so that a call which its user drops
unfinished is collected, and cancelled.
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
from mesh.rpc.client.http2_stream import wrong_count
from mesh.rpc.client.unary_call import CallFacade, OutboundCall, undecodable

if TYPE_CHECKING:
    from mesh.rpc.client.channel import MultiCallable

__all__ = ["StreamStreamCall", "StreamUnaryCall", "UnaryStreamCall"]

EOF: Any = getattr(grpc.aio, "EOF")  # noqa: B009 - its type stubs leave it out
WAITING = 64 * 2**10
"""Bytes of response messages that wait for their reader before the handler does."""
COST = 64
"""What a message counts at least: many small ones cost memory too."""


class _Signal:
    """Something that one side of the call waits for and the other side gives."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Return at the next ``give``."""
        self._future = asyncio.get_running_loop().create_future()
        try:
            await self._future
        finally:
            self._future = None

    def give(self) -> None:
        """Let the one that waits go on."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class _Core(OutboundCall):
    """The inside of a streaming call."""

    __slots__ = (
        "_answer_in", "_answer_out", "_begun", "_headers_in", "_held", "_request", "_request_in", "_request_out",
        "_source", "answers", "closed",
    )  # fmt: skip

    def __init__(
        self, multi: MultiCallable, request: Any, metadata: Metadata, timeout: float | None, parent: Call | None
    ) -> None:
        super().__init__(multi, metadata, timeout, parent)
        self.answers: deque[bytes] = deque()
        self._held = 0
        self.closed = False
        self.task: asyncio.Task[None] | None = None
        self._request: bytes | None = None
        self._source: AsyncIterator[Any] | Iterator[Any] | None = None
        if not self.method.client_streaming:
            self._request = multi.serialize(request)
            self.closed = True
        elif request is not None:
            self._source = aiter(request) if hasattr(request, "__aiter__") else iter(request)
        self._request_in, self._request_out = _Signal(), _Signal()
        self._answer_in, self._answer_out = _Signal(), _Signal()
        self._begun, self._headers_in = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Have the handler answer."""
        try:
            await self.multi.handler(self)
        except BaseException as error:  # noqa: BLE001 - raised where the call is awaited
            self.finish(error)
        else:
            self.finish(None)

    def finish(self, error: BaseException | None) -> None:
        """Note how the call ended, and wake everyone."""
        super().finish(error)
        for signal in (self._request_in, self._request_out, self._answer_in, self._answer_out):
            signal.give()
        self._begun.set()
        self._headers_in.set()

    def stop(self) -> bool:
        """Cancel the call."""
        if self.over or self.task is None:
            return False
        cancel_task(self.task)
        self.answers.clear()
        self._held = 0
        self.finish(asyncio.CancelledError())
        return True

    # -- towards the handler --

    async def receive(self) -> bytes | None:
        """Return the next request message, or None after the last."""
        self._begun.set()
        source = self._source
        if source is not None:
            try:
                request = await contain(_next(source))
            except StopAsyncIteration:
                return None
            message: bytes | None = self.multi.serialize(request)
            return message
        while self._request is None:
            if self.closed:
                return None
            await self._request_in.wait()
        message, self._request = self._request, None
        self._request_out.give()
        return message

    async def send(self, message: bytes) -> None:
        """Take a response message; waits while its reader is far behind."""
        self.headers_sent = True
        self._headers_in.set()
        self.answers.append(message)
        self._held += len(message) + COST
        self._answer_in.give()
        while self._held >= WAITING:
            await self._answer_out.wait()

    async def send_headers(self) -> None:
        """Take the response headers."""
        self.headers_sent = True
        self._headers_in.set()

    # -- towards the user --

    async def put(self, message: bytes) -> None:
        """Hand a request message on, when the one before it is taken."""
        while self._request is not None and not self.over:
            await self._request_out.wait()
        if self.over:
            self.raise_error()
            raise asyncio.InvalidStateError("the call has ended: it takes no more messages")
        self._request = message
        self._request_in.give()

    def close(self) -> None:
        """There will be no more request messages."""
        self.closed = True
        self._request_in.give()

    async def get(self) -> bytes | None:
        """Return the next response message, or None at the end.

        Raises:
            CallError: The call has failed.
        """
        while not self.answers:
            if self.over:
                self.raise_error()
                return None
            try:
                await self._answer_in.wait()
            except asyncio.CancelledError:
                self.stop()
                raise
        message = self.answers.popleft()
        self._held -= len(message) + COST
        if self._held < WAITING:
            self._answer_out.give()
        return message

    def decode(self, message: bytes) -> Any:
        """Return a response message as the stub's deserializer gives it.

        Raises:
            CallError: It does not take it; the call has ended with INTERNAL.
        """
        try:
            return self.multi.deserialize(message)
        except Exception as error:
            raise self.failed(undecodable(self.multi)) from error

    def failed(self, status: StatusError) -> BaseException:
        """End the call because of its answer, if it has not ended, and return the failure."""
        self.over = False  # what the server said of the end does not count
        self.finish(status)
        if self.task is not None:
            cancel_task(self.task)
        assert self.error is not None  # noqa: S101 - finish makes it
        return self.error

    async def until_headers(self) -> None:
        """Return when the headers have come, or the end."""
        await self._headers_in.wait()

    async def until_begun(self) -> None:
        """Return when the call has a connection, or has ended."""
        await self._begun.wait()


async def _next(source: AsyncIterator[Any] | Iterator[Any]) -> Any:
    """Return the next request of a function's own iterator.

    Raises:
        StopAsyncIteration: There is none.
    """
    if isinstance(source, AsyncIterator):
        return await anext(source)
    try:
        return next(source)
    except StopIteration:  # which no coroutine raises
        raise StopAsyncIteration from None


class _StreamingCall(CallFacade):
    """What the three kinds share."""

    __slots__ = ("__weakref__", "_inside")

    def __init__(
        self, multi: MultiCallable, request: Any, metadata: Metadata, timeout: float | None, parent: Call | None
    ) -> None:
        self._inside = _Core(multi, request, metadata, timeout, parent)

    @property
    def core(self) -> _Core:
        """The inside of the call, which the handler holds."""
        return self._inside

    def start(self) -> None:
        """Begin."""
        core = self._inside
        core.task = asyncio.get_running_loop().create_task(core.run(), name=core.method.path)

    def __del__(self) -> None:
        core = getattr(self, "_inside", None)
        if core is None or core.task is None or core.over:
            return
        loop = core.task.get_loop()
        if not loop.is_closed():  # the collector may run in any thread
            loop.call_soon_threadsafe(core.stop)


class _Writing(_StreamingCall):
    """A call that streams its requests."""

    __slots__ = ()

    async def write(self, request: Any) -> None:
        """Send a message; waits while the server has no room.

        Raises:
            CallError: The call has failed.
            asyncio.InvalidStateError: The call has ended, or ``done_writing`` was called.
            grpc.aio.UsageError: The requests come from an iterator.
        """
        core = self._style()
        if core.closed:
            raise asyncio.InvalidStateError("done_writing() was called: the call takes no more messages")
        try:
            await core.put(core.multi.serialize(request))
        except asyncio.CancelledError:
            core.stop()
            raise

    async def done_writing(self) -> None:
        """Say that there will be no more messages; may be said twice."""
        self._style().close()

    def _style(self) -> _Core:
        core = self._inside
        if core._source is not None:  # noqa: SLF001 - same module
            raise grpc.aio.UsageError("the requests of this call come from an iterator: write() does not mix with it")
        return core


class _Reading(_StreamingCall):
    """A call that streams its responses."""

    __slots__ = ()

    async def read(self) -> Any:
        """Return the next message, or ``grpc.aio.EOF`` at the end.

        Raises:
            CallError: The call has failed.
        """
        message = await self._inside.get()
        return EOF if message is None else self._inside.decode(message)

    async def __aiter__(self) -> AsyncIterator[Any]:
        core = self._inside
        while (message := await core.get()) is not None:
            yield core.decode(message)


class UnaryStreamCall(_Reading):
    """One request, many responses."""

    kind = (False, True)

    __slots__ = ()


class StreamStreamCall(_Writing, _Reading):
    """Many requests, many responses."""

    kind = (True, True)

    __slots__ = ()


class StreamUnaryCall(_Writing):
    """Many requests, one response."""

    kind = (True, False)

    __slots__ = ("_answer",)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._outcome().__await__()

    async def _outcome(self) -> Any:
        core = self._inside
        try:
            await core.until_over()
        except asyncio.CancelledError:
            core.stop()
            raise
        core.raise_error()
        if not core.answers:
            raise core.failed(wrong_count(0))
        return core.decode(core.answers[0])


_abc: Any = grpc.aio  # its calls are ABCs, which its type stubs do not say
_abc.UnaryStreamCall.register(UnaryStreamCall)
_abc.StreamUnaryCall.register(StreamUnaryCall)
_abc.StreamStreamCall.register(StreamStreamCall)

"""Blocking channel for ``def`` functions: the stub blocks a worker thread while its call runs on the event loop.

The call gets the thread's context variables, so it has the deadline, identity and trace of the function that makes it.
It is cancelled when the call that the function answers ends. A use on the thread of the channel's own event loop is
refused, because it would wait for itself. An event loop that a function runs in its own thread is blocked, as by any
blocking function.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

import grpc.aio

from mesh.context_variables import isolated_copy
from mesh.errors import Cancelled
from mesh.rpc.client.streaming_call import EOF
from mesh.threads import wait

if TYPE_CHECKING:
    from mesh.rpc.client.channel import Channel

__all__ = ["BlockingCall", "BlockingChannel"]

T = TypeVar("T")


class BlockingChannel:
    """A channel of blocking stubs, shaped like ``grpc.Channel``.

    A unary response is returned; streamed responses are an iterator (``BlockingCall``). Streamed requests may be any
    iterable. It is read on a thread of the loop's executor while the call runs.

    Args:
        channel: The channel that makes the calls.
        loop: The event loop that it runs on.
    """

    def __init__(self, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        self._channel = channel
        self._loop = loop

    def unary_unary(self, *arguments: Any, **options: Any) -> _BlockingMultiCallable:
        """Return the callable of a unary method."""
        return _BlockingMultiCallable(self._loop, self._channel.unary_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> _BlockingMultiCallable:
        """Return the callable of a method that streams responses."""
        return _BlockingMultiCallable(self._loop, self._channel.unary_stream(*arguments, **options))

    def stream_unary(self, *arguments: Any, **options: Any) -> _BlockingMultiCallable:
        """Return the callable of a method that streams requests."""
        return _BlockingMultiCallable(self._loop, self._channel.stream_unary(*arguments, **options))

    def stream_stream(self, *arguments: Any, **options: Any) -> _BlockingMultiCallable:
        """Return the callable of a method that streams both ways."""
        return _BlockingMultiCallable(self._loop, self._channel.stream_stream(*arguments, **options))


class _BlockingMultiCallable:
    """One method of a blocking stub."""

    __slots__ = ("_loop", "_multi")

    def __init__(self, loop: asyncio.AbstractEventLoop, multi: Any) -> None:
        self._loop = loop
        self._multi = multi

    def __call__(self, request: Any = None, **arguments: Any) -> Any:
        """Make the call, and return the response or the iterator of responses.

        Raises:
            CallError: The call has failed.
            RuntimeError: This is the thread of the channel's event loop.
        """
        if self._multi.method.server_streaming:
            return self._start(request, arguments)
        return self.with_call(request, **arguments)[0]

    def with_call(self, request: Any = None, **arguments: Any) -> tuple[Any, BlockingCall]:
        """Make a call with one response, and return the response and the call, which has the metadata.

        Raises:
            CallError: The call has failed.
            RuntimeError: This is the thread of the channel's event loop.
        """
        call = self._start(request, arguments)
        return call.result(), call

    def _start(self, request: Any, arguments: dict[str, Any]) -> BlockingCall:
        async def start() -> BlockingCall:  # made on the loop, so that it is cancelled if this thread no longer waits
            source = request
            if self._multi.method.client_streaming:
                source = _from_thread(iter(request))
            return BlockingCall(self._loop, self._multi(source, **arguments))

        return _wait(self._loop, start())


class BlockingCall:
    """A call of a blocking stub; an iterator over the responses of a method that streams them."""

    __slots__ = ("_call", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Any) -> None:
        self._loop = loop
        self._call = call

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        message = self._run(self._call.read())
        if message is EOF:
            raise StopIteration
        return message

    def result(self) -> Any:
        """Return the one response."""

        async def response() -> Any:
            return await self._call

        return self._run(response())

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            return _wait(self._loop, coroutine)
        except Cancelled:  # the call that the function answers has ended
            self.cancel()
            raise

    def cancel(self) -> None:
        """Cancel the call."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._call.cancel)

    def initial_metadata(self) -> grpc.aio.Metadata:
        """Wait for the response headers and return them."""
        metadata: grpc.aio.Metadata = self._run(self._call.initial_metadata())
        return metadata

    def trailing_metadata(self) -> grpc.aio.Metadata:
        """Wait for the end of the call and return the trailers."""
        metadata: grpc.aio.Metadata = self._run(self._call.trailing_metadata())
        return metadata

    def code(self) -> grpc.StatusCode:
        """Wait for the end of the call and return the status code."""
        code: grpc.StatusCode = self._run(self._call.code())
        return code

    def details(self) -> str:
        """Wait for the end of the call and return the status message."""
        details: str = self._run(self._call.details())
        return details

    def __del__(self) -> None:
        if not self._call.done():
            self.cancel()


def _wait(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine on the loop, with this thread's context variables, and return its result.

    Raises:
        Cancelled: The call that this thread answers has ended.
        RuntimeError: This is the thread of the loop.
    """
    if asyncio._get_running_loop() is loop:  # noqa: SLF001 - get_running_loop without the exception
        coroutine.close()
        raise RuntimeError("a blocking stub would stop the event loop it is used on: await the async one here")
    result: T = wait(coroutine, loop)
    return result


async def _from_thread(requests: Iterator[Any]) -> AsyncIterator[Any]:
    """Read a blocking iterator without blocking the loop, with the context variables of the function that made it."""
    end = object()

    def take() -> tuple[Any, BaseException | None]:
        try:
            return next(requests, end), None
        except BaseException as error:  # noqa: BLE001 - raised in the loop; a future does not accept every exception
            return end, error

    loop, context = asyncio.get_running_loop(), isolated_copy(copy_context())
    while True:
        request, error = await loop.run_in_executor(None, context.run, take)
        if error is not None:
            raise error
        if request is end:
            return
        yield request

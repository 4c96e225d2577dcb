"""The calls that a stub makes: ``mesh.call.Call`` towards the handler, ``grpc.aio``'s call objects towards the user.

A plain ``await stub.Method(request)`` runs the handler in the awaiting task: no task, no queue. A call that nobody
awaits within this turn of the loop runs in a task of its own, so calls begun together run together, as grpc.aio's do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from time import monotonic  # what the loops' own clocks are
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from mesh.call import Call, Metadata, decode_values
from mesh.errors import Cancelled, Internal, RemoteError, StatusError, Unknown
from mesh.rpc import status
from mesh.rpc.client.http2_stream import wrong_count

if TYPE_CHECKING:
    from mesh.rpc.client.channel import MultiCallable

__all__ = ["CallError", "CallFacade", "OutboundCall", "UnaryUnaryCall", "undecodable"]

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def _grpc_metadata(pairs: Iterable[tuple[bytes, bytes]]) -> grpc.aio.Metadata:
    """Return wire pairs as grpc.aio gives metadata."""
    return grpc.aio.Metadata(*[(name.decode(), value) for name, wire in pairs for value in decode_values(name, wire)])


def undecodable(multi: MultiCallable) -> Internal:
    """Return the status of a response that the stub's deserializer does not take (statuscodes.md)."""
    return Internal(f"the response of {multi.method.path} cannot be decoded: it is no message of the expected type")


class CallError(grpc.aio.AioRpcError, RemoteError):
    """A call of a stub has failed.

    Attributes:
        status: How, as the mesh's own exception.
    """

    def __init__(self, error: StatusError, headers: grpc.aio.Metadata, trailers: grpc.aio.Metadata) -> None:
        super().__init__(_CODES[int(error.code)], headers, trailers, error.message, str(error))
        self.status = error

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.status, self.initial_metadata(), self.trailing_metadata()))


class OutboundCall(Call):
    """What unary and streaming calls share: the end of the call, and who waits for it."""

    __slots__ = ("_callbacks", "_done", "compression", "error", "multi", "over", "revoked", "status", "wait_for_ready")

    def __init__(self, multi: MultiCallable, metadata: Metadata, timeout: float | None, parent: Call | None) -> None:
        method = multi.method
        limit = method.timeout
        if timeout is not None and (limit is None or timeout < limit):
            limit = timeout
        deadline = None if limit is None else monotonic() + limit
        if parent is not None and parent.deadline is not None and (deadline is None or parent.deadline < deadline):
            deadline = parent.deadline
        Call.__init__(self, method, metadata, deadline)  # super() would cost every call 80 ns
        self.wait_for_ready = False
        self.compression = ""
        self.multi = multi
        self.over = False
        self.revoked = False
        self.status: StatusError | None = None
        self.error: BaseException | None = None
        self._done: asyncio.Future[None] | None = None
        self._callbacks: list[Callable[[], Any]] | None = None

    async def send_headers(self) -> None:
        """Take the response headers."""
        self.headers_sent = True

    def finish(self, error: BaseException | None) -> None:
        """Note how the call ended, and tell who waits."""
        if self.over:
            return
        self.over = True
        self.headers_sent = True
        if error is not None:
            if isinstance(error, StatusError):
                self.status = error
                error = CallError(error, _grpc_metadata(self.headers), self.trailing())
            elif isinstance(error, asyncio.CancelledError):
                self.revoked = True
                self.status = Cancelled("cancelled by its caller")
            else:
                self.status = Unknown("the call failed before it was sent")
            self.error = error
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
        if self._callbacks:
            for callback in self._callbacks:
                asyncio.get_running_loop().call_soon(callback)
            self._callbacks = None

    def raise_error(self) -> None:
        """Raise how the call failed, if it did."""
        if self.error is not None:
            if isinstance(self.error, asyncio.CancelledError):
                raise asyncio.CancelledError
            raise self.error

    async def until_over(self) -> None:
        """Return when the call has ended."""
        if not self.over:
            if self._done is None:
                self._done = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._done)

    def on_done(self, callback: Callable[[], Any]) -> None:
        """Have the callback called when the call has ended."""
        if self.over:
            asyncio.get_running_loop().call_soon(callback)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def trailing(self) -> grpc.aio.Metadata:
        """Return the trailing metadata; rich status is in it, as grpc_status reads it."""
        found = _grpc_metadata(self.trailers)
        if self.status is not None and self.status.details:
            found.add(status.DETAILS.decode(), status.pack_status(self.status))
        return found


class CallFacade:
    """The user's side of a call, as ``grpc.aio.Call`` has it."""

    __slots__ = ()

    @property
    def core(self) -> Any:
        """The inside of the call."""
        raise NotImplementedError

    def cancel(self) -> bool:
        """End the call; False if it had ended already."""
        return bool(self.core.stop())

    def cancelled(self) -> bool:
        """Whether it was cancelled here."""
        return bool(self.core.revoked)

    def done(self) -> bool:
        """Whether it has ended."""
        return bool(self.core.over)

    def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
        """Call ``callback(call)`` when it has ended."""
        self.core.on_done(lambda: callback(self))

    def time_remaining(self) -> float | None:
        """Return the seconds until its deadline, or None without one."""
        remaining: float | None = self.core.remaining()
        return remaining

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """Return the response headers; those of a unary response come with the response."""
        await self.core.until_headers()
        return _grpc_metadata(self.core.headers)

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """Return the trailers, when the call has ended."""
        await self.core.until_over()
        found: grpc.aio.Metadata = self.core.trailing()
        return found

    async def code(self) -> grpc.StatusCode:
        """Return the status code, when the call has ended."""
        await self.core.until_over()
        error = self.core.status
        return grpc.StatusCode.OK if error is None else _CODES[int(error.code)]

    async def details(self) -> str:
        """Return the status message, when the call has ended."""
        await self.core.until_over()
        error = self.core.status
        return "" if error is None else str(error.message)

    async def debug_error_string(self) -> str:
        """Return the status as one line, when the call has ended."""
        await self.core.until_over()
        return str(self.core.status or "")

    async def wait_for_connection(self) -> None:
        """Return when the call has a connection.

        Raises:
            CallError: The call has failed.
        """
        await self.core.until_begun()
        if self.core.over:
            self.core.raise_error()


class UnaryUnaryCall(CallFacade, OutboundCall):
    """A call with one request and one response: towards the handler and towards the user."""

    kind = (False, False)

    __slots__ = ("_begun", "_message", "_task", "answer")

    @property
    def core(self) -> UnaryUnaryCall:
        """The call itself: one object is both sides."""
        return self

    def __init__(
        self, multi: MultiCallable, request: Any, metadata: Metadata, timeout: float | None, parent: Call | None
    ) -> None:
        OutboundCall.__init__(self, multi, metadata, timeout, parent)  # super() would cost 100 ns
        self._message: bytes = multi.serialize(request)
        self.answer: Any = None
        self._task: asyncio.Task[Any] | None = None
        self._begun = False

    def start(self) -> None:
        """Begin when it is awaited, or, if that takes more than a turn of the loop, in a task."""
        asyncio.get_running_loop().call_soon(self._begin_soon)

    # -- towards the handler --

    async def receive(self) -> bytes | None:
        """Return the request once, then None."""
        message, self._message = self._message, None  # type: ignore[assignment]
        return message

    async def receive_one(self) -> bytes:
        """Return the request."""
        return self._message

    async def send(self, message: bytes) -> None:
        """Take the response."""
        self.headers_sent = True
        self.answer = message

    # -- towards the user --

    def __await__(self) -> Generator[Any, None, Any]:
        if self._begun:
            return self._outcome().__await__()
        self._begun = True
        return self._run().__await__()

    async def _run(self) -> Any:
        self.task = asyncio.current_task()
        try:
            await self.multi.handler(self)
            if self.answer is None:
                raise wrong_count(0)  # noqa: TRY301 - ends as every failure does
            try:
                answer = self.answer = self.multi.deserialize(self.answer)
            except Exception as error:
                raise undecodable(self.multi) from error
        except asyncio.CancelledError as error:
            if self.revoked and self._task is None and self.task is not None:
                self.task.uncancel()  # only this call was cancelled, not the task that awaits it
            self.finish(error)
            raise
        except StatusError as error:
            self.finish(error)
            assert self.error is not None  # noqa: S101 - finish makes it
            raise self.error from None
        except BaseException as error:
            self.finish(error)
            raise
        finally:
            self.task = None
        self.over = True
        if self._done is not None or self._callbacks:
            self.over = False
            self.finish(None)
        return answer

    async def _outcome(self) -> Any:
        try:
            await self.until_over()
        except asyncio.CancelledError:
            self.stop()
            raise
        self.raise_error()
        return self.answer

    def _begin_soon(self) -> None:
        if not self._begun:  # ``gather`` and ``ensure_future`` await it in their own task, which begins after this
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._task = asyncio.get_running_loop().create_task(self._run_quietly(), name=self.method.path)

    async def _run_quietly(self) -> None:
        with suppress(Exception, asyncio.CancelledError):  # kept in self.error, for whoever awaits the call
            await self._run()

    def stop(self) -> bool:
        """Cancel the call."""
        if self.over:
            return False
        self.revoked = True
        if not self._begun:
            self._begun = True
            self.finish(asyncio.CancelledError())
        elif self._task is not None:
            self._task.cancel()
        elif self.task is not None:
            self.task.cancel()
        return True

    async def until_headers(self) -> None:
        """Return when there are headers: with the response."""
        await self.until_over()

    async def until_begun(self) -> None:
        """Return when the call is under way: at its end, which for a unary call is all that can be seen."""
        await self.until_over()


_abc: Any = grpc.aio.UnaryUnaryCall  # an ABC, which its type stubs do not say
_abc.register(UnaryUnaryCall)

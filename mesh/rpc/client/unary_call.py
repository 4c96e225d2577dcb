"""Calls of a stub: a ``mesh.call.Call`` for the handler, one of ``grpc.aio``'s call objects for the user.

A plain ``await stub.Method(request)`` runs the handler in the awaiting task, without a task or a queue of its own. A
call that is not awaited within two turns of the loop runs in a task of its own. Calls that are started together
therefore run together, as grpc.aio's do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from time import monotonic  # the clock of asyncio's and uvloop's event loops
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from mesh.call import Call, Metadata, decode_values
from mesh.errors import Cancelled, Internal, StatusError, Unknown, is_own
from mesh.rpc import status
from mesh.rpc.client.call_error import GRPC_CODES, call_error
from mesh.rpc.client.http2_stream import wrong_response_count

if TYPE_CHECKING:
    from mesh.rpc.client.channel import MultiCallable

__all__ = ["CallFacade", "OutboundCall", "UnaryUnaryCall", "undecodable_response"]


def _grpc_metadata(pairs: Iterable[tuple[bytes, bytes]]) -> grpc.aio.Metadata:
    """Return wire pairs as grpc.aio's metadata."""
    return grpc.aio.Metadata(*[(name.decode(), value) for name, wire in pairs for value in decode_values(name, wire)])


def undecodable_response(multi: MultiCallable) -> Internal:
    """Return the status of a response that the stub's deserializer refuses (statuscodes.md)."""
    return Internal(f"the response of {multi.method.path} cannot be decoded: it is no message of the expected type")


class OutboundCall(Call):
    """The part that unary and streaming calls share: their end, and the tasks that wait for it.

    Attributes:
        multi: The method of the stub.
        ended: The call has ended.
        was_cancelled: It was cancelled on this side.
        status: The status that it ended with; None for OK and before the end.
        error: The exception for the user; None for OK and before the end.
    """

    __slots__ = (
        "_callbacks", "_end_future", "compression", "ended", "error", "multi", "status", "wait_for_ready",
        "was_cancelled",
    )  # fmt: skip

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
        self.ended = False
        self.was_cancelled = False
        self.status: StatusError | None = None
        self.error: BaseException | None = None
        self._end_future: asyncio.Future[None] | None = None
        self._callbacks: list[Callable[[], Any]] | None = None

    async def send_headers(self) -> None:
        """Accept the response headers."""
        self.headers_sent = True

    def finish(self, error: BaseException | None) -> None:
        """Record the end of the call, and wake the tasks that wait for it."""
        if self.ended:
            return
        self.ended = True
        self.headers_sent = True
        if error is not None:
            if is_own(error):  # the requests of a function may fail with the error of another call
                self.status = error
                error = call_error(error, _grpc_metadata(self.headers), self.grpc_trailers())
            elif isinstance(error, asyncio.CancelledError):
                self.was_cancelled = True
                self.status = Cancelled("cancelled by its caller")
            else:
                self.status = Unknown("the call failed before it was sent")
            self.error = error
        if self._end_future is not None and not self._end_future.done():
            self._end_future.set_result(None)
        if self._callbacks:
            for callback in self._callbacks:
                asyncio.get_running_loop().call_soon(callback)
            self._callbacks = None

    def raise_error(self) -> None:
        """Raise the failure of the call, if it has failed."""
        if self.error is not None:
            if isinstance(self.error, asyncio.CancelledError):
                raise asyncio.CancelledError
            raise self.error

    async def wait_ended(self) -> None:
        """Return when the call has ended."""
        if not self.ended:
            if self._end_future is None:
                self._end_future = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._end_future)

    def on_done(self, callback: Callable[[], Any]) -> None:
        """Call the callback when the call has ended, or soon if it has."""
        if self.ended:
            asyncio.get_running_loop().call_soon(callback)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def grpc_trailers(self) -> grpc.aio.Metadata:
        """Return the trailing metadata, with the rich status where grpc_status reads it."""
        found = _grpc_metadata(self.trailers)
        if self.status is not None and self.status.details:
            found.add(status.DETAILS.decode(), status.pack_status(self.status))
        return found


class CallFacade:
    """The user's side of a call, with the methods of ``grpc.aio.Call``."""

    __slots__ = ()

    @property
    def core(self) -> Any:
        """The ``OutboundCall``."""
        raise NotImplementedError

    def cancel(self) -> bool:
        """Cancel the call; return False if it had ended already."""
        return bool(self.core.stop())

    def cancelled(self) -> bool:
        """Whether it was cancelled on this side."""
        return bool(self.core.was_cancelled)

    def done(self) -> bool:
        """Whether it has ended."""
        return bool(self.core.ended)

    def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
        """Call ``callback(call)`` when it has ended."""
        self.core.on_done(lambda: callback(self))

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline, or None without one."""
        remaining: float | None = self.core.remaining()
        return remaining

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """Return the response headers; those of a unary response arrive with the response."""
        await self.core.wait_headers()
        return _grpc_metadata(self.core.headers)

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """Return the trailers, when the call has ended."""
        await self.core.wait_ended()
        trailers: grpc.aio.Metadata = self.core.grpc_trailers()
        return trailers

    async def code(self) -> grpc.StatusCode:
        """Return the status code, when the call has ended."""
        await self.core.wait_ended()
        error = self.core.status
        return grpc.StatusCode.OK if error is None else GRPC_CODES[error.code]

    async def details(self) -> str:
        """Return the status message, when the call has ended."""
        await self.core.wait_ended()
        error = self.core.status
        return "" if error is None else str(error.message)

    async def debug_error_string(self) -> str:
        """Return the status as one line, when the call has ended."""
        await self.core.wait_ended()
        return str(self.core.status or "")

    async def wait_for_connection(self) -> None:
        """Return when the call has a connection.

        Raises:
            CallError: The call has failed.
        """
        await self.core.wait_connected()
        if self.core.ended:
            self.core.raise_error()


class UnaryUnaryCall(CallFacade, OutboundCall):
    """A call with one request and one response. One object is the handler's side and the user's."""

    kind = (False, False)

    __slots__ = ("_message", "_started", "_task", "response")

    @property
    def core(self) -> UnaryUnaryCall:
        """The call itself."""
        return self

    def __init__(
        self, multi: MultiCallable, request: Any, metadata: Metadata, timeout: float | None, parent: Call | None
    ) -> None:
        OutboundCall.__init__(self, multi, metadata, timeout, parent)  # super() would cost 100 ns
        self._message: bytes = multi.serialize(request)
        self.response: Any = None
        self._task: asyncio.Task[Any] | None = None
        self._started = False

    def start(self) -> None:
        """Let the call start when it is awaited, or in a task if that takes more than two turns of the loop."""
        asyncio.get_running_loop().call_soon(self._schedule_task)

    # -- the handler's side --

    async def receive(self) -> bytes | None:
        """Return the request once, then None."""
        message, self._message = self._message, None  # type: ignore[assignment]
        return message

    async def receive_one(self) -> bytes:
        """Return the request."""
        return self._message

    async def send(self, message: bytes) -> None:
        """Accept the response."""
        self.headers_sent = True
        self.response = message

    # -- the user's side --

    def __await__(self) -> Generator[Any, None, Any]:
        if self._started:
            return self._result().__await__()
        self._started = True
        return self._run().__await__()

    async def _run(self) -> Any:
        self.task = asyncio.current_task()
        try:
            await self.multi.handler(self)
            if self.response is None:
                raise wrong_response_count(0)  # noqa: TRY301 - handled below like every failure
            try:
                response = self.response = self.multi.deserialize(self.response)
            except Exception as error:
                raise undecodable_response(self.multi) from error
        except asyncio.CancelledError as error:
            if self.was_cancelled and self._task is None and self.task is not None:
                self.task.uncancel()  # the call was cancelled, not the task that awaits it
            self.finish(error)
            raise
        except StatusError as error:
            self.finish(error)
            assert self.error is not None  # noqa: S101 - finish has set it
            if self.error is error:  # of another call
                raise
            raise self.error from None
        except BaseException as error:
            self.finish(error)
            raise
        finally:
            self.task = None
        self.ended = True
        if self._end_future is not None or self._callbacks:
            self.ended = False
            self.finish(None)
        return response

    async def _result(self) -> Any:
        try:
            await self.wait_ended()
        except asyncio.CancelledError:
            self.stop()
            raise
        self.raise_error()
        return self.response

    def _schedule_task(self) -> None:
        if not self._started:  # ``gather`` and ``ensure_future`` await it in a task of theirs, which starts after this
            asyncio.get_running_loop().call_soon(self._start_task)

    def _start_task(self) -> None:
        if not self._started:
            self._started = True
            self._task = asyncio.get_running_loop().create_task(self._run_in_task(), name=self.method.path)

    async def _run_in_task(self) -> None:
        with suppress(Exception, asyncio.CancelledError):  # self.error has it, for the task that awaits the call
            await self._run()

    def stop(self) -> bool:
        """Cancel the call."""
        if self.ended:
            return False
        self.was_cancelled = True
        if not self._started:
            self._started = True
            self.finish(asyncio.CancelledError())
        elif self._task is not None:
            self._task.cancel()
        elif self.task is not None:
            self.task.cancel()
        return True

    async def wait_headers(self) -> None:
        """Return when the headers have arrived, which is the end of the call."""
        await self.wait_ended()

    async def wait_connected(self) -> None:
        """Return when the call has a connection; of a unary call only the end can be seen."""
        await self.wait_ended()


_abc: Any = grpc.aio.UnaryUnaryCall  # an ABC, which its type stubs do not say
_abc.register(UnaryUnaryCall)

"""A streaming method over HTTP: request messages out of the body, response messages into the answer, until either ends.

Nothing is held here but the message on its way: the function is as fast as the client reads, and the client may send as
fast as the function reads. A stream may take as long as its method allows, without a limit if it says nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from mesh.boundary import uncancel_task
from mesh.call import current
from mesh.edge import refusals
from mesh.edge.call import GONE, HttpCall, StreamCall
from mesh.edge.http import request_body, response, status_response
from mesh.edge.http.disconnect import Watch
from mesh.edge.http.negotiation import Form
from mesh.edge.http.response import Items, Style
from mesh.errors import Internal, StatusError, Unavailable
from mesh.layers.recover import status_of

if TYPE_CHECKING:
    from mesh.call import Handler
    from mesh.edge.http.transcoder import Transcoder

__all__ = ["Streams"]

log = logging.getLogger("mesh.edge")

Source = Callable[[], Awaitable[bytes | None]]


class Streams:
    """Answers requests whose method streams.

    Args:
        handler: Makes the gRPC call.
        max_message: Largest request message as it stands in the body, bytes.
        timeout: Seconds that the body of a method with one request may take; None: as long as it likes.
    """

    def __init__(self, handler: Handler, *, max_message: int, timeout: float | None) -> None:
        self._handler = handler
        self._max_message = max_message
        self._timeout = timeout

    async def __call__(self, call: HttpCall, transcoder: Transcoder, values: tuple[str, ...], wanted: Style) -> None:
        """Answer one request.

        Raises:
            StatusError: The call has failed; if its response had begun, that says so already.
        """
        method = transcoder.method
        loop = asyncio.get_running_loop()
        watch = Watch(call)
        source = await self._source(call, transcoder, values, watch)
        upstream = StreamCall(method, loop.time() + method.timeout if method.timeout else None, source)
        upstream.identity = call.identity
        if not method.server_streaming:
            answers = _Collected()
            upstream.sink = answers.send
            await self._make(call, upstream, watch, None)
            call.headers += status_response.forwarded(upstream.headers)
            await response.reply(call, transcoder, wanted, answers.one())
            return
        items = Items(call, upstream, transcoder, wanted)
        upstream.sink = items.send
        items.start()
        try:
            await self._make(call, upstream, watch, items)
        except StatusError as error:
            await items.stop()
            if items.begun:
                await items.fail(error)
            raise
        finally:
            await items.stop()

    async def _make(self, call: HttpCall, upstream: StreamCall, watch: Watch, items: Items | None) -> None:
        """Make the gRPC call; a client that goes away meanwhile cancels it."""
        token = current.set(call)
        try:
            await self._handler(upstream)
            if items is not None:
                await items.end()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if items is not None and items.enough and task is not None and not uncancel_task(task):
                return
            if call.lapsed():
                raise Unavailable(refusals.STOPPING) from None
            call.status = GONE  # whoever cancels it, nobody waits for the answer any more
            raise
        except Exception as caught:
            error = refusals.sized(call, caught) if isinstance(caught, StatusError) else caught
            if items is None or not items.begun:
                call.headers += status_response.forwarded(upstream.headers)
                if error is caught:
                    raise
                raise error from caught
            if not isinstance(error, StatusError):
                log.exception("%s failed", upstream.method.path)
            raise status_of(error) from None
        finally:
            current.reset(token)
            watch.stop()

    async def _source(self, call: HttpCall, transcoder: Transcoder, values: tuple[str, ...], watch: Watch) -> Source:
        if transcoder.has_body and transcoder.method.client_streaming:
            return request_body.Requests(call, transcoder, values, self._max_message, watch.start).receive
        data, form = b"", Form.JSON
        if transcoder.has_body:
            data, form = await request_body.read(call, transcoder, self._max_message, self._timeout)
        kind = call.metadata.wire(b"content-type") or b""
        request = transcoder.request(values, call.query, data, form, kind)
        watch.start()
        return _Once(request).receive


class _Once:
    """A stream of one message."""

    def __init__(self, message: bytes) -> None:
        self._messages = [message]

    async def receive(self) -> bytes | None:
        return self._messages.pop() if self._messages else None


class _Collected:
    """Where the one answer of a method that streams only its requests goes."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []

    async def send(self, message: bytes) -> None:
        if self._messages:
            raise Internal("the service answered twice")
        self._messages.append(message)

    def one(self) -> bytes:
        if not self._messages:
            raise Internal("the service answered without a message")
        return self._messages[0]

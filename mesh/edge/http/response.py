"""The answer of a call as an HTTP response: one message, or a stream of them, in the form that the client asked for.

A stream begins with its first message, so that a failure before it is an HTTP status like any other; a later one is
reported in the stream's own form. Each item leaves at once, and is waited for: a client that does not read holds the
function. Sources: RFC 8259; https://github.com/ndjson/ndjson-spec; https://html.spec.whatwg.org/#server-sent-events.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from mesh.boundary import cancel_task
from mesh.edge import refusals
from mesh.edge.http import content_coding, negotiation, status_response
from mesh.edge.http.negotiation import Form
from mesh.errors import Internal, InvalidArgument, StatusError

if TYPE_CHECKING:
    from mesh.edge.call import HttpCall, StreamCall
    from mesh.edge.http.transcoder import Transcoder

__all__ = ["Items", "Style", "reply", "style"]

Headers = list[tuple[bytes, bytes]]

OPEN_AFTER = 3.0
"""Seconds without a message after which a stream begins all the same, so that its client knows that it is open."""
ALIVE_EVERY = 15.0
"""Seconds of silence after which a stream says that it is alive: proxies close what is silent, and an HTTP/1.1 client
that has gone is only noticed by writing to it."""

LAST_WORDS = 10.0
"""Seconds that the report of a failure may take to leave."""

_PACK_ASIDE = 128 * 2**10
"""Bytes from which on packing is a thread's work; it would hold the loop for milliseconds."""

_NOSNIFF = (b"x-content-type-options", b"nosniff")
_VARY = (b"vary", b"accept, accept-encoding")
_VARY_CODING = (b"vary", b"accept-encoding")
_VARY_FORM = (b"vary", b"accept")
_SHORT_JSON: Headers = [*status_response.JSON, _VARY_FORM]
_MEDIA = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*(?:;[ -~]*)?")
_UNARY = (Form.JSON, Form.PROTOBUF)
_STREAM = (Form.JSON, Form.LINES, Form.EVENTS)


@dataclass(frozen=True, slots=True)
class Style:
    """How an answer is written.

    Attributes:
        form: The form.
        kind: Its media type; ``""`` for MEDIA, where each answer names its own.
        numbers: Enums as numbers.
        pretty: JSON over several lines.
    """

    form: Form
    kind: str
    numbers: bool = False
    pretty: bool = False


_JSON_STYLE = Style(Form.JSON, Form.JSON.value)
_MEDIA_STYLE = Style(Form.MEDIA, "")


def style(call: HttpCall, transcoder: Transcoder) -> Style:
    """Return the style that the client asks for: by ``$alt``, else by ``Accept``.

    Raises:
        StatusError: 400 for an ``$alt`` that this method does not have, 406.
    """
    accepts = [value for name, value in call.metadata.pairs if name == b"accept"]
    wish = negotiation.wish(call.query)
    if wish.form is None and transcoder.gives_media:
        return _MEDIA_STYLE
    method = transcoder.method
    if wish is negotiation.NOTHING and not method.server_streaming and (not accepts or accepts == [b"*/*"]):
        return _JSON_STYLE  # what nearly every request comes to
    offered: tuple[Form, ...] = _STREAM if method.server_streaming else _UNARY
    if not transcoder.gives_protobuf:
        offered = tuple(form for form in offered if form is not Form.PROTOBUF)
    if wish.form is not None:
        media = transcoder.gives_media and wish.form is Form.MEDIA
        if not media and wish.form not in offered:
            names = " or ".join(form.value for form in offered)
            raise InvalidArgument(f"query parameter '$alt': this method answers with {names}")
        return Style(wish.form, "" if media else wish.form.value, wish.numbers, wish.pretty)
    chosen = negotiation.choose(b",".join(accepts), offered)
    if chosen is None:
        raise refusals.unacceptable(call, [form.value for form in offered])
    return Style(chosen[0], chosen[1], wish.numbers, wish.pretty)


async def reply(call: HttpCall, transcoder: Transcoder, wanted: Style, message: bytes, status: int = 200) -> None:
    """Answer with one message.

    Raises:
        Internal: The function named a media type that is none.
    """
    if wanted.form is Form.MEDIA:
        kind, body = _media(*transcoder.media(message))
        vary = _VARY_CODING
    else:
        kind = wanted.kind
        body = transcoder.response(message, wanted.form, numbers=wanted.numbers, pretty=wanted.pretty)
        vary = _VARY
    if len(body) < content_coding.FROM and wanted is _JSON_STYLE:
        await call.answer(status, [*_SHORT_JSON, (b"content-length", b"%d" % len(body)), *call.headers], body)
        return
    headers: Headers = [(b"content-type", kind.encode()), _NOSNIFF]
    if len(body) >= content_coding.FROM and _packs(call, kind):
        headers.append(vary)
        chosen = _coding(call)
        if chosen:
            aside = len(body) >= _PACK_ASIDE
            body = (
                await asyncio.to_thread(content_coding.pack, chosen, body)
                if aside
                else content_coding.pack(chosen, body)
            )
            _mark_packed(call, headers, chosen)
    elif vary is _VARY:
        headers.append(_VARY_FORM)
    await call.answer(status, [*headers, (b"content-length", b"%d" % len(body)), *call.headers], body)


def _media(kind: str, body: bytes) -> tuple[str, bytes]:
    if not kind:
        return "application/octet-stream", body
    if not _MEDIA.fullmatch(kind):
        raise Internal("the service named a media type that is none")
    return kind.rstrip(), body


def _packs(call: HttpCall, kind: str) -> bool:
    """Whether an answer of this type may be packed."""
    if not content_coding.shrinks(kind.partition(";")[0].strip().lower()):
        return False
    return not any(
        name == b"content-encoding" or (name == b"cache-control" and b"no-transform" in value.lower())
        for name, value in call.headers
    )


def _coding(call: HttpCall) -> str:
    return negotiation.coding(call.metadata.wire(b"accept-encoding"), content_coding.CODINGS)


def _mark_packed(call: HttpCall, headers: Headers, chosen: str) -> None:
    headers.append((b"content-encoding", chosen.encode()))
    # Other bytes are another representation: a strong validator is not true of both (RFC 9110, 8.8.3.3).
    call.headers[:] = [
        (name, b"W/" + value if name == b"etag" and not value.startswith(b"W/") else value)
        for name, value in call.headers
    ]


class Items:
    """A response whose body is a stream of messages.

    Args:
        call: The request.
        upstream: The call that answers it; its headers go with the first message.
        transcoder: Of the route.
        wanted: The style.

    Attributes:
        begun: Whether the response has begun.
        enough: It was HEAD, and is answered: the task of the call was cancelled because nobody wants the rest.
    """

    def __init__(self, call: HttpCall, upstream: StreamCall, transcoder: Transcoder, wanted: Style) -> None:
        self.begun = False
        self.enough = False
        self._call = call
        self._upstream = upstream
        self._transcoder = transcoder
        self._style = wanted
        self._task = asyncio.current_task()
        self._lock = asyncio.Lock()
        self._packer: content_coding.Packer | None = None
        self._before = b"["  # what an array needs before its next element
        self._quiet = True
        self._pulse: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch that the stream does not stay silent."""
        if self._style.form is not Form.MEDIA:  # whose type only its first message says
            self._pulse = asyncio.get_running_loop().create_task(self._beat())

    async def stop(self) -> None:
        """End the watch."""
        if self._pulse is not None:
            self._pulse.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([self._pulse])

    async def send(self, message: bytes) -> None:
        """Send a message; waits while the client does not read."""
        wanted = self._style
        if wanted.form is Form.MEDIA:
            kind, data = self._transcoder.media(message)
            async with self._lock:
                if not self.begun:
                    await self._begin(_media(kind, b"")[0])
                if data:
                    await self._write(data)
            return
        text = self._transcoder.response(
            message, numbers=wanted.numbers, pretty=wanted.pretty and wanted.form is not Form.LINES
        )
        async with self._lock:
            if not self.begun:
                await self._begin(wanted.kind)
            self._quiet = False
            await self._write(self._item(text))

    async def end(self) -> None:
        """End the stream well."""
        async with self._lock:
            if not self.begun:
                await self._begin(self._style.kind or "application/octet-stream")
            tail = b"[]" if self._before == b"[" else b"]"
            await self._finish(tail if self._style.form is Form.JSON else b"")

    async def fail(self, error: StatusError) -> None:
        """End a stream that has begun with a failure, in its own form.

        Raw bytes have none: the response is left incomplete, which every HTTP client notices. So is one whose client
        does not read.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS), self._lock:
                await self._fail(status_response.describe(error, self._call.method))

    async def _fail(self, status: dict[str, Any]) -> None:
        match self._style.form:
            case Form.JSON:
                await self._finish(self._item(orjson.dumps({"error": status})) + b"]")
            case Form.LINES:
                await self._finish(orjson.dumps({"error": status}) + b"\n")
            case Form.EVENTS:
                await self._finish(b"event: error\ndata: " + orjson.dumps(status) + b"\n\n")

    def _item(self, text: bytes) -> bytes:
        match self._style.form:
            case Form.LINES:
                return text + b"\n"
            case Form.EVENTS:
                return b"data: " + text.replace(b"\n", b"\ndata: ") + b"\n\n"
        before, self._before = self._before, b",\n"
        return before + text

    async def _begin(self, kind: str) -> None:
        call = self._call
        self.begun = True
        call.headers += status_response.forwarded(self._upstream.headers)
        headers: Headers = [(b"content-type", kind.encode()), _NOSNIFF]
        if self._style.form is Form.EVENTS:
            headers.append((b"x-accel-buffering", b"no"))
            if not any(name == b"cache-control" for name, _ in call.headers):
                headers.append((b"cache-control", b"no-cache"))
        if _packs(call, kind):
            chosen = _coding(call)
            if chosen:
                self._packer = content_coding.packer(chosen)
                _mark_packed(call, headers, chosen)
            headers.append(_VARY_CODING if self._style.form is Form.MEDIA else _VARY)
        await call.begin(call.method.success_status, [*headers, *call.headers])
        if call.verb == "HEAD":
            self.enough = True
            if self._task is not None:
                cancel_task(self._task)
            await asyncio.get_running_loop().create_future()

    async def _write(self, data: bytes) -> None:
        await self._call.write(data if self._packer is None else self._packer.put(data))

    async def _finish(self, data: bytes) -> None:
        if self._packer is not None:
            data = (self._packer.put(data) if data else b"") + self._packer.end()
        await self._call.write(data, end=True)

    async def _beat(self) -> None:
        await asyncio.sleep(OPEN_AFTER)
        async with self._lock:
            if not self.begun:
                await self._begin(self._style.kind)
        # HTTP/2 says when a client goes, and an NDJSON reader may not like blank lines.
        blank = {Form.EVENTS: b": alive\n\n", Form.LINES: b"" if self._call.http_version == "2" else b"\n"}
        sign = blank.get(self._style.form, b"\n")  # white space between the elements of an array
        while sign:
            self._quiet = True
            await asyncio.sleep(ALIVE_EVERY)
            if self._quiet:
                async with self._lock:
                    await self._write(sign)

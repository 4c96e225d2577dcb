"""The store's door: an ASGI application that takes OTLP/HTTP and shows what is kept.

- ``POST /v1/traces``: OTLP/HTTP with protobuf, gzip or not (https://opentelemetry.io/docs/specs/otlp/#otlphttp).
- ``GET /traces``: the last traces; ``?limit=``.
- ``GET /traces/{id}``: one trace; the beginning of its id is enough if it is the only one.

Both take ``?wait=SECONDS``: components export a moment after their spans have ended, so who asks right after a response
waits that long, for one trace only until it is whole.

For loopback only: there is no authentication, and no other signal is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs

import orjson
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from mesh.telemetry.trace_store import Store

__all__ = ["Receiver"]

Message = MutableMapping[str, Any]
_PROTOBUF = "application/x-protobuf"
_GZIP = 16 + zlib.MAX_WBITS
"""Window bits that make zlib expect a gzip header."""
MAX_BODY = 16 * 2**20
LONGEST_WAIT = 10.0
"""Seconds."""
_DIGITS = 9


class _RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Receiver:
    """The application.

    Args:
        store: Where spans are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._news = asyncio.Event()

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer one request; the lifespan protocol is acknowledged."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"the trace receiver speaks HTTP, not {scope['type']}")
        kind = "application/json"
        try:
            if scope["path"] == "/v1/traces":
                kind, body = _PROTOBUF, await self._export(scope, receive)
            else:
                body = orjson.dumps(await self._show(scope))
            status = 200
        except _RefusedError as refused:
            kind, status, body = "application/json", refused.status, orjson.dumps({"message": str(refused)})
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _export(self, scope: Message, receive: Callable[[], Awaitable[Message]]) -> bytes:
        if scope["method"] != "POST":
            raise _RefusedError(405, "spans are sent with POST")
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().decode("latin-1")
        if kind != _PROTOBUF:
            raise _RefusedError(415, f"send {_PROTOBUF}; set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")
        body = _unpacked(await _body(receive), headers.get(b"content-encoding", b"identity").decode("latin-1"))
        try:
            request = ExportTraceServiceRequest.FromString(body)
        except DecodeError:
            raise _RefusedError(400, "the body is no ExportTraceServiceRequest") from None
        response = ExportTraceServiceResponse()
        refused = self._store.add(request)
        self._news.set()
        if refused:
            response.partial_success.rejected_spans = refused
            response.partial_success.error_message = "trace ids have 16 bytes and span ids 8"
        return response.SerializeToString()

    async def _show(self, scope: Message) -> Any:
        path: str = scope["path"]
        if path != "/traces" and not path.startswith("/traces/"):
            raise _RefusedError(404, "known are POST /v1/traces, GET /traces and GET /traces/{id}")
        if scope["method"] not in ("GET", "HEAD"):
            raise _RefusedError(405, "traces are read with GET")
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        limit, wait = _number(query, "limit", 50), _number(query, "wait", 0)
        wanted = path.removeprefix("/traces").removeprefix("/")
        await self._settled(wanted, min(wait, LONGEST_WAIT))
        if path == "/traces":
            return {"traces": self._store.traces(limit)}
        found = self._store.find(wanted)
        if len(found) != 1:
            what = "no trace begins" if not found else f"{len(found)} traces begin"
            raise _RefusedError(404, f"{what} with {wanted!r}")
        return self._store.trace(found[0])

    async def _settled(self, wanted: str, seconds: float) -> None:
        """Wait for what components still have: for one trace until it is whole."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (wanted and self._store.whole(wanted, time.time_ns())):
                    self._news.clear()
                    await self._news.wait()


def _number(query: Mapping[str, list[str]], name: str, default: int) -> int:
    text = query.get(name, [str(default)])[-1]
    if not (text.isascii() and text.isdigit()) or len(text) > _DIGITS:
        raise _RefusedError(400, f"{name} must be a number, not {text[:40]!r}")
    return int(text)


async def _lifespan(receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _body(receive: Callable[[], Awaitable[Message]]) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _RefusedError(400, "the client went away")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise _RefusedError(413, f"a request may have {MAX_BODY} bytes")
        if not message.get("more_body", False):
            return b"".join(parts)


def _unpacked(body: bytes, encoding: str) -> bytes:
    """Return the body without its content coding; no more than ``MAX_BODY``, however small it came."""
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise _RefusedError(415, f"send the body as gzip, deflate or as it is, not {encoding!r}")
    unpacker = zlib.decompressobj(_GZIP if encoding == "gzip" else zlib.MAX_WBITS)
    try:
        found = unpacker.decompress(body, MAX_BODY)
    except zlib.error:
        raise _RefusedError(400, f"the body is not {encoding}") from None
    if unpacker.unconsumed_tail:
        raise _RefusedError(413, f"a request may have {MAX_BODY} bytes, unpacked")
    if not unpacker.eof:
        raise _RefusedError(400, f"the {encoding} body ends too early")
    return found

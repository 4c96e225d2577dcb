"""OTLP/HTTP receiver: an ASGI application that stores spans and serves the stored traces as JSON.

- ``POST /v1/traces``: OTLP/HTTP with protobuf, gzip or not (https://opentelemetry.io/docs/specs/otlp/#otlphttp).
- ``GET /traces``: the last traces; ``?limit=``.
- ``GET /traces/{id}``: one trace. The beginning of its id is enough if no other trace begins so.

Both GETs take ``?wait=SECONDS``, since components export a moment after their spans have ended. A client that comes
right after a response waits that long, and for a single trace only until it is complete.

For loopback only. Every request needs the secret of the run as a bearer token (RFC 6750), because spans hold the data
of users and any process of the machine can connect. It takes no other signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from collections.abc import Mapping
from hmac import compare_digest
from typing import Any
from urllib.parse import parse_qs

import orjson
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from mesh.asgi import Receive, Scope, Send
from mesh.media_types import JSON, PROTOBUF
from mesh.telemetry.trace_store import Store

__all__ = ["Receiver"]

_GZIP = 16 + zlib.MAX_WBITS
"""Window bits that make zlib expect a gzip header."""
MAX_BODY_SIZE = 16 * 2**20
"""Bytes of a request, before and after decompression."""
MAX_WAIT_SECONDS = 10.0
_UNAUTHORIZED = 401
_MAX_DIGITS = 9


class _RefusedError(Exception):
    """A response with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Receiver:
    """The ASGI application.

    Args:
        store: The store of the spans.
        secret: Bearer token that a request must have; "" takes any request.
    """

    def __init__(self, store: Store, secret: str = "") -> None:
        self._store = store
        self._expected = f"Bearer {secret}".encode() if secret else b""
        self._stored = asyncio.Event()

    async def __call__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer one request. The lifespan protocol is acknowledged."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"the trace receiver speaks HTTP, not {scope['type']}")
        kind = JSON
        try:
            self._authenticate(scope)
            if scope["path"] == "/v1/traces":
                kind, body = PROTOBUF, await self._export(scope, receive)
            else:
                body = orjson.dumps(await self._show(scope))
            status = 200
        except _RefusedError as refused:
            kind, status, body = JSON, refused.status, orjson.dumps({"message": str(refused)})
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        if status == _UNAUTHORIZED:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _authenticate(self, scope: Scope) -> None:
        found = dict(scope["headers"]).get(b"authorization", b"")
        if self._expected and not compare_digest(found, self._expected):
            raise _RefusedError(_UNAUTHORIZED, "the trace store needs the secret of this `mesh up`: use `mesh trace`")

    async def _export(self, scope: Scope, receive: Receive) -> bytes:
        if scope["method"] != "POST":
            raise _RefusedError(405, "spans are sent with POST")
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().decode("latin-1")
        if kind != PROTOBUF:
            raise _RefusedError(415, f"send {PROTOBUF}; set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")
        body = _decompressed(await _body(receive), headers.get(b"content-encoding", b"identity").decode("latin-1"))
        try:
            request = ExportTraceServiceRequest.FromString(body)
        except DecodeError:
            raise _RefusedError(400, "the body is no ExportTraceServiceRequest") from None
        response = ExportTraceServiceResponse()
        refused = self._store.add(request)
        self._stored.set()
        if refused:
            response.partial_success.rejected_spans = refused
            response.partial_success.error_message = "trace ids have 16 bytes and span ids 8"
        return response.SerializeToString()

    async def _show(self, scope: Scope) -> Any:
        path: str = scope["path"]
        if path != "/traces" and not path.startswith("/traces/"):
            raise _RefusedError(404, "known are POST /v1/traces, GET /traces and GET /traces/{id}")
        if scope["method"] not in ("GET", "HEAD"):
            raise _RefusedError(405, "traces are read with GET")
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        limit, wait = _number(query, "limit", 50), _number(query, "wait", 0)
        wanted = path.removeprefix("/traces").removeprefix("/")
        await self._wait_until_complete(wanted, min(wait, MAX_WAIT_SECONDS))
        if path == "/traces":
            return {"traces": self._store.traces(limit)}
        found = self._store.find(wanted)
        if len(found) != 1:
            what = "no trace begins" if not found else f"{len(found)} traces begin"
            raise _RefusedError(404, f"{what} with {wanted!r}")
        return self._store.trace(found[0])

    async def _wait_until_complete(self, wanted: str, seconds: float) -> None:
        """Wait for spans that components still hold: for a single trace until it is complete."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (wanted and self._store.is_complete(wanted, time.time_ns())):
                    self._stored.clear()
                    await self._stored.wait()


def _number(query: Mapping[str, list[str]], name: str, default: int) -> int:
    text = query.get(name, [str(default)])[-1]
    if not (text.isascii() and text.isdigit()) or len(text) > _MAX_DIGITS:
        raise _RefusedError(400, f"{name} must be a number, not {text[:40]!r}")
    return int(text)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _RefusedError(400, "the client went away")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_SIZE:
            raise _RefusedError(413, f"a request may have {MAX_BODY_SIZE} bytes")
        if not message.get("more_body", False):
            return b"".join(parts)


def _decompressed(body: bytes, encoding: str) -> bytes:
    """Return the body without its content coding, at most ``MAX_BODY_SIZE`` bytes."""
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise _RefusedError(415, f"send the body as gzip, deflate or as it is, not {encoding!r}")
    decompressor = zlib.decompressobj(_GZIP if encoding == "gzip" else zlib.MAX_WBITS)
    try:
        found = decompressor.decompress(body, MAX_BODY_SIZE)
    except zlib.error:
        raise _RefusedError(400, f"the body is not {encoding}") from None
    if decompressor.unconsumed_tail:
        raise _RefusedError(413, f"a request may have {MAX_BODY_SIZE} bytes, unpacked")
    if not decompressor.eof:
        raise _RefusedError(400, f"the {encoding} body ends too early")
    return found

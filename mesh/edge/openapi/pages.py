"""Built-in pages of the edge: ``/openapi.json``, and ``/docs``, which shows the document and can call the operations.

The page loads everything from the edge; its Content-Security-Policy forbids other hosts. It has no inline script or
style and no ``innerHTML`` (Trusted Types are required). A route of the contract with the same path takes precedence.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from mesh.contract.model import Contract
from mesh.edge import refusals
from mesh.edge.openapi.document import document
from mesh.headers import etag_matches
from mesh.media_types import JSON

if TYPE_CHECKING:
    from mesh.edge.calls import HttpCall

__all__ = ["DOCS", "OPENAPI", "BuiltinPages", "PageHandler"]

OPENAPI = "/openapi.json"
DOCS = "/docs"

STATIC = Path(__file__).parent / "static"

_MEDIA_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_SECURITY_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-cache"),  # browsers revalidate each time, mostly with 304
]

PageHandler = Callable[["HttpCall"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _PageBody:
    """Body of a page, made once, with its media type and entity tag."""

    media_type: str
    content: bytes
    etag: bytes

    @staticmethod
    def of(media_type: str, content: bytes) -> _PageBody:
        return _PageBody(media_type, content, b'"%s"' % hashlib.sha256(content).hexdigest()[:24].encode())


class BuiltinPages:
    """Handlers of the edge's own paths.

    Args:
        contract: The contract that the document describes.

    Attributes:
        handlers: Path → handler.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._document: asyncio.Task[_PageBody] | None = None
        self.handlers: dict[str, PageHandler] = {OPENAPI: self._openapi, DOCS: self._static("index.html")}
        self.handlers[f"{DOCS}/"] = _redirect
        for file in STATIC.iterdir():
            self.handlers[f"{DOCS}/{file.name}"] = self._static(file.name)
        for method in contract.methods.values():
            for route in method.routes:
                self.handlers.pop(route.template.text, None)

    async def _openapi(self, call: HttpCall) -> None:
        if self._document is None:  # made once and in a thread: it takes a while for a large contract
            self._document = asyncio.create_task(asyncio.to_thread(self._make_document))
        await _respond(call, await asyncio.shield(self._document))

    def _make_document(self) -> _PageBody:
        return _PageBody.of(JSON, orjson.dumps(document(self._contract)))

    def _static(self, name: str) -> PageHandler:
        path = STATIC / name
        body = _PageBody.of(_MEDIA_TYPES[path.suffix], path.read_bytes())

        async def page(call: HttpCall) -> None:
            await _respond(call, body)

        return page


async def _respond(call: HttpCall, body: _PageBody) -> None:
    if call.verb not in ("GET", "HEAD"):
        raise refusals.wrong_verb(call, ("GET", "HEAD"))
    call.route = call.path
    headers = [*_SECURITY_HEADERS, (b"etag", body.etag), *call.headers]
    if etag_matches(call.metadata.wire(b"if-none-match"), body.etag):
        await call.answer(304, headers, b"")
        return
    headers += [(b"content-type", body.media_type.encode()), (b"content-length", b"%d" % len(body.content))]
    await call.answer(200, headers, body.content)


async def _redirect(call: HttpCall) -> None:
    """Redirect ``/docs/`` to ``/docs``, because the links of the page are relative (it may be behind a prefix)."""
    call.route = call.path
    await call.answer(308, [(b"location", b"../docs"), (b"content-length", b"0"), *call.headers], b"")

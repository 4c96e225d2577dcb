"""What the edge says of itself: ``/openapi.json``, and ``/docs``, a page that shows it and can try it.

Everything comes from the edge: the page asks no other host for anything, and its Content-Security-Policy would not let
it. No inline script or style, no ``innerHTML`` (Trusted Types are required). A route of the contract with the same path
wins.
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

if TYPE_CHECKING:
    from mesh.edge.calls import HttpCall

__all__ = ["DOCS", "OPENAPI", "BuiltinPages", "Page"]

OPENAPI = "/openapi.json"
DOCS = "/docs"

STATIC = Path(__file__).parent / "static"

_MEDIA: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_GUARDS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-cache"),  # asks each time, and mostly gets 304
]

Page = Callable[["HttpCall"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _File:
    """One answer, made once."""

    media: str
    body: bytes
    etag: bytes

    @staticmethod
    def of(media: str, body: bytes) -> _File:
        return _File(media, body, b'"%s"' % hashlib.sha256(body).hexdigest()[:24].encode())


class BuiltinPages:
    """Answers the edge's own paths.

    Args:
        contract: What the document describes.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._document: asyncio.Task[_File] | None = None
        self._pages: dict[str, Page] = {OPENAPI: self._openapi, DOCS: self._static("index.html")}
        self._pages[f"{DOCS}/"] = _redirect
        for file in STATIC.iterdir():
            self._pages[f"{DOCS}/{file.name}"] = self._static(file.name)
        for method in contract.methods.values():
            for route in method.routes:
                self._pages.pop(route.template.text, None)

    def get(self, path: str) -> Page | None:
        """Return what answers at a path, or None if nothing of this does."""
        return self._pages.get(path)

    async def _openapi(self, call: HttpCall) -> None:
        if self._document is None:  # a large contract takes a while: not on the loop, and once
            self._document = asyncio.create_task(asyncio.to_thread(self._make))
        await _answer(call, await asyncio.shield(self._document))

    def _make(self) -> _File:
        return _File.of("application/json", orjson.dumps(document(self._contract)))

    def _static(self, name: str) -> Page:
        path = STATIC / name
        file = _File.of(_MEDIA[path.suffix], path.read_bytes())

        async def page(call: HttpCall) -> None:
            await _answer(call, file)

        return page


async def _answer(call: HttpCall, file: _File) -> None:
    if call.verb not in ("GET", "HEAD"):
        raise refusals.wrong_verb(call, ("GET", "HEAD"))
    call.route = call.path
    headers = [*_GUARDS, (b"etag", file.etag), *call.headers]
    if _matches(call.metadata.wire(b"if-none-match"), file.etag):
        await call.answer(304, headers, b"")
        return
    headers += [(b"content-type", file.media.encode()), (b"content-length", b"%d" % len(file.body))]
    await call.answer(200, headers, file.body)


def _matches(asked: bytes | None, etag: bytes) -> bool:
    """Whether ``If-None-Match`` names the tag (RFC 9110, 13.1.2: the weak comparison)."""
    if asked is None:
        return False
    return asked.strip() == b"*" or etag in [one.strip().removeprefix(b"W/") for one in asked.split(b",")]


async def _redirect(call: HttpCall) -> None:
    """``/docs/`` → ``/docs``: the page's links are relative, so that it can stand behind a prefix."""
    call.route = call.path
    await call.answer(308, [(b"location", b"../docs"), (b"content-length", b"0"), *call.headers], b"")

"""A raw client of the Connect protocol over both versions of HTTP: for requests that no library would make."""

from __future__ import annotations

import asyncio
import http.client
import json
import struct
from typing import Any

from raw_h2 import raw_client

ECHO = "/conformance.v1.Echo/"
JSON = {"content-type": "application/json"}
PROTO = {"content-type": "application/proto"}
JSON_STREAM = {"content-type": "application/connect+json"}
PROTO_STREAM = {"content-type": "application/connect+proto"}


def envelope(data: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(data)) + data


class Answer:
    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.pairs = headers
        self.headers = dict(headers)
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def envelopes(self) -> list[tuple[int, bytes]]:
        found, rest = [], self.body
        while rest:
            flags, length = struct.unpack(">BI", rest[:5])
            found.append((flags, rest[5 : 5 + length]))
            rest = rest[5 + length :]
        return found

    @property
    def end(self) -> Any:
        """The end of the stream; there is one, and it is the last envelope."""
        *messages, (flags, data) = self.envelopes
        assert flags & 2
        assert not any(flags & 2 for flags, _ in messages)
        return json.loads(data)

    @property
    def error(self) -> Any:
        """The error of a unary response or of a stream."""
        return self.end["error"] if "connect+" in self.headers.get("content-type", "") else self.json


class Client:
    """One request after the other, over one version of HTTP."""

    def __init__(self, address: str, version: str) -> None:
        self.address = address
        self.version = version

    async def __call__(self, method: str, body: bytes, headers: dict[str, str], verb: str = "POST") -> Answer:
        path = method if method.startswith("/") else ECHO + method
        if self.version == "1.1":
            return await asyncio.to_thread(self._http1, path, body, headers, verb)
        async with raw_client(self.address) as client:
            pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
            stream = client.request(path, method=verb.encode(), content_type=None, te=None, headers=pairs, end=not body)
            if body:
                client.data(stream, body, end=True)
            got = await client.answer(stream)
            names = next(event.headers for event in client.of(stream) if hasattr(event, "headers"))
            return Answer(got.http, [(name.decode(), value.decode()) for name, value in names], got.body)

    def _http1(self, path: str, body: bytes, headers: dict[str, str], verb: str) -> Answer:
        host, port = self.address.split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        try:
            connection.putrequest(verb, path, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            if body or verb == "POST":
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            pairs = [(name.lower(), value) for name, value in response.getheaders()]
            return Answer(response.status, pairs, response.read())
        finally:
            connection.close()

"""The functions of conformance.v1.Echo, all ``def``: they run in threads."""

from __future__ import annotations

import time
from collections.abc import Iterator

from apps.echo import _fail, _metadata, _response
from conformance.v1 import conformance_pb2 as pb

from mesh import Context
from mesh.chaos.endings.ways import end_at_last

log: list[str] = []


def unary(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
    time.sleep(request.sleep_ms / 1000)
    _metadata(context)
    _fail(request)
    return _response(request, context)


idempotent = slow = unary


def server_stream(request: pb.EchoRequest, context: Context) -> Iterator[pb.EchoResponse]:
    _metadata(context)
    try:
        for index in range(request.count):
            time.sleep(request.sleep_ms / 1000)
            yield _response(request, context, index)
        _fail(request)
    finally:
        log.append(f"ended {request.text}")
        end_at_last(request.fail.message)


def client_stream(requests: Iterator[pb.EchoRequest], context: Context) -> pb.EchoResponse:
    _metadata(context)
    texts: list[str] = []
    payloads: list[bytes] = []
    for request in requests:
        time.sleep(request.sleep_ms / 1000)
        _fail(request)
        texts.append(request.text)
        payloads.append(request.payload)
    return pb.EchoResponse(text=",".join(texts), payload=b"".join(payloads), index=len(texts))


def bidi(requests: Iterator[pb.EchoRequest], context: Context) -> Iterator[pb.EchoResponse]:
    _metadata(context)
    for index, request in enumerate(requests):
        time.sleep(request.sleep_ms / 1000)
        _fail(request)
        yield _response(request, context, index)

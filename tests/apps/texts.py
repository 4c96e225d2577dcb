"""Functions of ``conformance.v1.Echo`` that raise and set the texts that they are told."""

from __future__ import annotations

from collections.abc import AsyncIterator

from conformance.v1 import conformance_pb2 as pb
from google.rpc import error_details_pb2

from mesh import Context, StatusError

HEADER, TRAILER = 1, 2
"""What ``EchoRequest.count`` asks for: metadata with the key ``text`` and the value ``payload``."""
REFUSED = 1
"""``EchoResponse.index`` where the context did not take it."""


def _fail(request: pb.EchoRequest) -> None:
    if request.HasField("fail"):  # JSON can bring half a surrogate pair, protobuf cannot
        details = [error_details_pb2.ErrorInfo(reason=request.fail.message)] if request.fail.details else []
        raise StatusError.of(request.fail.code, request.fail.message.replace("<half>", "\ud800"), details)


def _set(request: pb.EchoRequest, context: Context) -> int:
    setter = {HEADER: context.set_header, TRAILER: context.set_trailer}.get(request.count)
    try:
        if setter is not None:
            setter(request.text, request.payload if request.text.endswith("-bin") else request.payload.decode())
    except ValueError:
        return REFUSED
    return 0


async def unary(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
    refused = _set(request, context)
    _fail(request)
    seen = {key: str(value) for key, value in context.metadata.items() if key.startswith("x-seen")}
    return pb.EchoResponse(text=repr(seen), index=refused)


async def server_stream(request: pb.EchoRequest, context: Context) -> AsyncIterator[pb.EchoResponse]:
    yield pb.EchoResponse(index=_set(request, context) if request.count == TRAILER else 0)
    _fail(request)


async def client_stream(requests: AsyncIterator[pb.EchoRequest], context: Context) -> pb.EchoResponse:
    async for request in requests:
        _fail(request)
    return pb.EchoResponse()


async def bidi(requests: AsyncIterator[pb.EchoRequest], context: Context) -> AsyncIterator[pb.EchoResponse]:
    async for request in requests:
        yield pb.EchoResponse()
        _fail(request)


idempotent = slow = unary

"""The functions of conformance.v1.Echo, all ``async def`` (see tests/protos/conformance/v1/conformance.proto)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from conformance.v1 import conformance_pb2 as pb
from google.rpc import error_details_pb2

from mesh import Context, StatusError
from mesh.chaos.endings.ways import GOOD, end, end_at_last, end_on_the_loop

log: list[str] = []
"""What happened, for the tests: ``cancelled NAME``."""


def _metadata(context: Context) -> None:
    for key in context.metadata:
        if not key.startswith("x-echo-"):
            continue
        trailer = f"{key.removesuffix('-bin')}-trailer-bin" if key.endswith("-bin") else f"{key}-trailer"
        for value in context.metadata.getall(key):
            context.set_header(key, value)
            context.set_trailer(trailer, value)


def _text(message: str) -> str:
    """Return the message with half a surrogate pair where it says so: JSON can bring one, protobuf cannot."""
    return message.replace("<half>", "\ud800")


def _fail(request: pb.EchoRequest) -> None:
    if not request.HasField("fail"):
        return
    fail = request.fail
    if fail.code == 0:
        if fail.message in GOOD:
            return
        end(fail.message)
        raise RuntimeError(_text(fail.message))
    violation = error_details_pb2.BadRequest.FieldViolation(field="text", description=fail.message)
    details = [error_details_pb2.BadRequest(field_violations=[violation])] if fail.details else []
    raise StatusError.of(fail.code, _text(fail.message), details)


def _response(request: pb.EchoRequest, context: Context, index: int = 0) -> pb.EchoResponse:
    payload = bytes(request.answer_bytes) if request.answer_bytes else request.payload
    response = pb.EchoResponse(text=request.text, payload=payload, index=index)
    remaining = context.remaining()
    if remaining is not None:
        response.remaining.FromNanoseconds(int(remaining * 1e9))
    return response


async def _sleep(request: pb.EchoRequest, context: Context) -> None:
    await end_on_the_loop(request.fail.message)
    if request.sleep_ms:
        try:
            await asyncio.sleep(request.sleep_ms / 1000)
        except asyncio.CancelledError:
            log.append(f"cancelled {request.text}")
            raise


async def unary(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
    await _sleep(request, context)
    _metadata(context)
    _fail(request)
    return _response(request, context)


idempotent = slow = unary


async def server_stream(request: pb.EchoRequest, context: Context) -> AsyncIterator[pb.EchoResponse]:
    _metadata(context)
    try:
        for index in range(request.count):
            await _sleep(request, context)
            yield _response(request, context, index)
        _fail(request)
    finally:
        end_at_last(request.fail.message)


async def client_stream(requests: AsyncIterator[pb.EchoRequest], context: Context) -> pb.EchoResponse:
    _metadata(context)
    texts: list[str] = []
    payloads: list[bytes] = []
    async for request in requests:
        await _sleep(request, context)
        _fail(request)
        texts.append(request.text)
        payloads.append(request.payload)
    return pb.EchoResponse(text=",".join(texts), payload=b"".join(payloads), index=len(texts))


async def bidi(requests: AsyncIterator[pb.EchoRequest], context: Context) -> AsyncIterator[pb.EchoResponse]:
    _metadata(context)
    index = 0
    try:
        async for request in requests:
            await _sleep(request, context)
            _fail(request)
            yield _response(request, context, index)
            index += 1
    except asyncio.CancelledError:
        log.append("cancelled bidi")
        raise

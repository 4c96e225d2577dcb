"""Functions of conformance.v1.Echo that use all that a function has: identity, stub, transaction, log, spans."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from opentelemetry import metrics, trace
from sqlalchemy import text

from mesh import Context, NotFound

started: list[str] = []
asked = metrics.get_meter("inside").create_counter("inside.asked")


async def startup(service: Any) -> None:
    started.append(service.name)


async def unary(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
    """Say what the context holds."""
    asked.add(1, {"key": str(context.metadata.get("x-key"))})
    told = {
        "started": started,
        "service": context.service,
        "method": context.method,
        "subject": context.identity and context.identity.subject,
        "roles": sorted(context.identity.roles) if context.identity else [],
        "claims": dict(context.identity.claims) if context.identity else {},
        "caller": context.caller,
        "settings": dict(context.settings),
        "key": context.metadata.get("x-key"),
    }
    return pb.EchoResponse(text=json.dumps(told))


def _tell(span: trace.Span) -> None:
    """Tell a span what neither OTLP nor msgpack can carry."""
    odd: dict[str, Any] = {"large": 2**70, "half": "\ud800", "many": ["\ud800", -(2**70)], "\ud800": 1}
    span.set_attributes(odd)
    span.add_event("half \ud800", odd)
    span.record_exception(ValueError("half \ud800"))
    span.update_name("half \ud800")
    span.set_status(trace.StatusCode.ERROR, "half \ud800")


async def idempotent(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
    """Trace, log, and call on."""
    span = trace.get_current_span()
    span.set_attribute("mine", [1, 2])
    span.add_event("happened", {"how": "well"})
    if request.text == "odd":
        _tell(span)
    with trace.get_tracer("inside").start_as_current_span("own", attributes={"deep": True}):
        context.log.warning("said inside")
        if request.text == "bug":
            raise RuntimeError("broken inside")
        if request.text == "answer":
            raise NotFound("no such user") from KeyError("ada")
        if request.text == "odd":
            _tell(trace.get_current_span())
            asked.add(2**70, {"half": "\ud800"})
            return pb.EchoResponse(text="told")
        stub = context.stub(conformance_pb2_grpc.EchoStub)
        answer: pb.EchoResponse = await stub.Unary(pb.EchoRequest(text=request.text))
    return answer


async def server_stream(request: pb.EchoRequest, context: Context) -> AsyncIterator[pb.EchoResponse]:
    """Call every kind of method of the other service, and pass on how that fails."""
    stub = context.stub(conformance_pb2_grpc.EchoStub)
    async for answer in stub.ServerStream(pb.EchoRequest(text="s", count=3)):
        yield answer
    yield await stub.ClientStream(iter([pb.EchoRequest(text="a"), pb.EchoRequest(text="b")]))
    call = stub.Bidi()
    await call.write(pb.EchoRequest(text="both"))
    yield await call.read()
    await call.done_writing()
    try:
        await stub.Unary(pb.EchoRequest(fail=pb.Failure(code=5, message="none", details=True)))
    except grpc.aio.AioRpcError as error:
        yield pb.EchoResponse(text=f"{error.code().name} {error.details()}", index=len(error.trailing_metadata()))


async def client_stream(requests: AsyncIterator[pb.EchoRequest], context: Context) -> pb.EchoResponse:
    """Write a row, read the rows."""
    async for request in requests:
        async with context.transaction() as tx:
            await tx.execute(text("INSERT INTO rows VALUES (:value)"), {"value": request.text})
    async with context.transaction() as tx:
        rows = (await tx.execute(text("SELECT value FROM rows ORDER BY value"))).all()
    return pb.EchoResponse(text=",".join(row.value for row in rows))


async def bidi(requests: AsyncIterator[pb.EchoRequest], context: Context) -> AsyncIterator[pb.EchoResponse]:
    async for request in requests:
        yield pb.EchoResponse(text=request.text)


def slow(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
    """Trace, log, and call on, in a thread."""
    trace.get_current_span().set_attribute("mine", "thread")
    if request.text == "own loop":
        return asyncio.run(_in_own_loop(request, context))
    with trace.get_tracer("inside").start_as_current_span("own"):
        context.log.warning("said inside")
        answer: pb.EchoResponse = context.stub(conformance_pb2_grpc.EchoStub).Unary(pb.EchoRequest(text=request.text))
    return answer


async def _in_own_loop(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
    with trace.get_tracer("inside").start_as_current_span("own"):
        context.log.warning("said inside")
        answer: pb.EchoResponse = context.stub(conformance_pb2_grpc.EchoStub).Unary(pb.EchoRequest(text=request.text))
        await asyncio.sleep(0)
    return answer

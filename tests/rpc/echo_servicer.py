"""conformance.v1.Echo on a stock grpcio server, the reference for the channel."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc as rpc
from google.rpc import error_details_pb2, status_pb2

CODES = {code.value[0]: code for code in grpc.StatusCode}


class Echo(rpc.EchoServicer):
    """Responds as the contract's comments say, and records the end of each call."""

    def __init__(self) -> None:
        self.calls = 0
        self.active = 0
        self.cancelled = asyncio.Event()
        self.arrived = asyncio.Event()
        self.idle = asyncio.Event()
        self.refuse = 0
        self.metadata: list[tuple[str, str | bytes]] = []
        self.trailing: list[tuple[str, str | bytes]] = []

    async def Unary(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's names
        return await self._answer(request, context)

    async def Idempotent(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's names
        return await self._answer(request, context)

    async def Slow(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's names
        return await self._answer(request, context)

    async def ServerStream(self, request: Any, context: Any):  # noqa: N802 - gRPC's names
        with _Active(self):
            await self._headers(context)
            for index in range(request.count):
                await self._sleep(request)
                yield self._response(request, context, index)
            await self._fail(request, context)

    async def ClientStream(self, requests: Any, context: Any) -> Any:  # noqa: N802 - gRPC's names
        with _Active(self):
            await self._headers(context)
            texts, payloads, count = [], [], 0
            async for request in requests:
                await self._sleep(request)
                await self._fail(request, context)
                texts.append(request.text)
                payloads.append(request.payload)
                count += 1
            return pb.EchoResponse(text=",".join(texts), payload=b"".join(payloads), index=count)

    async def Bidi(self, requests: Any, context: Any):  # noqa: N802 - gRPC's names
        with _Active(self):
            await self._headers(context)
            index = 0
            async for request in requests:
                await self._sleep(request)
                await self._fail(request, context)
                yield self._response(request, context, index)
                index += 1

    async def _answer(self, request: Any, context: Any) -> Any:
        with _Active(self):
            if self.refuse:
                self.refuse -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
            await self._sleep(request)
            await self._headers(context)
            await self._fail(request, context)
            return self._response(request, context, 0)

    async def _sleep(self, request: Any) -> None:
        if request.sleep_ms:
            try:
                await asyncio.sleep(request.sleep_ms / 1000)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    async def _headers(self, context: Any) -> None:
        self.metadata = [tuple(pair) for pair in context.invocation_metadata()]
        echoed = [pair for pair in self.metadata if pair[0].startswith("x-echo-")]
        context.set_trailing_metadata([*((_trailer(key), value) for key, value in echoed), *self.trailing])
        await context.send_initial_metadata(echoed)

    async def _fail(self, request: Any, context: Any) -> None:
        if not request.HasField("fail"):
            return
        fail = request.fail
        if not fail.code:
            raise RuntimeError(f"secret: {fail.message}")
        if fail.details:
            detail = error_details_pb2.BadRequest()
            detail.field_violations.add(field="text", description=fail.message)
            status = status_pb2.Status(code=fail.code, message=fail.message)
            status.details.add().Pack(detail)
            trailers = (*(context.trailing_metadata() or ()), ("grpc-status-details-bin", status.SerializeToString()))
            context.set_trailing_metadata(trailers)
        await context.abort(CODES[fail.code], fail.message)

    def _response(self, request: Any, context: Any, index: int) -> Any:
        payload = b"\0" * request.answer_bytes if request.answer_bytes else request.payload
        response = pb.EchoResponse(text=request.text, payload=payload, index=index)
        left = context.time_remaining()
        if left is not None:
            response.remaining.FromNanoseconds(int(left * 1e9))
        return response


class _Active:
    """Counter of the calls in progress."""

    def __init__(self, echo: Echo) -> None:
        self.echo = echo

    def __enter__(self) -> None:
        self.echo.calls += 1
        self.echo.active += 1
        self.echo.idle.clear()
        self.echo.arrived.set()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.echo.active -= 1
        if not self.echo.active:
            self.echo.idle.set()
        if kind is not None and issubclass(kind, (asyncio.CancelledError, GeneratorExit)):
            self.echo.cancelled.set()


def _trailer(key: str) -> str:
    return f"{key[:-4]}-trailer-bin" if key.endswith("-bin") else f"{key}-trailer"

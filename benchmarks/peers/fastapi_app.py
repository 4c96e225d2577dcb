"""Peer: hand-written FastAPI that calls the grpcio servicer, as a Python team would write it. Run by uvicorn.

``UPSTREAM`` is the servicer's address. With ``INSTRUMENTED`` set, OpenTelemetry's instrumentations trace both.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from bench.v1 import bench_pb2 as pb
from bench.v1 import bench_pb2_grpc as rpc
from fastapi import FastAPI
from pydantic import BaseModel

state: dict[str, Any] = {}


class Register(BaseModel):
    """The request."""

    name: str
    email: str
    password: str
    age: int = 0
    tags: list[str] = []


class User(BaseModel):
    """The response."""

    id: str
    name: str
    email: str
    createdAt: str  # noqa: N815 - as on the wire
    roles: list[str]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Keep one channel for the life of the application."""
    interceptors = []
    if os.environ.get("INSTRUMENTED"):
        from opentelemetry.instrumentation.grpc import aio_client_interceptors

        interceptors = aio_client_interceptors()
    async with grpc.aio.insecure_channel(os.environ["UPSTREAM"], interceptors=interceptors) as channel:
        state["stub"] = rpc.UsersStub(channel)
        yield


app = FastAPI(lifespan=lifespan)

if os.environ.get("INSTRUMENTED"):
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    FastAPIInstrumentor.instrument_app(app)


@app.post("/v1/users")
async def register(body: Register) -> User:
    """Translate the request, call the servicer, translate the response."""
    request = pb.RegisterRequest(**body.model_dump())
    user = await state["stub"].Register(request, timeout=10)
    return User(id=user.id, name=user.name, email=user.email, createdAt=str(user.created_at), roles=list(user.roles))

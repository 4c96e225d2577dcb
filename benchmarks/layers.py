"""Cost of each layer around a function in the sidecar: µs of its loop for a unary call, without a network.

    python -m benchmarks layers [--rounds 5]

The chain grows by one layer at a time, innermost first. The last rows are the gRPC server itself and the export of the
spans. All lengths take turns, each for a few calls, so that noise affects them alike. The lower quartile of the turns
counts.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import uvloop

from benchmarks import load
from mesh import telemetry
from mesh.auth import key_files
from mesh.auth.identity_layers import authenticate, authorize
from mesh.auth.service_tokens import PeerVerifier, Signer
from mesh.call import Call, Metadata, chain
from mesh.contract import protoc
from mesh.control import project
from mesh.function import Functions
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.layers.deadline import deadline
from mesh.layers.recover import recover
from mesh.rpc import framing
from mesh.rpc.server.grpc_app import GrpcApp
from mesh.sidecar.service_context import ServiceContext
from mesh.sidecar.sidecar import run as runner
from mesh.threads import ThreadPool

if TYPE_CHECKING:
    from mesh.call import Handler, Layer
    from mesh.contract.model import Method

SERVICE = "bench.v1.Users"
PATH = f"/{SERVICE}/Register"
TURNS, CALLS = 150, 64
"""Turns of a round, and calls in progress at once in each turn."""

One = Callable[[], Awaitable[None]]


def run(rounds: int) -> None:
    """Measure and report."""
    protoc.generate([load.HERE / "mesh" / "protos"], load.STUBS)
    sys.path[:0] = [str(load.STUBS), str(load.HERE), str(load.HERE / "mesh")]
    with load.sink() as endpoint:
        times = uvloop.run(_measure(rounds, endpoint))
    lines = ["| what runs for a call | µs | more than the row before |", "| --- | ---: | ---: |"]
    before = 0.0
    for name, found in times.items():
        took = statistics.median(found)
        lines.append(f"| {name} | {took:.1f} | {took - before:+.1f} |")
        before = took
    load.report("layers", f"{(__doc__ or '').splitlines()[0]}\n\n" + "\n".join(lines))


async def _measure(rounds: int, endpoint: str) -> dict[str, list[float]]:
    ways = _ways(endpoint)
    times: dict[str, list[float]] = {name: [] for name in ways}
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # as in a running component
    for turn in range(rounds + 1):
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(TURNS):
            for name, one in ways.items():
                taken[name].append(await _turn(one))
        if turn:
            for name, found in taken.items():
                times[name].append(statistics.quantiles(found, n=4)[0])
        print(f"  round {turn}/{rounds}", file=sys.stderr, flush=True)
    return times


async def _turn(one: One) -> float:
    """Return the CPU time of this thread for one call, in µs."""
    began = time.thread_time()
    await asyncio.gather(*(asyncio.ensure_future(one()) for _ in range(CALLS)))
    return (time.thread_time() - began) / CALLS * 1e6


def _ways(endpoint: str) -> dict[str, One]:
    """Return the measured calls by their names in the table; on the running loop."""
    import users

    os.environ |= {"OTEL_METRICS_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "none", "MESH_STUBS": str(load.STUBS)}
    recorded = telemetry.configure("users", version="0").inbound
    os.environ |= {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    exported = telemetry.configure("users", version="0").inbound
    _, contract = project.load(load.HERE / "mesh" / "mesh.toml")
    service = ServiceContext("users", channel=None, blocking=None)
    functions = Functions(users.__name__, [contract.services[SERVICE]])
    method, function = functions.handlers(service, ThreadPool(1))[PATH]

    folder = load.SCRATCH / "identity"
    key_files.ensure(folder, ["edge"])
    token = Signer("edge", key_files.load(folder, "edge")).token(PATH)
    request = _request(method, token)
    layers: list[tuple[str, Layer]] = [
        ("runner", runner),
        ("concurrency limit", ConcurrencyLimit(100, 100)),
        ("authorize", authorize(contract, {"users": (SERVICE,)})),
        ("authenticate", authenticate(None, PeerVerifier(folder))),
        ("deadline", deadline),
        ("recover", recover),
        ("trace", recorded),
    ]

    def around(count: int, *first: Layer) -> Handler:
        return chain(*first, *(layer for _, layer in reversed(layers[:count])), function)

    ways = {"a task, and the function with its codec": _plain(request, function)}
    ways |= {f"+ {name}": _plain(request, around(at)) for at, (name, _) in enumerate(layers, 1)}
    ways["+ gRPC over ASGI"] = _served(request, around(len(layers)))
    ways["+ spans exported, by another thread"] = _served(request, around(len(layers) - 1, exported))
    return ways


class _Request(NamedTuple):
    method: Method
    message: bytes
    pairs: list[tuple[bytes, bytes]]


def _request(method: Method, token: bytes) -> _Request:
    message = method.input(name="alice", email="alice@example.com", password="p" * 20, age=30, tags=["a"])
    pairs = [
        (b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"grpc-timeout", b"5S"),
        (b"mesh-identity", token), (b"traceparent", b"00-3e23acd7c75169d66074795e92355817-15254b2c2f9ff32a-01"),
    ]  # fmt: skip
    return _Request(method, message.SerializeToString(), pairs)


class _Call(Call):
    """A call that arrived over no network."""

    __slots__ = ("message",)
    message: bytes

    async def receive_one(self) -> bytes:
        return self.message

    async def send(self, message: bytes) -> None:
        """Drop the response."""


def _plain(request: _Request, handler: Handler) -> One:
    async def one() -> None:
        loop = asyncio.get_running_loop()
        call = _Call(request.method, Metadata.from_wire(list(request.pairs)), loop.time() + 5)
        call.message = request.message
        await handler(call)

    return one


def _served(request: _Request, handler: Handler) -> One:
    app = GrpcApp({PATH: (request.method, handler)})
    event = {"type": "http.request", "body": framing.frame(request.message), "more_body": False}

    async def receive() -> dict[str, Any]:
        return event

    async def send(_: Any) -> None:
        """Drop the response."""

    async def one() -> None:
        await app({"type": "http", "method": "POST", "path": PATH, "headers": list(request.pairs)}, receive, send)

    return one

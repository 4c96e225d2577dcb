"""CPU and latency of a unary call with the mesh's channel and with grpc.aio, to one server process, interleaved.

    python -m benchmarks channel [--rounds 5]

The server is a small loop around libnghttp2 in another process, so that it does not limit the client. The client's CPU
is ``time.process_time`` of this process, divided by the number of calls.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "rpc"), str(ROOT / ".mesh" / "test-stubs")]

from benchmarks import load  # noqa: E402
from mesh.call import chain  # noqa: E402
from mesh.contract import loader, protoc  # noqa: E402 - after the path is set
from mesh.rpc.client.channel import Channel  # noqa: E402
from mesh.rpc.client.retry import retry  # noqa: E402
from mesh.rpc.client.target import Target  # noqa: E402

STUBS = ROOT / ".mesh" / "test-stubs"
PROTOS = ROOT / "tests" / "protos"
CONCURRENCY = 32
CALLS = 5000


async def serve(kind: str) -> None:
    from conformance.v1 import conformance_pb2_grpc as rpc
    from echo_servicer import Echo
    from fault_server import FaultServer

    if kind == "grpcio":
        server = grpc.aio.server()
        rpc.add_EchoServicer_to_server(Echo(), server)
        print(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
        await server.start()
        await server.wait_for_termination()
    raw = FaultServer(lambda peer, stream_id: peer.respond(stream_id, peer.bodies.pop(stream_id)[5:]), {})
    await raw.start()
    print(raw.address, flush=True)
    await asyncio.Event().wait()


async def measure(address: str, calls: int, rounds: int) -> str:
    from conformance.v1 import conformance_pb2 as pb
    from conformance.v1 import conformance_pb2_grpc as rpc

    contract = loader.read(protoc.load([PROTOS], STUBS))
    target = Target([address])
    stock = grpc.aio.insecure_channel(address)
    ours = rpc.EchoStub(Channel(chain(retry(), target), contract))
    theirs = rpc.EchoStub(stock)
    request = pb.EchoRequest(text="alice", payload=b"p" * 60)
    ways: dict[str, Callable[[], Awaitable[Any]]] = {
        "ours": lambda: ours.Unary(request, timeout=5),
        "ours, idempotent": lambda: ours.Idempotent(request, timeout=5),
        "grpc.aio": lambda: theirs.Unary(request, timeout=5),
    }
    found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, call in ways.items():
            cpu, rate = await loaded(call, calls)
            p50, p99 = await alone(call, calls // 10)
            if turn:  # the first warms up
                found[name].append((cpu, rate, p50, p99))
    await target.close()
    await stock.close()
    lines = ["| stub | client CPU µs/call | calls/s | p50 µs | p99 µs |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, rows in found.items():
        cpu, rate, p50, p99 = (statistics.median(column) for column in zip(*rows, strict=True))
        lines.append(f"| {name} | {cpu:.1f} | {rate:,.0f} | {p50:.0f} | {p99:.0f} |")
    return "\n".join(lines)


async def loaded(call: Callable[[], Awaitable[Any]], calls: int) -> tuple[float, float]:
    """Return CPU time per call in µs and calls per second, with ``CONCURRENCY`` calls at once."""
    left = iter(range(calls))

    async def work() -> None:
        for _ in left:
            await call()

    began, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*[work() for _ in range(CONCURRENCY)])
    return (time.process_time() - used) / calls * 1e6, calls / (time.perf_counter() - began)


async def alone(call: Callable[[], Awaitable[Any]], calls: int) -> tuple[float, float]:
    """Return p50 and p99 of the latency in µs, one call after the other."""
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        await call()
        times.append(time.perf_counter() - began)
    times.sort()
    return times[len(times) // 2] * 1e6, times[len(times) * 99 // 100] * 1e6


def run(rounds: int) -> None:
    """Measure and report."""
    protoc.generate([PROTOS], STUBS)
    with load.process(sys.executable, "-m", "benchmarks.channel", "raw") as server:
        assert server.stdout is not None
        text = uvloop.run(measure(server.stdout.readline().strip(), CALLS, rounds))
    load.report("channel", f"{(__doc__ or '').splitlines()[0]}\n\n{text}")


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))

"""A unary call into a sidecar with its whole chain, compared with grpcio servers without one.

    python -m benchmarks sidecar [--rounds 5]

The sidecar runs everything that it runs in production: tracing of every call and its export, recover, deadline,
authentication, authorization, concurrency limit, metrics. The bare peers run none of that.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks import load
from benchmarks.load import Contender

PEERS = {
    "grpc.aio on uvloop, bare": "uvloop",
    "grpc.aio on asyncio, bare": "asyncio",
    "grpc.aio on uvloop, OpenTelemetry's instrumentation": "otel",
    "grpcio, thread pool, bare": "sync",
}
OURS = "sidecar, traced and exported"


def run(rounds: int) -> None:
    """Measure and report."""
    load.need("h2load")
    sys.path.insert(0, str(load.STUBS))
    with ExitStack() as running:
        endpoint = running.enter_context(load.sink())
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRICS_EXPORTER": "none"}
        contenders = []
        for name, environ in ((OURS, traced), ("sidecar, tracing off", {"OTEL_SDK_DISABLED": "true"})):
            addresses, _, pids = running.enter_context(load.our_mesh(name.replace(" ", "-"), environ))
            contenders.append(Contender(name, f"http://{addresses['users']}/bench.v1.Users/Register", pids))
        server = str(Path(__file__).parent / "peers" / "grpcio_server.py")
        for name, kind in PEERS.items():
            peer = running.enter_context(load.process(sys.executable, server, kind, environ=traced))
            assert peer.stdout is not None
            address = peer.stdout.readline().strip()
            contenders.append(Contender(name, f"http://{address}/bench.v1.Users/Register", [peer.pid]))
        from bench.v1 import bench_pb2 as pb

        request = pb.RegisterRequest(name="alice", email="alice@example.com", password="p" * 20, age=30, tags=["a"])
        found = load.rounds(contenders, load.h2load(load.grpc_body(request.SerializeToString())), rounds)
    load.report("sidecar", f"{__doc__.splitlines()[0]}\n\n{load.table(found, OURS)}")

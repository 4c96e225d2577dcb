"""Replica of conformance.v1.Echo in a process of its own, for tests that freeze it: prints its address.

    python replica_process.py grpcio|sidecar

SIGUSR1 blocks its event loop for good. Its HTTP/2 stack goes on, because it runs in threads of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import uvloop


@dataclass(frozen=True)
class Replica:
    """A replica that runs.

    Attributes:
        pid: Its process.
        address: ``host:port``.
    """

    pid: int
    address: str


@asynccontextmanager
async def replica(kind: str) -> AsyncIterator[Replica]:
    """Run a replica; it is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, kind, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield Replica(process.pid, (await process.stdout.readline()).decode().strip())
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _serve(kind: str) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, time.sleep, 3600.0)
    if kind == "grpcio":
        from conformance.v1 import conformance_pb2_grpc
        from echo_servicer import Echo

        server = grpc.aio.server()
        conformance_pb2_grpc.add_EchoServicer_to_server(Echo(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"127.0.0.1:{port}", flush=True)  # noqa: T201 - its parent reads it
        await server.wait_for_termination()
    else:
        from hosting import hosted

        from mesh.contract import loader, protoc

        tests = Path(__file__).parent.parent
        contract = loader.read(protoc.load([tests / "protos"], tests.parent / ".mesh" / "test-stubs"))
        async with hosted(contract) as address:
            print(address, flush=True)  # noqa: T201 - its parent reads it
            await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))

"""Share of calls that fail while one of two replicas does not respond: frozen (SIGSTOP), or its event loop blocked.

    python -m benchmarks.frozen [--seconds 30] [--rate 200] [--block] [--stream] [--safe]

Two sidecars run in processes of their own. Calls with a deadline of 1 s arrive at a fixed rate, whatever happens to
those before them. ``--block`` blocks the event loop of one replica in place of stopping its process, so that its HTTP/2
stack still acknowledges PINGs. ``--stream`` makes server-streaming calls, ``--safe`` calls a method that declares retry
safety.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

ROOT = Path(__file__).parent.parent
STUBS = ROOT / ".mesh" / "test-stubs"
PROTOS = ROOT / "tests" / "protos"
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(STUBS)]

from mesh.call import chain  # noqa: E402 - after the path is set
from mesh.contract import loader, protoc  # noqa: E402
from mesh.rpc.client.channel import Channel  # noqa: E402
from mesh.rpc.client.retry import retry  # noqa: E402
from mesh.rpc.client.target import Target  # noqa: E402

DEADLINE = 1.0
WARM_UP = 3.0
GRACE = 2.0
"""Seconds after the fault in which calls may fail."""


async def serve() -> None:
    from hosting import hosted

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, time.sleep, 3600.0)
    async with hosted(loader.read(protoc.load([PROTOS], STUBS))) as address:
        print(address, flush=True)
        await asyncio.Event().wait()


async def measure(seconds: float, rate: float, *, block: bool, stream: bool, safe: bool) -> str:
    from conformance.v1 import conformance_pb2 as pb
    from conformance.v1 import conformance_pb2_grpc as rpc

    servers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.frozen", "--serve", stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        for _ in range(2)
    ]
    try:
        addresses = [(await server.stdout.readline()).decode().strip() for server in servers if server.stdout]
        target = Target(addresses)
        stub = rpc.EchoStub(Channel(chain(retry(), target), loader.read(protoc.load([PROTOS], STUBS))))
        request = pb.EchoRequest(text="alice", count=1)
        outcomes: list[tuple[float, float, str]] = []

        async def call() -> None:
            begun = time.monotonic()
            code = "OK"
            try:
                if stream:
                    async for _ in stub.ServerStream(request, timeout=DEADLINE):
                        pass
                else:
                    await (stub.Idempotent if safe else stub.Unary)(request, timeout=DEADLINE)
            except grpc.aio.AioRpcError as error:
                code = error.code().name
            outcomes.append((begun, time.monotonic(), code))

        tasks: set[asyncio.Task[None]] = set()
        begun = time.monotonic()
        fault_at = 0.0
        number = 0
        while (now := time.monotonic()) < begun + WARM_UP + seconds:
            if not fault_at and now >= begun + WARM_UP:
                fault_at = now
                os.kill(servers[0].pid, signal.SIGUSR1 if block else signal.SIGSTOP)
            while number < (now - begun) * rate:
                number += 1
                task = asyncio.create_task(call())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(0.5 / rate)
        await asyncio.gather(*tasks)
        await target.close()
    finally:
        for server in servers:
            with contextlib.suppress(ProcessLookupError):
                server.kill()
            await server.wait()
    return _report(outcomes, fault_at)


def _report(outcomes: list[tuple[float, float, str]], fault_at: float) -> str:
    after = [row for row in outcomes if row[0] >= fault_at]
    late = [row for row in after if row[0] >= fault_at + GRACE]
    failed = [row for row in after if row[2] != "OK"]
    failed_late = [row for row in late if row[2] != "OK"]
    codes = {code: sum(row[2] == code for row in failed) for code in sorted({row[2] for row in failed})}
    last = max((row[0] for row in failed), default=fault_at) - fault_at
    done = [row[1] - row[0] for row in late]
    return (
        f"calls after the fault {len(after)}, failed {len(failed)} {codes}; begun more than {GRACE:g} s after it "
        f"{len(late)}, failed {len(failed_late)} ({100 * len(failed_late) / max(1, len(late)):.2f} %); the last call "
        f"that failed began {last:.2f} s after the fault; p99 of these {1000 * _percentile(done, 0.99):.1f} ms"
    )


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)] if values else 0.0


def run(arguments: list[str]) -> str:
    options: dict[str, Any] = {"seconds": 30.0, "rate": 200.0}
    for name in options:
        if f"--{name}" in arguments:
            options[name] = float(arguments[arguments.index(f"--{name}") + 1])
    protoc.generate([PROTOS], STUBS)
    importlib.invalidate_caches()  # the folder may be new
    flags = {name: f"--{name}" in arguments for name in ("block", "stream", "safe")}
    return uvloop.run(measure(**options, **flags))


if __name__ == "__main__":
    if "--serve" in sys.argv:
        uvloop.run(serve())
    else:
        print(run(sys.argv[1:]))

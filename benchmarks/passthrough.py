"""Cost of the edge for a native gRPC call: calls a second directly to a sidecar and through the edge, interleaved.

    python benchmarks/passthrough.py [--calls 5000] [--rounds 5]

Edge and sidecar are processes of ``mesh up`` with everything that is on by default (tracing, identity, limits). This
process makes the calls with the mesh's own channel, ``CONCURRENCY`` at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

ROOT = Path(__file__).parent.parent
STUBS = ROOT / ".mesh" / "test-stubs"
PROTOS = ROOT / "tests" / "protos"
sys.path[:0] = [str(ROOT), str(STUBS)]

from mesh.contract import loader, protoc  # noqa: E402 - after the path is set
from mesh.rpc.client.channel import Channel  # noqa: E402
from mesh.rpc.client.target import Target  # noqa: E402

CONCURRENCY = 64
PATH = "/conformance.v1.Echo/Unary"

MESH = """
protos = ["protos"]
[edge]
listen = "127.0.0.1:0"
[services.echo]
module = "apps.echo"
serves = ["conformance.v1.Echo"]
listen = "127.0.0.1:0"
"""


async def rate(channel: Channel, calls: int, request: bytes) -> float:
    """Return the calls a second."""
    call = channel.unary_unary(PATH, request_serializer=None, response_deserializer=None)
    left = calls

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call(request)

    started_at = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    return calls / (time.perf_counter() - started_at)


def cpu(parent: int) -> dict[str, float]:
    """Return the CPU seconds of the mesh's components so far (Linux)."""
    used = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            line = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # the process has just ended
            continue
        if int(fields[1]) == parent:
            kind = "edge" if b"edge" in line else "sidecar" if b"sidecar" in line else "other"
            used[kind] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


async def measure(mesh: int, edge: str, sidecar: str, calls: int, rounds: int) -> None:
    from conformance.v1 import conformance_pb2 as pb

    contract = loader.read(protoc.load([PROTOS], STUBS))
    request = pb.EchoRequest(text="hello", payload=b"x" * 100).SerializeToString()
    targets = {"sidecar": Target([sidecar]), "through the edge": Target([edge])}
    channels = {name: Channel(target, contract) for name, target in targets.items()}
    found: dict[str, list[float]] = {name: [] for name in channels}
    for channel in channels.values():
        await rate(channel, calls // 5, request)  # warm
    before = cpu(mesh)
    for _ in range(rounds):
        for name, channel in channels.items():
            found[name].append(await rate(channel, calls, request))
    spent = {kind: (used - before[kind]) * 1e6 / calls / rounds for kind, used in cpu(mesh).items()}
    for name, rates in found.items():
        print(f"{name:18} {statistics.median(rates):8.0f} calls/s   {', '.join(f'{one:.0f}' for one in rates)}")
    pairs = [two / one for one, two in zip(*found.values(), strict=True)]
    print(f"{'ratio, pair by pair':18} {statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})")
    print(f"CPU of the edge {spent['edge']:.0f} us a call, of the sidecar {spent['sidecar'] / 2:.0f} us")
    for target in targets.values():
        await target.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mesh.toml"
        file.write_text(MESH)
        shutil.copytree(PROTOS / "conformance", Path(folder) / "protos" / "conformance")
        environ = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "MESH_STATE": folder}
        command = [sys.executable, "-m", "mesh", "up", "--file", str(file)]
        mesh = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, cwd=ROOT)
        try:
            ready = Path(folder) / "up.json"
            while not (ready.exists() and json.loads(ready.read_text()).get("addresses")):
                assert mesh.poll() is None, "mesh up ended"
                time.sleep(0.1)
            addresses = json.loads(ready.read_text())["addresses"]
            uvloop.run(measure(mesh.pid, addresses["edge"], addresses["echo"], options.calls, options.rounds))
        finally:
            mesh.send_signal(signal.SIGINT)
            mesh.wait()


if __name__ == "__main__":
    main()

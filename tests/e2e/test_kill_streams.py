"""kill -9 of a sidecar while streams are open: each ends at once, and nobody waits for ever at the new process."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import grpc
import pytest
from mesh_process import ROOT, Mesh

from mesh.call import chain
from mesh.contract.model import Contract
from mesh.rpc.client.channel import Channel
from mesh.rpc.client.retry import retry
from mesh.rpc.client.target import Target

MANIFEST = """
protos = ["{protos}"]

[services.echo]
module = "apps.echo"
serves = ["conformance.v1.Echo"]
listen = "127.0.0.1:0"
"""


@pytest.mark.timeout(200)
async def test_open_streams_end_and_the_pool_goes_on(tmp_path: Path, contract: Contract) -> None:
    from conformance.v1 import conformance_pb2 as pb
    from conformance.v1.conformance_pb2_grpc import EchoStub

    file = tmp_path / "mesh.toml"
    file.write_text(MANIFEST.format(protos=ROOT / "tests" / "protos"))
    running = Mesh(file, tmp_path / "state", {"PYTHONPATH": str(ROOT / "tests")})
    try:
        await asyncio.to_thread(running.ready)
        target = Target([running.addresses["echo"]])
        stub = EchoStub(Channel(chain(retry(), target), contract))  # it may learn late that its connection is dead
        for _ in range(2):
            streams = [stub.ServerStream(pb.EchoRequest(count=2, sleep_ms=i and 60_000)) for i in range(20)]
            duplex = stub.Bidi()
            await duplex.write(pb.EchoRequest(text="a"))
            assert (await duplex.read()).text == "a"
            waiting = [asyncio.ensure_future(stream.read()) for stream in [*streams[1:], duplex]]
            assert (await streams[0].read()).index == 0
            killed = running.child("echo")
            os.kill(killed, signal.SIGKILL)
            async with asyncio.timeout(10):
                for ended in await asyncio.gather(*waiting, return_exceptions=True):
                    assert isinstance(ended, grpc.aio.AioRpcError)
                    assert ended.code() is grpc.StatusCode.UNAVAILABLE
            calls = [stub.Idempotent(pb.EchoRequest(text="b"), timeout=30) for _ in range(200)]  # while it is away
            assert {answer.text for answer in await asyncio.gather(*calls)} == {"b"}
            assert running.child("echo") != killed
        pool = target._handler.pool
        assert not pool._waiters
        assert [len(connection.streams) for connection in pool._connections] == [0]
        await target.close()
    finally:
        assert running.stop() == 0, running.output()

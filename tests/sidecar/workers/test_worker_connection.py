"""One end of a worker connection against hand-written frames, in orders that a real other end produces rarely."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from hosting import pool_of, working
from suspend import suspend

from mesh.call import Call, Handler
from mesh.contract.model import Contract, Method
from mesh.sidecar.workers import frames
from mesh.sidecar.workers.frames import FrameKind
from mesh.sidecar.workers.worker_calls import ServedCall
from mesh.sidecar.workers.worker_connection import WorkerConnection

METHOD = Method("Do", "a.B", "/a.B/Do", Empty, Empty)


class End:
    """The other end of the connection: writes bytes, reads frames."""

    def __init__(self, sock: socket.socket, connection: WorkerConnection) -> None:
        self.connection = connection
        self._sock = sock
        self._reader = frames.FrameReader()

    async def write(self, *pieces: bytes) -> None:
        """Write all frames in one piece, so that the connection reads them at once."""
        await asyncio.get_running_loop().sock_sendall(self._sock, b"".join(pieces))

    async def status(self) -> tuple[int, frames.StatusBody]:
        """Return the call id and the body of the next frame, which must be a STATUS."""
        async with asyncio.timeout(5):
            while not (found := self._reader.feed(await asyncio.get_running_loop().sock_recv(self._sock, 65536))):
                pass
        [(kind, call, body)] = found
        assert kind == FrameKind.STATUS
        return call, frames.parse_status(body)


@asynccontextmanager
async def connected(handler: Handler) -> AsyncIterator[End]:
    """Yield the other end of a connection whose calls ``handler`` serves."""
    here, there = socket.socketpair()
    here.setblocking(False)  # noqa: FBT003 - the standard library's own signature
    connection = WorkerConnection(
        1, lambda connection, number, opened: (ServedCall(connection, number, METHOD, opened), handler), lambda *_: None
    )
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: connection, sock=there)
    try:
        yield End(here, connection)
    finally:
        transport.abort()
        await connection.lost
        here.close()


def opened(call: int) -> bytes:
    return frames.open_frame(call, 0, frames.NO_DEADLINE, b"", b"", True)  # noqa: FBT003 - by position, as the connection does


async def test_a_call_that_is_cancelled_has_a_status_whether_or_not_it_has_begun() -> None:
    begun = asyncio.Event()

    async def forever(call: Call) -> None:
        assert not begun.is_set()
        begun.set()
        await asyncio.Event().wait()

    async with connected(forever) as end:
        await end.write(opened(0))
        await begun.wait()
        await end.write(opened(2), frames.frame(FrameKind.CANCEL, 2))
        number, status = await end.status()
        assert (number, status.code, list(end.connection.served_calls)) == (2, 1, [0])
        await end.write(frames.frame(FrameKind.CANCEL, 0))
        number, status = await end.status()
        assert (number, status.code, list(end.connection.served_calls)) == (0, 1, [])


async def test_a_call_given_up_before_its_worker_looked_costs_nobody_anything(contract: Contract) -> None:
    """The worker is stopped; its socket then holds a call and its cancellation."""
    pool = pool_of(contract, "apps.trouble", min=1, max=1, concurrency=10)
    async with working(contract, pool) as address, grpc.aio.insecure_channel(address) as channel:
        stub = conformance_pb2_grpc.EchoStub(channel)
        answer = await stub.Unary(pb.EchoRequest())
        [worker] = pool.lifecycle.ready
        suspend(worker.pid)
        try:
            call = stub.Unary(pb.EchoRequest())
            async with asyncio.timeout(15):
                while not worker.busy:  # noqa: ASYNC110 - as below
                    await asyncio.sleep(0.01)
                call.cancel()
                while not all(pending.cancelled for pending in worker.connection.pending_calls.values()):  # noqa: ASYNC110 - as below
                    await asyncio.sleep(0.01)
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        async with asyncio.timeout(15):
            while worker.busy:  # noqa: ASYNC110 - another process ends it
                await asyncio.sleep(0.01)
        assert (await stub.Unary(pb.EchoRequest())).text == answer.text
        assert pool.lifecycle.ready == [worker]

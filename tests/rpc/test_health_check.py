"""The health check of containers, with servers of every kind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hosting import sidecar_of

from mesh.contract.model import Contract
from mesh.rpc.client import health_check


async def ask(address: str, seconds: float = 5.0) -> str:
    return await asyncio.to_thread(health_check.check, address, seconds)


async def test_a_sidecar(contract: Contract):
    sidecar = sidecar_of(contract)
    address = await sidecar.start()
    assert await ask(address) == "SERVING"
    await sidecar.stop()
    assert await ask(address) == "UNAVAILABLE: Connection refused"


@asynccontextmanager
async def stock(add: Callable[[grpc.aio.Server], None]):
    server = grpc.aio.server()
    add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


@pytest.mark.parametrize("status", ["SERVING", "NOT_SERVING", "UNKNOWN"])
async def test_a_stock_server(status: str):
    servicer = health.aio.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))
    async with stock(lambda server: health_pb2_grpc.add_HealthServicer_to_server(servicer, server)) as address:
        assert await ask(address) == status


async def test_a_message_in_percent_encoding():
    class Refusing(health_pb2_grpc.HealthServicer):
        async def Check(self, _, context: grpc.aio.ServicerContext):  # noqa: N802
            await context.abort(grpc.StatusCode.UNAVAILABLE, "100 % used, lösch was")

    async with stock(lambda server: health_pb2_grpc.add_HealthServicer_to_server(Refusing(), server)) as address:
        assert await ask(address) == "UNAVAILABLE: 100 % used, lösch was"


def answering(headers):
    """Return what answers every request, health checks too, by these headers and nothing else."""

    def answer(peer, stream_id):
        peer.h2.send_response(stream_id, headers, end_stream=True)

    answer.health_checks = True
    return answer


async def test_a_status_of_thousands_of_digits(faulty):
    """Python raises ValueError for an integer of more than 4,300 digits."""
    headers = [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"1" * 5000)]
    server = await faulty(answering(headers))
    assert await ask(server.address) == f"UNKNOWN: the response has no valid grpc-status ({'1' * 20!r})"


async def test_a_status_of_several_zeros(faulty):
    """grpc-go and grpcio read "00" as OK."""
    headers = [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"00")]
    server = await faulty(answering(headers))
    assert await ask(server.address) == "UNKNOWN"


async def test_a_server_without_health():
    async with stock(lambda _: None) as address:
        assert await ask(address) == "UNIMPLEMENTED: Method not found!"


@pytest.mark.parametrize(
    ("says", "answer"),
    [
        (b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", "UNAVAILABLE: it does not speak gRPC ("),
        (b"", "UNAVAILABLE: the connection was closed without a response"),
    ],
)
async def test_a_server_of_another_kind(says: bytes, answer: str):
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(says)
        writer.write_eof()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        assert (await ask(f"{host}:{port}")).startswith(answer)


async def test_a_server_that_says_nothing():
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        assert await ask(f"{host}:{port}", 0.1) == "DEADLINE_EXCEEDED: no response within 0.1 s"


def test_the_command_starts_light():
    """A container runs it every few seconds, so it must not import the most expensive modules."""
    code = (
        "import sys; from mesh import cli; cli.main(['health', '127.0.0.1:1']);"
        "print(*{'asyncio', 'google.protobuf', 'grpc', 'msgspec', 'mesh.errors'} & set(sys.modules), sep=',')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == [""]

"""Fixtures of the rpc tests: a stock server, and a channel to it by either transport."""

from __future__ import annotations

import asyncio
import socket
import sys
from types import MappingProxyType, SimpleNamespace

import grpc.aio
import pytest
import uvloop
from fault_server import FaultServer, silence
from hosting import hosted
from pki import Pki

from mesh.call import chain
from mesh.rpc.client.channel import Channel
from mesh.rpc.client.retry import RetryPolicy, retry
from mesh.rpc.client.service_tls import ServiceTls
from mesh.rpc.client.target import Target
from mesh.rpc.server.listener import CertificateFiles

SECURED: dict[str, ServiceTls] = {}
"""Address of a server with TLS → how to call it."""
FAST = RetryPolicy(base_delay=0.01, max_delay=0.05)
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 1)]


def pytest_asyncio_loop_factories(item):
    """Run the tests on asyncio's loop and on uvloop, which the mesh uses and whose transports differ."""
    loops = {"asyncio": asyncio.new_event_loop}
    if item.path.name.startswith("test_channel"):
        loops = {"uvloop": uvloop.new_event_loop}
    if item.path.name == "test_channel_faults.py":
        loops["asyncio"] = asyncio.new_event_loop
    return loops


@pytest.fixture
def rpc():
    """The generated stubs: ``rpc.pb`` and ``rpc.grpc``."""
    from conformance.v1 import conformance_pb2, conformance_pb2_grpc

    return SimpleNamespace(pb=conformance_pb2, grpc=conformance_pb2_grpc)


@pytest.fixture
async def serve(rpc):
    """Start stock servers: ``await serve()`` has ``server``, ``servicer``, ``address`` and ``port``."""
    from echo_servicer import Echo

    started = []

    async def start(port: int = 0, host: str = "127.0.0.1", options=()):
        servicer = Echo()
        server = grpc.aio.server(options=[*OPTIONS, *options])
        rpc.grpc.add_EchoServicer_to_server(servicer, server)
        bound = server.add_insecure_port(f"{host}:{port}")
        await server.start()
        started.append(server)
        return SimpleNamespace(server=server, servicer=servicer, address=f"{host}:{bound}", port=bound)

    yield start
    for server in started:
        await server.stop(None)


@pytest.fixture(params=["ngh2", "grpcio"])
def transport(request):
    """Name of the transport: both implementations of outbound calls."""
    return request.param


@pytest.fixture
async def dial(transport, contract, rpc):
    """Make stubs: ``dial(address, …)`` goes through retry layer and target, as the outbound chain does."""
    targets = []

    def make(*addresses: str, **options):
        options.setdefault("tls", SECURED.get(addresses[0]))
        target = Target(addresses, transport=transport, **options)
        targets.append(target)
        stub = rpc.grpc.EchoStub(Channel(chain(retry(FAST), target), contract))
        stub.target = target
        return stub

    yield make
    for target in targets:
        await target.close()


@pytest.fixture(params=["grpcio", "sidecar", "sidecar with TLS"])
async def echo(request, serve, contract, tmp_path):
    """A server: grpcio's, and our own with the same responses, without and with TLS."""
    if request.param == "grpcio":
        yield await serve()
        return
    from echo_servicer import Echo
    from servicer_module import module_of

    servicer = Echo()
    name = module_of(servicer)
    options = {"max_message": 64 * 2**20, "drain": 0.0}
    pki = Pki(tmp_path / "pki") if request.param == "sidecar with TLS" else None
    if pki is not None:
        leaf = pki.issue("echo")
        options["tls"] = CertificateFiles(leaf.certificate, leaf.private_key, leaf.roots)
    async with hosted(contract, name, **options) as address:
        tls = None if pki is None else ServiceTls(pki.credentials("caller"), "echo")
        if tls is not None:
            SECURED[address] = tls
        yield SimpleNamespace(servicer=servicer, address=address, port=int(address.rpartition(":")[2]), tls=tls)
        SECURED.pop(address, None)
    del sys.modules[name]


@pytest.fixture
def stub(echo, dial):
    """A stub of the server."""
    return dial(echo.address, name="echo")


@pytest.fixture
async def faulty():
    """Start a fault server: ``await faulty(answer, settings={})``."""
    servers = []

    async def start(answer=silence, settings=MappingProxyType({}), **options):
        server = FaultServer(answer, settings)
        await server.start(**options)
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop()


@pytest.fixture
async def channel():
    """Make channels of bytes: ``channel(address)``."""
    targets = []

    def make(*addresses, **options):
        target = Target(addresses, **options)
        targets.append(target)
        made = Channel(target)
        made.target = target
        return made

    yield make
    for target in targets:
        await target.close()


@pytest.fixture
def unused_port():
    """A port that refuses connections. It is bound, so that no other process gets it, and does not listen."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]

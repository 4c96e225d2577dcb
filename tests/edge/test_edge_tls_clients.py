"""Clients of an edge with TLS: WebSocket, gRPC and gRPC-Web, and what they see when its certificate is replaced."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_edge import grpc_edge
from pki import Pki
from raw_h2 import frame
from streaming import edge as streaming_edge
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from mesh.rpc.server import listener as listener_module
from mesh.rpc.server.listener import CertificateFiles

GRPC_WEB = "application/grpc-web+proto"


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


def issue(pki: Pki) -> CertificateFiles:
    found = pki.issue("edge")
    return CertificateFiles(found.certificate, found.private_key)


def trusting(pki: Pki) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(pki.folder / "roots.pem"))


def dial(pki: Pki, address: str) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials((pki.folder / "roots.pem").read_bytes())
    return grpc.aio.secure_channel(address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])


async def test_a_websocket_over_tls_lives_until_the_certificate_is_replaced(contract: Any, pki: Pki) -> None:
    async with streaming_edge(contract, "sidecar", tls=issue(pki)) as running:
        url = f"wss://{running.address}/s/rooms/r/chat"

        async def ask(socket: Any, text: str) -> Any:
            await socket.send(json.dumps({"text": text}))
            return json.loads(await socket.recv())["text"]

        async with connect(url, ssl=trusting(pki), proxy=None) as old:
            assert await ask(old, "a") == "a"
            await running.door.renew(issue(pki))
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(old.recv(), 10)
            assert old.close_code == 1001  # going away
            async with connect(url, ssl=trusting(pki), proxy=None) as new:
                assert await ask(new, "b") == "b"
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(url, ssl=ssl.create_default_context(), proxy=None)


async def test_grpc_over_tls_loses_no_call_when_the_certificate_is_replaced(contract: Any, pki: Pki) -> None:
    from conformance.v1 import conformance_pb2 as pb
    from conformance.v1 import conformance_pb2_grpc

    async with grpc_edge(contract, tls=issue(pki)) as edge:
        async with dial(pki, edge.address) as channel:
            stub = conformance_pb2_grpc.EchoStub(channel)
            stream = stub.Bidi()
            await stream.write(pb.EchoRequest(text="before"))
            assert (await stream.read()).text == "before"
            renewing = asyncio.create_task(edge.edge.renew(issue(pki)))
            answered = 0
            while not renewing.done():
                assert (await stub.Unary(pb.EchoRequest(text="x"))).text == "x"
                answered += 1
            await renewing
            assert answered > 0
            assert (await stub.Unary(pb.EchoRequest(text="after"))).text == "after"
            await stream.write(pb.EchoRequest(text="on the old connection"))
            assert (await stream.read()).text == "on the old connection"
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
        async with grpc.aio.insecure_channel(edge.address) as plain:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await conformance_pb2_grpc.EchoStub(plain).Unary(pb.EchoRequest(), timeout=5)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_grpc_web_over_tls(contract: Any, pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "RETIRE_DELAY", 0.0)
    from conformance.v1 import conformance_pb2 as pb

    def post(address: str) -> tuple[int, bytes]:
        host, _, port = address.rpartition(":")
        connection = http.client.HTTPSConnection(host, int(port), timeout=20, context=trusting(pki))
        try:
            body = frame(pb.EchoRequest(text="ü").SerializeToString())
            connection.request("POST", "/conformance.v1.Echo/Unary", body, {"content-type": GRPC_WEB})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    async with grpc_edge(contract, tls=issue(pki)) as edge:
        for _ in range(2):
            status, body = await asyncio.to_thread(post, edge.address)
            size = int.from_bytes(body[1:5], "big")
            assert (status, pb.EchoResponse.FromString(body[5 : 5 + size]).text) == (200, "ü")
            assert b"grpc-status: 0" in body[5 + size :]
            await edge.edge.renew(issue(pki))

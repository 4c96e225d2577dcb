"""Third-party clients of the Connect protocol: connect-web, connect-node, Python's connectrpc; at edge and sidecar."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import npm
import pytest
from connectrpc.client import ConnectClient
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_codecs
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import error_details_pb2
from grpc_edge import grpc_edge
from hosting import hosted
from pyqwest import Client, HTTPTransport, HTTPVersion

from mesh import content_coding

NODE = Path(__file__).parents[1] / "node" / "connect"


class Zstd:
    """zstd for connectrpc, whose own needs a package that is not installed."""

    def name(self):
        return "zstd"

    def compress(self, data):
        return content_coding.compress("zstd", bytes(data))

    def decompress(self, data, read_max_bytes=None):
        return content_coding.decompress("zstd", bytes(data), read_max_bytes or 2**20)


@asynccontextmanager
async def serving(contract, where):
    """Give the address of an edge before a sidecar, or of a sidecar."""
    if where == "sidecar":
        async with hosted(contract) as address:
            yield address
    else:
        async with grpc_edge(contract) as edge:
            yield edge.address


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
@pytest.mark.parametrize(
    ("where", "transport", "form"),
    [
        ("edge", "web", "json"), ("edge", "web", "binary"), ("edge", "http1", "json"), ("edge", "http2", "binary"),
        ("edge", "http2", "json"), ("sidecar", "http1", "binary"), ("sidecar", "http2", "json"),
    ],
)  # fmt: skip
async def test_connect_es(contract, tmp_path, where, transport, form):
    modules = await asyncio.to_thread(npm.packages, NODE / "package.json")
    files = FileDescriptorSet.FromString(contract.files.SerializeToString())
    error_details_pb2.DESCRIPTOR.CopyToProto(files.file.add())
    descriptors = tmp_path / "descriptors.binpb"
    descriptors.write_bytes(files.SerializeToString())
    async with serving(contract, where) as address:
        pipe = asyncio.subprocess.PIPE
        arguments = [NODE / "client.js", modules, f"http://{address}", descriptors, transport, form]
        process = await asyncio.create_subprocess_exec("node", *map(str, arguments), stdout=pipe, stderr=pipe)
        out, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, error.decode()
    seen = json.loads(out)
    expected = {
        "header": ["1", [0, 255]], "trailer": ["1", "AP8"], "unary": ["ñandú", 5000, True], "get": ["a+b&c=d ñ", True],
        "error": {"code": 3, "text": "no", "metadata": "2", "details": ["text"]}, "deadline": 4, "fraction": "f",
        "server": ["s0", "s1", "s2"], "failing": ["s0", "s1", 9],
    }  # fmt: skip
    if transport != "web":
        expected |= {"client": "a,b,c", "half": ["x0", "y1"]}
    if transport == "http2":
        expected["full"] = ["p", "q", "r"]
    assert seen == expected


@pytest.mark.parametrize("where", ["edge", "sidecar"])
@pytest.mark.parametrize("version", [HTTPVersion.HTTP1, HTTPVersion.HTTP2])
@pytest.mark.parametrize("codec", google_protobuf_codecs(), ids=lambda codec: codec.name())
@pytest.mark.parametrize("compression", [None, GzipCompression(), Zstd()], ids=["identity", "gzip", "zstd"])
async def test_connectrpc_for_python(contract, where, version, codec, compression):
    from conformance.v1 import conformance_pb2 as pb

    def method(name, kind=StreamType.UNARY, level=IdempotencyLevel.UNKNOWN):
        return MethodInfo(
            name=name, service_name="conformance.v1.Echo", input=pb.EchoRequest, output=pb.EchoResponse,
            idempotency_level=level, stream_type=kind,
        )  # fmt: skip

    async def requests(*texts):
        for text in texts:
            yield pb.EchoRequest(text=text)

    accepted = [] if compression is None else [compression]
    async with serving(contract, where) as address, HTTPTransport(http_version=version) as transport:
        client = ConnectClient(
            f"http://{address}", codec=codec, accept_compression=accepted, send_compression=compression,
            http_client=Client(transport),
        )  # fmt: skip
        large = pb.EchoRequest(text="ñandú", payload=bytes(70_000))
        response = await client.execute_unary(request=large, method=method("Unary"), timeout_ms=10_000)
        assert (response.text, len(response.payload), response.HasField("remaining")) == ("ñandú", 70_000, True)
        safe = method("Idempotent", level=IdempotencyLevel.NO_SIDE_EFFECTS)
        response = await client.execute_unary(request=pb.EchoRequest(text="a+b ñ"), method=safe, use_get=True)
        assert response.text == "a+b ñ"
        failing = pb.EchoRequest(fail=pb.Failure(code=5, message="no", details=True))
        with pytest.raises(ConnectError) as caught:
            await client.execute_unary(request=failing, method=method("Unary"))
        assert (caught.value.code, caught.value.message) == (Code.NOT_FOUND, "no")
        assert (
            error_details_pb2.BadRequest.FromString(caught.value.details[0].message_bytes).field_violations[0].field
            == "text"
        )
        with pytest.raises(ConnectError) as caught:
            await client.execute_unary(request=pb.EchoRequest(sleep_ms=60_000), method=method("Unary"), timeout_ms=100)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        stream = client.execute_server_stream(
            request=pb.EchoRequest(text="s", payload=bytes(5000), count=2),
            method=method("ServerStream", StreamType.SERVER_STREAM),
        )
        assert [(one.index, len(one.payload)) async for one in stream] == [(0, 5000), (1, 5000)]
        joined = await client.execute_client_stream(
            request=requests("a", "b"), method=method("ClientStream", StreamType.CLIENT_STREAM)
        )
        assert joined.text == "a,b"
        if version is HTTPVersion.HTTP2:
            bidi = method("Bidi", StreamType.BIDI_STREAM)
            answers = client.execute_bidi_stream(request=requests("x", "y"), method=bidi)
            assert [one.text async for one in answers] == ["x", "y"]

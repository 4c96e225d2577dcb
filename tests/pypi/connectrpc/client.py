"""Client for tests/edge/test_edge_connect_clients.py: ``client.py URL http1|http2``; calls every kind of method.

It needs the package and the stubs of tests/protos on ``PYTHONPATH``. It prints a line of JSON for each codec and
compression.
"""

from __future__ import annotations

import asyncio
import json
import sys

from conformance.v1 import conformance_pb2 as pb
from connectrpc.client import ConnectClient
from connectrpc.compat import google_protobuf_codecs
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from google.rpc import error_details_pb2
from pyqwest import Client, HTTPTransport, HTTPVersion

from mesh import content_coding


class Zstd:
    """zstd for connectrpc, whose own needs a package that is not installed."""

    def name(self):
        return "zstd"

    def compress(self, data):
        return content_coding.compress("zstd", bytes(data))

    def decompress(self, data, read_max_bytes=None):
        return content_coding.decompress("zstd", bytes(data), read_max_bytes or 2**20)


def method(name, kind=StreamType.UNARY, level=IdempotencyLevel.UNKNOWN):
    return MethodInfo(
        name=name, service_name="conformance.v1.Echo", input=pb.EchoRequest, output=pb.EchoResponse,
        idempotency_level=level, stream_type=kind,
    )  # fmt: skip


async def requests(*texts):
    for text in texts:
        yield pb.EchoRequest(text=text)


async def refused(client, request, **options):
    try:
        await client.execute_unary(request=request, method=method("Unary"), **options)
    except ConnectError as error:
        return error
    raise AssertionError("the call has succeeded")


async def calls(client, *, both_ways):
    large = pb.EchoRequest(text="ñandú", payload=bytes(70_000))
    unary = await client.execute_unary(request=large, method=method("Unary"), timeout_ms=10_000)
    safe = method("Idempotent", level=IdempotencyLevel.NO_SIDE_EFFECTS)
    get = await client.execute_unary(request=pb.EchoRequest(text="a+b ñ"), method=safe, use_get=True)
    failed = await refused(client, pb.EchoRequest(fail=pb.Failure(code=5, message="no", details=True)))
    details = error_details_pb2.BadRequest.FromString(failed.details[0].message_bytes)
    late = await refused(client, pb.EchoRequest(sleep_ms=60_000), timeout_ms=100)
    stream = client.execute_server_stream(
        request=pb.EchoRequest(text="s", payload=bytes(5000), count=2),
        method=method("ServerStream", StreamType.SERVER_STREAM),
    )
    found = {
        "unary": [unary.text, len(unary.payload), unary.HasField("remaining")],
        "get": get.text,
        "error": [failed.code.value, failed.message, details.field_violations[0].field],
        "deadline": late.code.value,
        "server": [[one.index, len(one.payload)] async for one in stream],
    }
    joined = await client.execute_client_stream(
        request=requests("a", "b"), method=method("ClientStream", StreamType.CLIENT_STREAM)
    )
    found["client"] = joined.text
    if both_ways:
        responses = client.execute_bidi_stream(
            request=requests("x", "y"), method=method("Bidi", StreamType.BIDI_STREAM)
        )
        found["both"] = [one.text async for one in responses]
    return found


async def main(url, version):
    protocol = {"http1": HTTPVersion.HTTP1, "http2": HTTPVersion.HTTP2}[version]
    async with HTTPTransport(http_version=protocol) as transport:
        for codec in google_protobuf_codecs():
            for compression in (None, GzipCompression(), Zstd()):
                client = ConnectClient(
                    url, codec=codec, accept_compression=[] if compression is None else [compression],
                    send_compression=compression, http_client=Client(transport),
                )  # fmt: skip
                found = await calls(client, both_ways=version == "http2")
                found["form"] = [codec.name(), "identity" if compression is None else compression.name()]
                sys.stdout.write(json.dumps(found) + "\n")


asyncio.run(main(*sys.argv[1:]))

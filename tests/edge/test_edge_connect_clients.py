"""Third-party clients of the Connect protocol: connect-web, connect-node, Python's connectrpc; at edge and sidecar."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import cached_packages
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import error_details_pb2
from grpc_edge import grpc_edge
from hosting import hosted

TESTS = Path(__file__).parents[1]
NODE = TESTS / "node" / "connect"
PYTHON = TESTS / "pypi" / "connectrpc"
STUBS = TESTS.parent / ".mesh" / "test-stubs"


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
    modules = await asyncio.to_thread(cached_packages.npm, NODE / "package.json")
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
@pytest.mark.parametrize("version", ["http1", "http2"])
async def test_connectrpc_for_python(contract, where, version):
    package = await asyncio.to_thread(cached_packages.pypi, PYTHON / "requirements.txt")
    environment = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{STUBS}"}
    async with serving(contract, where) as address:
        pipe = asyncio.subprocess.PIPE
        arguments = [str(PYTHON / "client.py"), f"http://{address}", version]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, env=environment, stdout=pipe, stderr=pipe
        )
        out, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, error.decode()
    expected = {
        "unary": ["ñandú", 70_000, True], "get": "a+b ñ", "error": ["not_found", "no", "text"],
        "deadline": "deadline_exceeded", "server": [[0, 5000], [1, 5000]], "client": "a,b",
    }  # fmt: skip
    if version == "http2":
        expected["both"] = ["x", "y"]
    forms = [[codec, coding] for codec in ("json", "proto") for coding in ("gzip", "identity", "zstd")]
    seen = sorted(map(json.loads, out.splitlines()), key=lambda found: found["form"])
    assert seen == [expected | {"form": form} for form in forms]

"""Third-party clients: connect-web (fetch) and Google's grpc-web (base64) as they run in browsers, grpc-js."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import cached_packages
import pytest
from grpc_edge import grpc_edge

from mesh.contract import protoc

NODE = Path(__file__).parents[1] / "node"
WEB = NODE / "web"


async def node(*arguments):
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("node", *map(str, arguments), stdout=pipe, stderr=pipe)
    out, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, error.decode()
    return json.loads(out)


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
async def test_clients_of_browsers(contract, tmp_path):
    modules = await asyncio.to_thread(cached_packages.npm, WEB / "package.json")
    descriptors = tmp_path / "descriptors.binpb"
    descriptors.write_bytes(contract.files.SerializeToString())
    async with grpc_edge(contract) as edge:
        seen = await node(WEB / "client.js", modules, f"http://{edge.address}", descriptors)
    assert seen["connect"] == {
        "header": "1", "trailer": "1", "text": "ñandú", "error": [5, "no ñandú"],
        "stream": ["s0", "s1", "s2", 9], "deadline": 4,
    }  # fmt: skip
    assert seen["google"]["unary"] == {"code": 0, "message": "", "text": "ñandú", "header": "1"}
    assert (seen["google"]["error"]["code"], seen["google"]["error"]["message"]) == (5, "gone")
    assert seen["google"]["stream"] == ["s0", "s1", "s2"]


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
async def test_grpc_js_through_the_edge(contract):
    modules = await asyncio.to_thread(cached_packages.npm, NODE / "package.json")
    roots = [NODE.parent / "protos", *protoc.builtin_roots()]
    async with grpc_edge(contract) as edge:
        seen = await node(NODE / "client.js", modules, edge.address, *roots)
    assert (seen["unary"]["code"], seen["unary"]["header"], seen["unary"]["trailer"]) == (0, ["1, 2"], ["00ff"])
    assert seen["gzip"]["text"] == "packed"
    assert (seen["error"]["code"], seen["error"]["details"]) == (5, "no ñandú")
    assert (seen["server"], seen["client"], seen["bidi"]) == (["s0", "s1", "s2"], "a,b,c", ["x0", "y1"])

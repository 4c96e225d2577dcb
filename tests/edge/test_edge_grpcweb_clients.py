"""gRPC-Web clients that others wrote, as they run in browsers: connect-web (fetch) and Google's grpc-web (base64)."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import npm
import pytest
from grpc_edge import grpc_edge

WEB = Path(__file__).parents[1] / "node" / "web"


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
async def test_clients_of_browsers(contract, tmp_path):
    modules = await asyncio.to_thread(npm.packages, WEB / "package.json")
    descriptors = tmp_path / "descriptors.binpb"
    descriptors.write_bytes(contract.files.SerializeToString())
    async with grpc_edge(contract) as edge:
        pipe = asyncio.subprocess.PIPE
        node = await asyncio.create_subprocess_exec(
            "node", WEB / "client.js", modules, f"http://{edge.address}", descriptors, stdout=pipe, stderr=pipe
        )
        out, error = await asyncio.wait_for(node.communicate(), 60)
    assert node.returncode == 0, error.decode()
    seen = json.loads(out)
    assert seen["connect"] == {
        "header": "1", "trailer": "1", "text": "ñandú", "error": [5, "no ñandú"],
        "stream": ["s0", "s1", "s2", 9], "deadline": 4,
    }  # fmt: skip
    assert seen["google"]["unary"] == {"code": 0, "message": "", "text": "ñandú", "header": "1"}
    assert (seen["google"]["error"]["code"], seen["google"]["error"]["message"]) == (5, "gone")
    assert seen["google"]["stream"] == ["s0", "s1", "s2"]

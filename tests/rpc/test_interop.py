"""Third-party clients: grpcurl, buf curl and Node's grpc-js list, describe and call a sidecar."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cached_packages
import pytest
from hosting import ECHO, hosted

from mesh.contract import protoc
from mesh.contract.model import Contract

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(params=["apps.echo", "apps.echo_sync"])
async def address(request: pytest.FixtureRequest, contract: Contract) -> AsyncIterator[str]:
    async with hosted(contract, request.param) as found:
        yield found


async def run(*command: str | Path, code: int = 0, stdin: str = "") -> str:
    """Run a command and return what it printed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*map(str, command), stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        out, error = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == code, (out + error).decode()
    return (out if code == 0 else error).decode()


def stream(text: str) -> list[Any]:
    """Return the concatenated JSON values of ``text``."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while text[at:].strip():
        value, end = decoder.raw_decode(text[at:].lstrip())
        at += len(text[at:]) - len(text[at:].lstrip()) + end
        found.append(value)
    return found


async def grpcurl(address: str, *arguments: str, data: Any = None, code: int = 0) -> str:
    options = ["-d", "@"] if data is not None else []
    lines = "\n".join(map(json.dumps, data or []))
    return await run(BIN / "grpcurl", "-plaintext", *options, address, *arguments, code=code, stdin=lines)


async def test_grpcurl_lists_and_describes(address: str) -> None:
    assert ECHO in (await grpcurl(address, "list")).split()
    assert f"{ECHO}.Bidi" in (await grpcurl(address, "list", ECHO)).split()
    described = await grpcurl(address, "describe", f"{ECHO}.Unary")
    assert "(.google.api.http)" in described
    assert "(.meshapi.v1.method) = { access:PUBLIC }" in described
    assert "int32 sleep_ms = 3;" in await grpcurl(address, "describe", "conformance.v1.EchoRequest")


async def test_grpcurl_calls(address: str) -> None:
    assert json.loads(await grpcurl(address, f"{ECHO}/Unary", data=[{"text": "curl"}])) == {"text": "curl"}
    answers = stream(await grpcurl(address, f"{ECHO}/ServerStream", data=[{"count": 3}]))
    assert answers == [{}, {"index": "1"}, {"index": "2"}]
    assert stream(await grpcurl(address, f"{ECHO}/ClientStream", data=[{"text": "a"}, {"text": "b"}])) == [
        {"text": "a,b", "index": "2"}
    ]
    assert stream(await grpcurl(address, f"{ECHO}/Bidi", data=[{"text": "a"}, {"text": "b"}])) == [
        {"text": "a"},
        {"text": "b", "index": "1"},
    ]
    assert json.loads(await grpcurl(address, "grpc.health.v1.Health/Check", data=[{}])) == {"status": "SERVING"}


async def test_grpcurl_sees_rich_errors(address: str) -> None:
    fail = {"fail": {"code": 3, "message": "no ñandú", "details": True}}
    said = await grpcurl(address, f"{ECHO}/Unary", data=[fail], code=64 + 3)
    assert "Code: InvalidArgument" in said
    assert "Message: no ñandú" in said
    assert "google.rpc.BadRequest" in said


async def buf(*arguments: str, data: Any = None, code: int = 0) -> str:
    options = ["-d", "@-"] if data is not None else []
    lines = "\n".join(map(json.dumps, data or []))
    flags = ["--protocol", "grpc", "--http2-prior-knowledge"]
    return await run(BIN / "buf", "curl", *flags, *options, *arguments, code=code, stdin=lines)


async def test_buf_curl(address: str) -> None:
    url = f"http://{address}"
    assert ECHO in (await buf(url, "--list-services")).split()
    assert f"{ECHO}/Bidi" in (await buf(url, "--list-methods")).split()
    assert json.loads(await buf(f"{url}/{ECHO}/Unary", data=[{"text": "buf"}])) == {"text": "buf"}
    answers = stream(await buf(f"{url}/{ECHO}/Bidi", data=[{"text": "a"}, {"text": "b"}]))
    assert answers == [{"text": "a"}, {"text": "b", "index": "1"}]
    said = await buf(f"{url}/{ECHO}/Unary", data=[{"fail": {"code": 5, "message": "gone"}}], code=40)
    assert json.loads(said) == {"code": "not_found", "message": "gone"}


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
async def test_node(address: str) -> None:
    client = ROOT / "tests" / "node" / "client.js"
    modules = await asyncio.to_thread(cached_packages.npm, client.parent / "package.json")
    roots = [ROOT / "tests" / "protos", *protoc.builtin_roots()]
    seen = json.loads(await run("node", client, modules, address, *roots))
    assert seen["unary"] == {
        "code": 0, "details": "", "text": "node", "size": 0, "header": ["1, 2"], "trailer": ["00ff"],
    }  # fmt: skip  # Node's http2 joins repeated headers (RFC 9110, 5.3)
    assert (seen["gzip"]["text"], seen["gzip"]["size"]) == ("packed", 100_000)
    assert (seen["error"]["code"], seen["error"]["details"]) == (5, "no ñandú")
    assert (seen["server"], seen["client"], seen["bidi"]) == (["s0", "s1", "s2"], "a,b,c", ["x0", "y1"])

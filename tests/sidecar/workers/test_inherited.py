"""Context variables set by the import and ``startup``: the same in the event loop, in threads and in workers."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from hosting import hosted, pool_of, working

from mesh.contract.model import Contract

INHERITED = ["kept", "kept, after kept", "by startup", "none", "0.33333"]
METHODS = ["Unary", "Idempotent", "Slow", "ServerStream", "ClientStream", "Bidi"]


@pytest.fixture(params=["here", "workers", "workers of one call"])
async def stub(
    request: pytest.FixtureRequest, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Any]:
    if request.param == "here":
        monkeypatch.delitem(sys.modules, "apps.inherited", raising=False)  # a process imports it once, and so each test
        place = hosted(contract, "apps.inherited")
    else:
        concurrency = 16 if request.param == "workers" else 1
        place = working(contract, pool_of(contract, "apps.inherited", min=1, max=1, concurrency=concurrency))
    async with place as address, grpc.aio.insecure_channel(address) as channel:
        yield conformance_pb2_grpc.EchoStub(channel)


async def told(stub: Any, method: str, text: str) -> list[str]:
    request = pb.EchoRequest(text=text)
    ask = getattr(stub, method)
    if method in ("Unary", "Idempotent", "Slow"):
        return json.loads((await ask(request)).text)
    if method == "ClientStream":
        return json.loads((await ask(iter([request]))).text)
    (answer,) = [one async for one in ask(request if method == "ServerStream" else iter([request]))]
    return json.loads(answer.text)


@pytest.mark.parametrize("method", METHODS)
async def test_each_call_begins_with_them_and_sees_no_other_call_s(stub: Any, method: str) -> None:
    for number in range(3):
        assert await told(stub, method, str(number)) == INHERITED
    answers = await asyncio.gather(*(told(stub, method, str(number)) for number in range(8)))
    assert answers == [INHERITED] * 8


async def test_the_main_thread_is_for_def_functions_of_a_worker_that_answers_one_call(contract: Contract) -> None:
    pool = pool_of(contract, "apps.inherited", min=1, max=1, concurrency=1)
    async with working(contract, pool) as address, grpc.aio.insecure_channel(address) as channel:
        stub = conformance_pb2_grpc.EchoStub(channel)
        request = pb.EchoRequest()
        main = [(await stub.Idempotent(request)).index, (await stub.ClientStream(iter([request]))).index]
        main += [answer.index async for answer in stub.Bidi(iter([request, request]))]
        assert main == [1, 1, 1, 1]
        assert (await stub.Unary(request)).index == 0  # the event loop has a thread of its own meanwhile


LIBRARY = """
import decimal
from contextvars import ContextVar
variable = ContextVar("variable", default="lost")
variable.set("of the library")
decimal.getcontext().prec = 7
"""
FUNCTIONS = """
import decimal, preloaded_library
from apps.echo import bidi, client_stream, server_stream, slow
from conformance.v1 import conformance_pb2 as pb

async def unary(request, context):
    return pb.EchoResponse(text=f"{preloaded_library.variable.get()} {decimal.Decimal(1) / 3}")

def idempotent(request, context):
    return pb.EchoResponse(text=f"{preloaded_library.variable.get()} {decimal.Decimal(1) / 3}")
"""


@pytest.mark.parametrize("concurrency", [1, 16])
async def test_what_a_preloaded_library_has_set_is_in_the_workers(
    contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> None:
    (tmp_path / "preloaded_library.py").write_text(LIBRARY)
    (tmp_path / "of_library.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    pool = pool_of(
        contract, "of_library", min=1, max=1, concurrency=concurrency,
        preload=("preloaded_library", "conformance.v1.conformance_pb2_grpc"),
    )  # fmt: skip
    async with working(contract, pool) as address, grpc.aio.insecure_channel(address) as channel:
        stub = conformance_pb2_grpc.EchoStub(channel)
        for ask in (stub.Unary, stub.Idempotent):
            assert [(await ask(pb.EchoRequest())).text for _ in range(2)] == ["of the library 0.3333333"] * 2

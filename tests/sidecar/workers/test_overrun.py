"""Workers that serve one call at a time: ``def`` functions run in the main thread, the event loop in another one."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from hosting import pool_of, working
from test_worker_pool import given_up

from mesh.contract.model import Contract
from mesh.sidecar.workers.worker_pool import WorkerPool


@asynccontextmanager
async def running(contract: Contract, module: str, **spec: Any) -> AsyncIterator[tuple[Any, WorkerPool]]:
    pool = pool_of(contract, module, **{"min": 1, "max": 1, "concurrency": 1, **spec})
    async with working(contract, pool, drain=5.0) as address, grpc.aio.insecure_channel(address) as channel:
        yield conformance_pb2_grpc.EchoStub(channel), pool


async def until(found: Any) -> None:
    """Wait for something that other processes do without an event."""
    async with asyncio.timeout(20):
        while not found():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


async def test_the_module_startup_calls_and_shutdown_are_of_one_thread(contract: Contract, tmp_path: Path) -> None:
    file = tmp_path / "rows.db"
    async with running(contract, "apps.bound", settings={"file": str(file)}) as (stub, _):
        answers = [await stub.Idempotent(pb.EchoRequest()) for _ in range(5)]
        assert [answer.text for answer in answers] == ["by startup"] * 5
    with sqlite3.connect(file) as database:
        assert database.execute("SELECT rows FROM ended").fetchall() == [(5,)]
    database.close()


async def test_a_call_that_is_given_up_keeps_its_place_until_its_function_has_ended(
    contract: Contract, tmp_path: Path
) -> None:
    async with running(contract, "apps.bound", settings={"file": str(tmp_path / "rows.db")}) as (stub, pool):
        (worker,) = pool.lifecycle.ready
        await given_up(stub.Unary(pb.EchoRequest(sleep_ms=1000)), pool)
        await until(lambda: any(one.cancelled for one in worker.connection.pending_calls.values()))
        assert worker.free_permits == 0
        await stub.Idempotent(pb.EchoRequest())  # waits for the function, and does not run beside it
        assert pool.lifecycle.ready == [worker]
        assert worker.end_reason == ""


async def test_a_function_that_goes_on_in_the_main_thread_is_ended_with_its_worker(
    contract: Contract, tmp_path: Path
) -> None:
    async with running(contract, "apps.bound", settings={"file": str(tmp_path / "rows.db")}) as (stub, pool):
        (worker,) = pool.lifecycle.ready
        await given_up(stub.Unary(pb.EchoRequest(sleep_ms=600_000)), pool)
        await stub.Idempotent(pb.EchoRequest(), timeout=20)
        await until(worker.process.ended.done)
        assert worker.end_reason == "a function went on after its call had ended"
        assert pool.lifecycle.ready[0] is not worker


ASYNC = """
import threading
from apps.echo import bidi, client_stream, server_stream
from conformance.v1 import conformance_pb2 as pb

async def unary(request, context):
    return pb.EchoResponse(index=int(threading.current_thread() is threading.main_thread()))

slow = idempotent = unary
"""


async def test_without_def_functions_the_loop_stays_in_the_main_thread(
    contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_async.py").write_text(ASYNC)
    monkeypatch.syspath_prepend(str(tmp_path))
    async with running(contract, "only_async") as (stub, _):
        assert (await stub.Unary(pb.EchoRequest())).index == 1


LOOPS = """
import asyncio
from apps.echo import bidi, client_stream, server_stream, slow
from conformance.v1 import conformance_pb2 as pb

def unary(request, context):
    return asyncio.run(asyncio.sleep(0, pb.EchoResponse(text=request.text)))

def idempotent(request, context):
    return asyncio.get_event_loop().run_until_complete(asyncio.sleep(0, pb.EchoResponse(text=request.text)))
"""


async def test_the_main_thread_has_an_event_loop_whatever_the_function_before_has_done(
    contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loops.py").write_text(LOOPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    async with running(contract, "loops") as (stub, _):
        for _ in range(2):
            assert (await stub.Unary(pb.EchoRequest(text="of its own"))).text == "of its own"
            assert (await stub.Idempotent(pb.EchoRequest(text="of the thread"))).text == "of the thread"


FAILING = """
import sys
from apps.echo import bidi, client_stream, idempotent, server_stream, slow, unary
{plain}

async def shutdown(service):
    print("said in shutdown")
    sys.exit(3)
"""


@pytest.mark.parametrize("plain", ["from apps.echo_sync import unary", ""])
async def test_a_shutdown_that_fails_is_logged_and_what_it_printed_is_not_lost(
    contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], plain: str
) -> None:
    (tmp_path / "failing_end.py").write_text(FAILING.format(plain=plain))
    monkeypatch.syspath_prepend(str(tmp_path))
    async with running(contract, "failing_end") as (stub, _):
        await stub.Unary(pb.EchoRequest())
    output, errors = capfd.readouterr()
    assert output == "said in shutdown\n"
    (line,) = [json.loads(line) for line in errors.splitlines() if "shutdown failed" in line]
    assert "SystemExit: 3" in line["exception"]


ALARM = """
import signal
from apps.echo_sync import client_stream, server_stream, slow, unary
from conformance.v1 import conformance_pb2 as pb

idempotent = unary

def ring(*_):
    raise TimeoutError

def bidi(requests, context):
    signal.signal(signal.SIGALRM, ring)
    while True:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            request = next(requests, None)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except TimeoutError:
            yield pb.EchoResponse(text="nothing yet")
            request = next(requests, None)
        if request is None:
            return
        yield pb.EchoResponse(text=request.text)
"""


async def test_requests_go_on_after_a_signal_handler_has_ended_the_waiting_for_one(
    contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alarm.py").write_text(ALARM)
    monkeypatch.syspath_prepend(str(tmp_path))
    async with running(contract, "alarm") as (stub, _):
        call = stub.Bidi(timeout=20)
        for number in range(3):
            assert (await call.read()).text == "nothing yet"
            await call.write(pb.EchoRequest(text=str(number)))
            assert (await call.read()).text == str(number)
        await call.done_writing()
        assert await call.read() in (grpc.aio.EOF, pb.EchoResponse(text="nothing yet"))

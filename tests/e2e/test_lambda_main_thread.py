"""What handlers do that AWS calls in the main thread of their process, the thread that has imported them."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value
from mesh_process import Mesh

MANIFEST = """
[services.plain]
lambda = "handler.main:handler"
timeout = "5s"

[services.many]
lambda = "handler.main:handler"
timeout = "5s"
workers = { min = 1, max = 1 }

[services.one]
lambda = "handler.main:handler"
timeout = "5s"
workers = { min = 1, max = 1, concurrency = 1 }
"""

HANDLER = """
    import asyncio, contextvars, decimal, multiprocessing, os, signal, sqlite3, subprocess, sys, threading, time

    import boto3.session

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    decimal.getcontext().prec = 5
    database = sqlite3.connect(":memory:")
    database.execute("create table seen (n)")
    local = threading.local()
    local.value = "kept"
    variable = contextvars.ContextVar("variable", default="lost")
    variable.set("of the import")
    made_at_import = asyncio.new_event_loop()
    if sys.version_info < (3, 14):
        got_at_import = asyncio.get_event_loop()
    ran_at_import = asyncio.run(asyncio.sleep(0, "ran"))
    if sys.version_info < (3, 14):
        asyncio.set_event_loop(got_at_import)  # which asyncio.run has taken away, here as on AWS
    marks = []

    async def work():
        await asyncio.sleep(0.001)
        process = await asyncio.create_subprocess_exec("true")
        return await process.wait()

    def in_fork(begun):
        begun.set()
        time.sleep(60)

    def late(*_):
        marks.append("late")
        raise RuntimeError("too late")

    class Handler:
        def get_event_loop(self, event, context):
            loop = asyncio.get_event_loop()
            return [loop is got_at_import, loop.run_until_complete(work())]

        def run(self, event, context):
            done = [asyncio.run(work()), ran_at_import]
            if sys.version_info < (3, 14):
                asyncio.set_event_loop(got_at_import)
            return done

        def loop_of_import(self, event, context):
            return made_at_import.run_until_complete(work())

        def uvloop(self, event, context):
            import uvloop
            return uvloop.run(work())

        def alarm(self, event, context):
            def ring(*_):
                raise TimeoutError("rang")
            signal.signal(signal.SIGALRM, ring)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            try:
                time.sleep(20)
            except TimeoutError as error:
                return str(error)

        def sqlite(self, event, context):
            return database.execute("insert into seen values (1)").rowcount

        def local(self, event, context):
            return [getattr(local, "value", "lost"), threading.current_thread() is threading.main_thread()]

        def decimal(self, event, context):
            return str(decimal.Decimal(1) / 3)

        def variable(self, event, context):
            found = variable.get()
            variable.set(event.get("set", found))
            return found

        def late(self, event, context):
            signal.signal(signal.SIGALRM, late)
            signal.setitimer(signal.ITIMER_REAL, 0.02)

        def marks(self, event, context):
            return marks

        def raises(self, event, context):
            raise {"exit": SystemExit(3), "interrupt": KeyboardInterrupt()}[event["kind"]]

        def loop_with_signals(self, event, context):
            "An event loop of its own takes the signals, and leaves them at their defaults."
            async def listen():
                loop = asyncio.get_running_loop()
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, marks.append, "never")
            loop = asyncio.new_event_loop()
            loop.run_until_complete(listen())
            loop.close()
            return os.getpid()

        def own_sigterm(self, event, context):
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
            return os.getpid()

        def sleep(self, event, context):
            time.sleep(event["seconds"])
            return threading.current_thread() is threading.main_thread()

        def hang(self, event, context):
            until = time.monotonic() + event["seconds"]
            while time.monotonic() < until:
                sum(range(1000))
            return os.getpid()

        def fork(self, event, context):
            context = multiprocessing.get_context("fork")
            begun = context.Event()
            child = context.Process(target=in_fork, args=(begun,), daemon=True)
            child.start()
            begun.wait(10)
            child.terminate()
            child.join(10)
            return child.exitcode

        def pid(self, event, context):
            return os.getpid()

    def handler(event, context):
        return getattr(Handler(), event["do"])(event, context)
"""


def project(folder: Path) -> Path:
    (folder / "handler").mkdir()
    (folder / "handler" / "main.py").write_text(textwrap.dedent(HANDLER))
    (folder / "mesh.toml").write_text(MANIFEST)
    return folder / "mesh.toml"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    running = Mesh(project(tmp_path_factory.mktemp("main")), tmp_path_factory.mktemp("run") / "state", {})
    try:
        yield running.ready()
    finally:
        code = running.stop()
    assert code == 0, running.output()


@pytest.fixture(params=["plain", "many", "one"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def invoke(mesh: Mesh, place: str, do: str, /, within: float = 30, **event: Any) -> Any:
    with grpc.insecure_channel(mesh.addresses[place]) as channel:
        call = channel.unary_unary(
            f"/functions.v1.{place.title()}/Invoke",
            request_serializer=Value.SerializeToString, response_deserializer=Value.FromString,
        )  # fmt: skip
        return json_format.MessageToDict(call(json_format.ParseDict({"do": do, **event}, Value()), timeout=within))


def refused(mesh: Mesh, place: str, do: str, **event: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        invoke(mesh, place, do, **event)
    error: Any = caught.value
    return error.code()


@pytest.mark.parametrize(
    ("do", "found"),
    [
        ("run", [0, "ran"]),
        ("loop_of_import", 0),
        ("uvloop", 0),
        ("alarm", "rang"),
        ("fork", -signal.SIGTERM),
        ("sqlite", 1),
        ("local", ["kept", True]),
        ("decimal", "0.33333"),
    ],
)
def test_a_handler_is_called_as_on_aws(mesh: Mesh, place: str, do: str, found: Any) -> None:
    assert [invoke(mesh, place, do) for _ in range(3)] == [found] * 3


def test_the_main_thread_s_event_loop(mesh: Mesh, place: str) -> None:
    """``asyncio.get_event_loop()`` makes one up to Python 3.13; from 3.14 on it raises, as in AWS's main thread."""
    if sys.version_info < (3, 14):
        assert [invoke(mesh, place, "get_event_loop") for _ in range(3)] == [[True, 0]] * 3
    else:
        assert refused(mesh, place, "get_event_loop") is grpc.StatusCode.INTERNAL


def test_an_invocation_finds_what_the_one_before_has_set(mesh: Mesh, place: str) -> None:
    """As in an execution environment: a handler may set a variable in its first invocation only."""
    assert invoke(mesh, place, "variable", set="of an invocation") == "of the import"
    assert invoke(mesh, place, "variable", set="of the import") == "of an invocation"


@pytest.mark.parametrize("kind", ["exit", "interrupt"])
def test_what_ends_a_main_thread_ends_the_call_only(mesh: Mesh, place: str, kind: str) -> None:
    before = invoke(mesh, place, "pid")
    assert refused(mesh, place, "raises", kind=kind) is grpc.StatusCode.INTERNAL
    assert invoke(mesh, place, "pid") == before


def test_a_signal_handler_that_raises_between_two_calls_ends_nothing(mesh: Mesh, place: str) -> None:
    before = invoke(mesh, place, "pid")
    invoke(mesh, place, "late")
    until = time.monotonic() + 20
    while "late" not in (invoke(mesh, place, "marks") or []):
        assert time.monotonic() < until
        time.sleep(0.05)  # a timer of another process
    assert invoke(mesh, place, "pid") == before


def test_calls_that_overlap_run_side_by_side_unless_a_worker_takes_one_at_a_time(mesh: Mesh) -> None:
    with ThreadPoolExecutor(3) as pool:
        for place in ("plain", "many"):
            began = time.monotonic()
            calls = [pool.submit(invoke, mesh, place, "sleep", seconds=2) for _ in range(3)]
            main = [call.result() for call in calls]
            assert (main.count(True), time.monotonic() - began < 5.5) == (1, True)
        main = list(pool.map(lambda _: invoke(mesh, "one", "sleep", seconds=0.2), range(3)))
        assert main == [True] * 3


def test_a_handler_that_hangs_in_the_main_thread(mesh: Mesh, place: str) -> None:
    """Others are answered meanwhile, in threads; a worker of one call is ended, and another one answers."""
    before = invoke(mesh, place, "pid")
    assert refused(mesh, place, "hang", seconds=12) is grpc.StatusCode.DEADLINE_EXCEEDED  # after five
    in_main = invoke(mesh, place, "sleep", seconds=0)
    if place == "one":
        assert (in_main, invoke(mesh, place, "pid") != before) == (True, True)
    else:
        assert in_main is False
        mesh.until(lambda: invoke(mesh, place, "sleep", seconds=0))  # its own again


def test_a_call_that_is_given_up_keeps_its_place_until_its_handler_has_ended(mesh: Mesh) -> None:
    before = invoke(mesh, "one", "pid")
    with pytest.raises(grpc.RpcError):
        invoke(mesh, "one", "hang", within=1.0, seconds=2.5)  # it begins within the one, however busy the machine
    began = time.monotonic()
    assert invoke(mesh, "one", "pid") == before
    assert time.monotonic() - began > 0.3


@pytest.mark.parametrize("do", ["loop_with_signals", "own_sigterm"])
def test_signal_handlers_of_a_function_do_not_keep_the_process_from_its_stop(mesh: Mesh, place: str, do: str) -> None:
    """SIGINT of a terminal goes to every process of the group; workers leave when the sidecar says so."""
    pid = invoke(mesh, place, do)
    if place == "plain":
        return  # the stop of the fixture is a SIGTERM for it
    os.kill(int(pid), signal.SIGINT)
    assert invoke(mesh, place, "pid") == pid
    os.kill(int(pid), signal.SIGTERM)
    assert invoke(mesh, place, "pid") == pid


@pytest.mark.parametrize("do", ["loop_with_signals", "own_sigterm"])
def test_a_sidecar_whose_main_thread_is_busy_drains_at_sigterm(tmp_path: Path, do: str) -> None:
    file = project(tmp_path)
    file.write_text(MANIFEST.partition("[services.many]")[0])
    running = Mesh(file, tmp_path / "state", {})
    try:
        running.ready()
        invoke(running, "plain", do)
        with ThreadPoolExecutor(2) as pool:
            invoke(running, "plain", "sleep", seconds=0)
            overlapped = pool.submit(invoke, running, "plain", "sleep", seconds=1.5)
            answered = pool.submit(invoke, running, "plain", "sleep", seconds=1)
            running.until(lambda: invoke(running, "plain", "pid"))
            assert running.stop() == 0
            results = [overlapped.exception(), answered.exception()]
    finally:
        running.stop()
    if do == "loop_with_signals":
        assert results == [None, None]
    else:  # what the handler's own signal handler raises ends the call that runs, which is its business
        assert any(error is None for error in results)
    assert "killed" not in running.output()


def test_a_handler_that_never_ends_does_not_keep_its_process(tmp_path: Path) -> None:
    file = project(tmp_path)
    file.write_text(MANIFEST.partition("[services.many]")[0].replace('"5s"', '"1s"'))
    running = Mesh(file, tmp_path / "state", {})
    try:
        running.ready()
        assert refused(running, "plain", "hang", seconds=600) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert isinstance(invoke(running, "plain", "pid"), float)
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < 8
    finally:
        running.stop()
    assert "killed" not in running.output()

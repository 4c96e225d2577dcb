"""Worker pool: what a function does to its worker costs its own calls, and no others."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from hosting import ECHO, pool_of, working

from mesh.contract.model import Contract
from mesh.faults import Faults
from mesh.sidecar.workers.worker_pool import WorkerPool

Stub = conformance_pb2_grpc.EchoStub


@asynccontextmanager
async def running(
    contract: Contract, module: str = "apps.trouble", **spec: Any
) -> AsyncIterator[tuple[Stub, WorkerPool]]:
    pool = pool_of(contract, module, **spec)
    async with working(contract, pool) as address, grpc.aio.insecure_channel(address) as channel:
        yield Stub(channel), pool


async def ask(stub: Stub, text: str, **options: Any) -> pb.EchoResponse:
    answer: pb.EchoResponse = await stub.Unary(pb.EchoRequest(text=text), **options)
    return answer


async def refused(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details() or ""


async def until(found: Callable[[], bool], seconds: float = 15) -> None:
    """Wait for something that other processes do without an event."""
    async with asyncio.timeout(seconds):
        while not found():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


async def until_begun(pool: WorkerPool) -> None:
    """Wait until the only worker has started the function of its newest call.

    A deadline says nothing of that: on a busy machine it passes before the worker has looked.
    """
    (worker,) = pool.lifecycle.ready
    await until(lambda: bool(worker.busy) and worker.process.watermark.reached(max(worker.connection.pending_calls)))


async def given_up(call: Any, pool: WorkerPool) -> None:
    """Cancel a call as soon as its function has started."""
    task = asyncio.ensure_future(call)
    await until_begun(pool)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("text", "how"),
    [("exit 3", "exit code 3"), ("exit 0", "exit code 0"), ("segfault", "signal SIGSEGV"), ("die", "signal SIGKILL")],
)
async def test_a_worker_that_ends_fails_its_own_calls_and_is_replaced(
    contract: Contract, tmp_path: Path, text: str, how: str
) -> None:
    async with running(contract, min=2, max=2, concurrency=1) as (stub, pool):
        await until(lambda: len(pool.lifecycle.ready) == 2)
        other = asyncio.ensure_future(ask(stub, f"wait {tmp_path}/end"))
        await until(lambda: any(worker.busy for worker in pool.lifecycle.ready))
        code, said = await refused(ask(stub, text))
        assert (code, said) == ("UNAVAILABLE", f"the worker process that ran this function ended ({how})")
        (tmp_path / "end").touch()
        assert (await other).text
        assert (await ask(stub, "")).text


async def test_a_call_that_had_not_begun_goes_to_another_worker(contract: Contract, tmp_path: Path) -> None:
    """The worker's event loop is blocked when the call comes to it; then the worker dies."""
    async with running(contract, min=1, max=1, concurrency=10) as (stub, pool):
        loop = asyncio.ensure_future(refused(ask(stub, "loop", timeout=60)))
        await until_begun(pool)
        (worker,) = pool.lifecycle.ready
        waiting = asyncio.ensure_future(ask(stub, ""))
        await until(lambda: worker.busy == 2)
        os.kill(worker.pid, signal.SIGKILL)
        assert (await waiting).text not in ("", str(worker.pid))
        loop.cancel()


async def test_an_idempotent_call_is_tried_again(contract: Contract, tmp_path: Path) -> None:
    async with running(contract, min=1, max=1) as (stub, _):
        assert (await stub.Idempotent(pb.EchoRequest(text=f"once {tmp_path}/seen"))).text == "alive"
        assert (await refused(stub.Idempotent(pb.EchoRequest(text="exit 1"))))[0] == "UNAVAILABLE"  # not for ever


async def test_an_endless_loop_is_killed_and_the_others_are_told(contract: Contract) -> None:
    async with running(contract, min=1, max=1, concurrency=10) as (stub, pool):
        pid = pool.lifecycle.ready[0].pid

        other = asyncio.ensure_future(ask(stub, "sleep 60"))
        await until_begun(pool)
        loop = asyncio.ensure_future(ask(stub, "loop"))
        await until(lambda: pool.lifecycle.ready[0].busy == 2)
        await given_up(loop, pool)
        code, said = await refused(other)
        assert code == "UNAVAILABLE"
        assert said.endswith("a function blocked the event loop after its call had ended")
        await until(lambda: not alive(pid))  # its connection closes a moment before it has ended
        assert (await ask(stub, "")).text


async def test_a_loop_that_turns_is_not_ended_for_a_later_question(contract: Contract) -> None:
    """A call cleans up for 1.5 of its 2 s, while other calls are cancelled, so that there is always a recent ping."""
    async with running(contract, min=1, max=1, concurrency=500) as (stub, pool):
        pid = (await ask(stub, "")).text
        (worker,) = pool.lifecycle.ready
        cleaning = asyncio.ensure_future(ask(stub, "sweep 1.5"))
        await until_begun(pool)
        (call,) = worker.connection.pending_calls
        looked, look = [], pool.lifecycle._check_ping
        pool.lifecycle._check_ping = lambda *of: (looked.append(of), worker.ping(), look(*of))  # type: ignore[method-assign]
        cleaning.cancel()
        await until(lambda: bool(looked))
        assert call in worker.connection.pending_calls
        await until(lambda: call not in worker.connection.pending_calls)
        assert (await ask(stub, "")).text == pid
        assert worker.end_reason == ""


@pytest.mark.parametrize("what", ["ignores its cancellation", "blocks its thread"])
async def test_a_function_that_goes_on_is_ended_with_its_worker(contract: Contract, what: str) -> None:
    async with running(contract, min=1, max=1, concurrency=10) as (stub, pool):
        (worker,) = pool.lifecycle.ready
        pid = worker.pid
        found: list[tuple[Any, ...]] = []  # what would replace the worker, which serves calls until then
        if what == "ignores its cancellation":
            replace = pool.lifecycle._check_cancelled
            pool.lifecycle._check_cancelled = lambda *of: found.append(of)  # type: ignore[method-assign]
            await given_up(ask(stub, "ignore"), pool)
        else:
            replace = worker.on_overrun
            worker.on_overrun = lambda *of: found.append(of)
        while not found:
            if what == "blocks its thread":  # again and again: a deadline can pass before the function has started
                assert (await refused(stub.Slow(pb.EchoRequest(text="900"))))[0] == "DEADLINE_EXCEEDED"
            assert (await ask(stub, "")).text == str(pid)
            await asyncio.sleep(0.1)
        replace(*found[0])
        await until(lambda: bool(pool.lifecycle.ready) and pool.lifecycle.ready[0].pid not in (0, pid))
        await until(lambda: not alive(pid), 20)
        assert (await ask(stub, "")).text != str(pid)


async def test_a_worker_that_takes_too_much_memory_is_replaced(contract: Contract) -> None:
    limit = 200 * 10**6
    async with running(contract, min=1, max=1, memory=limit) as (stub, pool):
        pid = pool.lifecycle.ready[0].pid
        with contextlib.suppress(grpc.aio.AioRpcError):  # the worker may be killed before it has responded
            await ask(stub, f"leak {limit}")
        await until(lambda: not alive(pid))
        assert (await ask(stub, "")).text != str(pid)


async def test_a_worker_goes_after_so_many_calls(contract: Contract) -> None:
    async with running(contract, min=1, max=2, max_requests=3) as (stub, pool):
        pids = [(await ask(stub, "")).text for _ in range(9)]
        assert len(set(pids)) == 3
        await until(lambda: len(pool.lifecycle.alive) == 1)


@pytest.mark.parametrize("what", ["daemon", "tree", "forked"])
async def test_what_a_worker_started_lives_and_ends_with_it(contract: Contract, what: str) -> None:
    async with running(contract, min=2, max=2, concurrency=1) as (stub, pool):
        await until(lambda: len(pool.lifecycle.ready) == 2)
        pid, *started = map(int, (await ask(stub, f"start {what}")).text.split())
        assert all(map(alive, started))
        (other,) = (worker for worker in pool.lifecycle.ready if worker.pid != pid)
        os.kill(other.pid, signal.SIGKILL)
        await until(
            lambda: other not in pool.lifecycle.ready and len(pool.lifecycle.ready) == 2
        )  # what the next worker starts comes later
        assert all(map(alive, [pid, *started]))
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not any(map(alive, started)))
        assert pool.lifecycle.ready, "the other one lives"


async def test_what_nothing_is_known_of_ends_with_the_last_worker(contract: Contract) -> None:
    async with running(contract, min=1, max=1) as (stub, _):
        pid, *started = map(int, (await ask(stub, "start bare")).text.split())
        assert all(map(alive, started))
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not any(map(alive, started)))


async def test_the_fork_server_may_die(contract: Contract) -> None:
    async with running(contract, min=1, max=1) as (stub, pool):
        first = int((await ask(stub, "")).text)
        assert pool.spawner.pid is not None
        os.kill(pool.spawner.pid, signal.SIGKILL)
        await until(lambda: not alive(first))
        assert int((await ask(stub, "")).text) != first


FORKS = """
import errno, os
from pathlib import Path

fork = os.fork

def refused():
    if Path(__file__).with_name("full").exists():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()

os.fork = refused
"""


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a switch: a fork server that preloads the module ``refused`` cannot fork, or can again."""
    (tmp_path / "refused.py").write_text(FORKS)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "full"
    return lambda: file.unlink() if file.exists() else file.touch()


def bounded(pid: int, free: int) -> tuple[int, int]:
    """Leave a process ``free`` unused descriptors; return its earlier limits."""
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    limit = 0
    while free or limit in taken:
        free -= limit not in taken
        limit += 1
    return resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit(2) is Linux's")
@pytest.mark.parametrize("lacks", ["processes", "descriptors for what it is given", "descriptors for a child"])
async def test_a_fork_that_fails_costs_no_other_worker_anything(
    contract: Contract, full: Callable[[], None], lacks: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(contract, min=1, max=2, concurrency=1, preload=("refused",)) as (stub, pool):
        server, first = pool.spawner.pid, (await ask(stub, "")).text
        assert server is not None
        inside = asyncio.ensure_future(ask(stub, "sleep 2"))
        await until(lambda: bool(pool.lifecycle.ready[0].busy))
        if lacks == "processes":
            full()
            why = os.strerror(errno.EAGAIN)
        else:
            limits = bounded(server, 0 if lacks == "descriptors for what it is given" else 2)
            why = os.strerror(errno.EMFILE)
        waiting = asyncio.ensure_future(ask(stub, ""))
        await until(lambda: "no worker of echo can be started" in caplog.text)
        assert re.search(rf"it could not be forked: \[Errno \d+\] {why}; next attempt in 0.5 s", caplog.text)
        if lacks == "processes":
            full()
        else:
            resource.prlimit(server, resource.RLIMIT_NOFILE, limits)
        assert (await inside).text == first
        assert (await waiting).text
        await until(lambda: len(pool.lifecycle.ready) == 2)  # the next attempt
        assert pool.spawner.pid == server


async def test_the_fork_server_goes_on_without_a_process_ahead(contract: Contract, full: Callable[[], None]) -> None:
    async with running(contract, max=1, idle=1, preload=("refused",)) as (stub, pool):
        server = pool.spawner.pid
        full()
        await until(lambda: not pool.lifecycle.alive)
        said = await refused(ask(stub, ""))  # there is no spare
        assert said == ("UNAVAILABLE", "no worker of this service can be started now")
        full()
        await until(lambda: not pool.lifecycle.restart_delay)
        assert (await ask(stub, "")).text
        assert pool.spawner.pid == server


async def test_a_start_that_cannot_fork_says_so(contract: Contract, full: Callable[[], None]) -> None:
    full()
    with pytest.raises(
        Faults, match=f"no worker can be started: it could not be forked: .*{os.strerror(errno.EAGAIN)}"
    ):
        async with running(contract, preload=("refused",)):
            pass


async def test_zero_to_two_hundred_to_zero(contract: Contract) -> None:
    async with running(contract, max=4, concurrency=16, idle=0.3) as (stub, pool):
        for _ in range(3):
            await until(lambda: not pool.lifecycle.alive)
            answers = await asyncio.gather(*(ask(stub, "sleep 0.01") for _ in range(200)))
            assert 1 <= len({answer.text for answer in answers}) <= 4


async def test_a_full_queue_refuses(contract: Contract, tmp_path: Path) -> None:
    async with running(contract, min=1, max=1, concurrency=1, queue=1) as (stub, pool):
        inside = asyncio.ensure_future(ask(stub, f"wait {tmp_path}/end"))
        await until(lambda: pool.lifecycle.ready[0].busy == 1)
        waiting = asyncio.ensure_future(ask(stub, "sleep 0"))
        await until(lambda: pool._queue.waiting == 1)
        assert (await refused(ask(stub, "")))[0] == "RESOURCE_EXHAUSTED"
        (tmp_path / "end").touch()
        assert (await inside).text == (await waiting).text


async def test_a_call_that_gives_up_in_the_queue_leaves_it(contract: Contract, tmp_path: Path) -> None:
    async with running(contract, min=1, max=1, concurrency=1) as (stub, pool):
        inside = asyncio.ensure_future(ask(stub, f"wait {tmp_path}/end"))
        await until(lambda: pool.lifecycle.ready[0].busy == 1)
        assert (await refused(ask(stub, "", timeout=0.1)))[0] == "DEADLINE_EXCEEDED"
        await until(lambda: pool._queue.waiting == 0)
        (tmp_path / "end").touch()
        await inside
        assert (await ask(stub, "")).text


async def test_a_worker_that_goes_as_a_call_gives_its_place_back_is_let_go(contract: Contract, tmp_path: Path) -> None:
    async with running(contract, min=1, max=1, concurrency=1) as (stub, pool):
        (worker,) = pool.lifecycle.ready
        inside = asyncio.ensure_future(ask(stub, f"wait {tmp_path}/end"))
        await until(lambda: worker.busy == 1)
        waiting = asyncio.ensure_future(pool._wait(f"/{ECHO}/Unary"))
        await until(lambda: pool._queue.waiting == 1)
        dispatch = pool.lifecycle._on_capacity

        def cancel_after_dispatch() -> None:
            dispatch()
            if worker.reserved:  # it has just been given to the waiting call, which is cancelled before it takes it
                pool.lifecycle.retire(worker)
                waiting.cancel()

        pool.lifecycle._on_capacity = cancel_after_dispatch
        (tmp_path / "end").touch()
        assert (await inside).text == str(worker.pid)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        pool.lifecycle._on_capacity = dispatch
        async with asyncio.timeout(8):  # it is not killed before 10 s
            assert (await worker.process.ended).code == 0


async def test_a_stop_leaves_no_process(contract: Contract) -> None:
    async with running(contract, min=2, max=2) as (_, pool):
        await until(lambda: len(pool.lifecycle.ready) == 2)
        pids = [worker.pid for worker in pool.lifecycle.ready]
        assert pool.spawner.pid is not None
        pids.append(pool.spawner.pid)
        assert all(map(alive, pids))
    assert not any(map(alive, pids))


MODULE = """
from apps.echo import *
from apps.echo import pb

async def unary(request, context):
    return pb.EchoResponse(text={answer!r})
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that writes the module ``rewritten``."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> None:
        (tmp_path / "rewritten.py").write_text(text)

    return write


async def test_new_code_loses_no_call(contract: Contract, code: Callable[[str], None]) -> None:
    code(MODULE.format(answer="old"))
    async with running(contract, "rewritten", min=1, max=2) as (stub, pool):
        answers: list[str] = []

        async def load() -> None:
            while not answers or answers[-1] != "the new one":
                answers.append((await stub.Unary(pb.EchoRequest())).text)

        loading = [asyncio.ensure_future(load()) for _ in range(8)]
        await until(lambda: len(answers) > 20)
        code(MODULE.format(answer="the new one"))
        await pool.reload()
        await asyncio.wait_for(asyncio.gather(*loading), 15)
        assert set(answers) == {"old", "the new one"}


async def test_new_code_that_cannot_be_loaded_changes_nothing(
    contract: Contract, code: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    code(MODULE.format(answer="old"))
    async with running(contract, "rewritten", min=1, max=2) as (stub, pool):
        code("this is no Python")
        await pool.reload()
        assert (await stub.Unary(pb.EchoRequest())).text == "old"
        assert "rewritten.py:1: SyntaxError" in caplog.text


HELD = """
with open({gate!r}) as file:  # until somebody writes to it
    file.read()
"""


@pytest.fixture
def gate(tmp_path: Path) -> str:
    """Return a named pipe; code that ends with ``HELD`` waits for it until the result of ``held`` is closed."""
    os.mkfifo(tmp_path / "gate")
    return str(tmp_path / "gate")


async def held(gate: str) -> int:
    """Wait until a worker waits in its code; return the descriptor that lets it go on when it is closed."""
    found: list[int] = []

    def opened() -> bool:
        with contextlib.suppress(OSError):  # ENXIO: nobody reads
            found.append(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
        return bool(found)

    await until(opened)
    return found[0]


async def served(stub: Stub, pool: WorkerPool) -> set[str]:
    """Return the responses of all workers, with one call for each permit."""
    await until(lambda: not pool.lifecycle.starting)
    places = sum(worker.free_permits for worker in pool.lifecycle.ready)
    return {answer.text for answer in await asyncio.gather(*(stub.Unary(pb.EchoRequest()) for _ in range(places)))}


async def test_a_worker_that_was_starting_when_new_code_came_does_not_serve_the_old(
    contract: Contract, code: Callable[[str], None], gate: str
) -> None:
    code(MODULE.format(answer="old"))
    async with running(contract, "rewritten", min=1, max=2, concurrency=1) as (stub, pool):
        code(MODULE.format(answer="old") + HELD.format(gate=gate))
        pool.lifecycle.scale(2)
        late = await held(gate)
        code(MODULE.format(answer="new"))
        await pool.reload()
        os.close(late)
        assert await served(stub, pool) == {"new"}


async def test_new_code_that_only_one_worker_can_load_changes_nothing(
    contract: Contract, code: Callable[[str], None], gate: str
) -> None:
    code(MODULE.format(answer="old"))
    async with running(contract, "rewritten", min=2, max=2, concurrency=1) as (stub, pool):
        await until(lambda: len(pool.lifecycle.ready) == 2)
        before = set(pool.lifecycle.alive)
        code(f"import os\nos.mkdir({gate + 's'!r})  # the second one fails\n{MODULE.format(answer='new')}")
        await pool.reload()
        assert await served(stub, pool) == {"old"}
        await until(lambda: pool.lifecycle.alive == before)


async def test_reloads_that_overlap_leave_no_code_but_the_last(
    contract: Contract, code: Callable[[str], None], gate: str
) -> None:
    code(MODULE.format(answer="first"))
    async with running(contract, "rewritten", min=1, max=1) as (stub, pool):
        code(HELD.format(gate=gate) + "raise RuntimeError('not today')")
        failing = asyncio.ensure_future(pool.reload())
        late = await held(gate)
        code(MODULE.format(answer="second"))
        following = asyncio.ensure_future(pool.reload())
        await asyncio.sleep(0)
        os.close(late)
        await asyncio.gather(failing, following)
        assert await served(stub, pool) == {"second"}
        code(MODULE.format(answer="third"))
        await pool.reload()
        assert await served(stub, pool) == {"third"}


async def test_functions_that_cannot_be_loaded_end_the_start(contract: Contract, code: Callable[[str], None]) -> None:
    code("raise RuntimeError('not today')")
    with pytest.raises(Faults, match="not today"):
        async with running(contract, "rewritten"):
            pass


async def test_functions_that_cannot_be_loaded_any_more_refuse_at_once(
    contract: Contract, code: Callable[[str], None]
) -> None:
    code(MODULE.format(answer="old"))
    async with running(contract, "rewritten", max=1, idle=0.1) as (stub, pool):
        await until(lambda: not pool.lifecycle.alive)
        code("raise RuntimeError('not today')")
        began = time.monotonic()
        code_, said = await refused(stub.Unary(pb.EchoRequest()))
        assert (code_, said) == ("UNAVAILABLE", "no worker of this service can be started now")
        assert time.monotonic() - began < 10
        code(MODULE.format(answer="mended"))
        while True:
            try:
                answer = (await stub.Unary(pb.EchoRequest())).text
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
            else:
                break
        assert answer == "mended"

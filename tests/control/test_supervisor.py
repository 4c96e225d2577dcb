from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from suspend import suspend

from mesh.address import bound_address, split
from mesh.control.supervise import child, listening_sockets, restart_policy
from mesh.control.supervise.child import ComponentSpec
from mesh.control.supervise.log_output import LogOutput
from mesh.control.supervise.supervisor import Supervisor

CHILD = Path(__file__).with_name("child.py")


class Run:
    """A supervisor at work, with what it and its children said."""

    def __init__(self, folder: Path, start_timeout: float = 20.0, liveness_timeout: float | None = None) -> None:
        self.events_file = folder / "events"
        self.out = io.StringIO()
        self.components: list[ComponentSpec] = []
        self.start_timeout = start_timeout
        self.liveness_timeout = liveness_timeout
        self.ready = asyncio.Event()
        self.task: asyncio.Task[int] | None = None

    def add(self, name: str, behaviour: str = "ok", needs: tuple[str, ...] = (), drain: float = 5.0) -> ComponentSpec:
        component = ComponentSpec(
            name=name,
            command=(sys.executable, str(CHILD), name, behaviour),
            listener=listening_sockets.bind(name, "127.0.0.1:0"),
            needs=needs,
            drain=drain,
        )
        self.components.append(component)
        return component

    def start(self) -> asyncio.Task[int]:
        console = LogOutput(self.out, [component.name for component in self.components])
        environment = {**os.environ, "EVENTS": str(self.events_file)}
        self.supervisor = Supervisor(
            iter(self.components),
            console,
            environment,
            start_timeout=self.start_timeout,
            liveness_timeout=self.liveness_timeout,
        )
        self.task = asyncio.create_task(self.supervisor.run(lambda _: self.ready.set()))
        return self.task

    async def until_ready(self) -> None:
        self.start()
        await asyncio.wait_for(self.ready.wait(), 20)

    @property
    def events(self) -> list[str]:
        return self.events_file.read_text().splitlines() if self.events_file.exists() else []

    @property
    def said(self) -> list[str]:
        return [line.partition("│ ")[2] for line in self.out.getvalue().splitlines()]


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    made = Run(tmp_path)
    yield made
    if made.task is not None and not made.task.done():
        os.kill(os.getpid(), signal.SIGTERM)
        await made.task
    for component in made.components:
        component.listener.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that another process does and nobody announces."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is nothing to await in another process
            await asyncio.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


async def ask(component_address: str) -> int:
    host, port = split(component_address)
    reader, writer = await asyncio.open_connection(host, port)
    try:
        return int(await asyncio.wait_for(reader.read(), 10))
    finally:
        writer.close()


async def test_starts_in_order_and_stops_in_reverse(run: Run) -> None:
    run.add("edge", needs=("front",))
    run.add("front", needs=("back",))
    run.add("back")
    await run.until_ready()
    going = [event for event in run.events if not event.startswith("start")]
    assert going == ["go back", "ready back", "go front", "ready front", "go edge", "ready edge"]
    os.kill(os.getpid(), signal.SIGINT)
    assert run.task is not None
    assert await run.task == 0
    assert run.events[9:] == ["stop edge", "stop front", "stop back"]
    assert run.said[-1] == "stopped"


async def test_independent_components_start_together(run: Run) -> None:
    run.add("never", "mute")
    run.add("other")
    run.start()
    await until(lambda: "ready other" in run.events and "start never" in run.events)
    assert not run.ready.is_set()


async def test_a_component_loads_while_what_it_needs_is_not_ready(run: Run) -> None:
    run.add("back", "mute")
    run.add("front", needs=("back",))
    run.start()
    await until(lambda: "go back" in run.events and "start front" in run.events)
    assert "go front" not in run.events


async def test_a_fault_found_while_loading_ends_the_start_before_the_others_are_ready(run: Run) -> None:
    run.add("back", "mute")
    run.add("front", "broken", needs=("back",))
    assert await run.start() == 1
    assert "front: front has a fault" in run.said
    assert "go front" not in run.events


async def test_a_component_that_never_reports_ends_the_start(run: Run) -> None:
    run.start_timeout = 0.1
    run.add("never", "mute")
    assert await run.start() == 1
    assert "never: was not ready within 0.1 s" in run.said


@pytest.mark.parametrize(
    ("behaviour", "lines"),
    [
        ("fail", ["bad: the database of bad cannot be reached", "bad: and one more line"]),
        ("exit", ["last words", "bad: ended with exit code 3 before it was ready"]),
    ],
)
async def test_what_cannot_start_ends_the_start_with_its_reason(run: Run, behaviour: str, lines: list[str]) -> None:
    run.add("good")
    run.add("bad", behaviour, needs=("good",))
    run.add("edge", needs=("bad",))
    assert await run.start() == 1
    assert not run.ready.is_set()
    assert [line for line in run.said if line in lines] == lines
    assert run.events.count("start bad") == 1, "no loop"
    assert "go edge" not in run.events
    assert run.events[-1] == "stop good"


async def test_a_program_that_does_not_exist_is_named(run: Run) -> None:
    component = run.add("ghost")
    run.components[0] = ComponentSpec(name="ghost", command=("/no/such/program",), listener=component.listener)
    assert await run.start() == 1
    assert "ghost: /no/such/program cannot be started: No such file or directory" in run.said


async def test_a_crashed_component_returns_at_its_address_and_keeps_connections_waiting(run: Run) -> None:
    run.add("one")
    run.add("two")
    await run.until_ready()
    child = run.supervisor.children["one"]
    assert child.address is not None
    first = await ask(child.address)
    assert first == child.pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: not _alive(first))  # until then it may still accept, and reset what it accepted
    second = await ask(child.address)  # at once: nothing is refused meanwhile
    assert second != first
    await until(lambda: "one is ready again" in run.out.getvalue())
    assert second == child.pid
    assert "one died with signal SIGKILL; it starts again in 0.1 s" in run.said
    assert run.events.count("start two") == 1


async def test_a_component_that_keeps_dying_is_tried_again_with_backoff(run: Run) -> None:
    run.add("flaky", "once")
    run.add("other")
    await run.until_ready()
    pid = run.supervisor.children["flaky"].pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    await until(lambda: "(3 failures in a row)" in run.out.getvalue())
    assert "flaky died with exit code 0; it starts again in 0.1 s" in run.said
    reason = "flaky ended with exit code 3 before it was ready; it starts again in"
    assert f"{reason} 0.2 s (2 failures in a row)" in run.said
    assert f"{reason} 0.4 s (3 failures in a row)" in run.said
    other = run.supervisor.children["other"].address
    assert other is not None
    assert await ask(other) > 0


async def test_a_stopped_component_is_aborted_with_its_stacks_and_restarted(run: Run) -> None:
    run.liveness_timeout = 1.0
    run.add("one")
    run.add("two")
    await run.until_ready()
    one = run.supervisor.children["one"]
    assert one.pid is not None
    assert one.address is not None
    suspend(one.pid)
    await until(lambda: "one is ready again" in run.out.getvalue())
    assert "one has not responded for 1 s: it is aborted, with its stacks:" in run.said
    assert "one hung for 1 s and was ended with signal SIGABRT; it starts again in 0.1 s" in run.said
    assert any("child.py" in line and "in <module>" in line for line in run.said), "the stack of the main thread"
    assert await ask(one.address) == one.pid
    assert run.events.count("start two") == 1, "a component that answers goes on"


async def test_a_component_that_answers_no_probe_is_restarted_each_time(run: Run) -> None:
    run.liveness_timeout = 1.0
    run.add("one", "hung")
    await run.until_ready()
    await until(lambda: "(2 failures in a row)" in run.out.getvalue())


async def test_a_component_under_a_debugger_is_left_alone(run: Run) -> None:
    run.liveness_timeout = 1.0
    run.add("one", "debugged")
    await run.until_ready()
    pid = run.supervisor.children["one"].pid
    await until(lambda: "one does not respond; a debugger is attached, so it is left alone" in run.said)
    assert run.supervisor.children["one"].pid == pid
    assert run.events.count("start one") == 1


async def test_a_broker_that_accepts_and_says_nothing_is_restarted(run: Run) -> None:
    async def probe() -> str:
        reader, writer = await asyncio.open_connection(*split(address))
        try:
            assert await reader.read()
        finally:
            writer.close()
        return address

    run.liveness_timeout = 1.0
    component = run.add("broker", "mute")
    assert component.listener is not None
    address = bound_address(component.listener)
    run.components[0] = replace(component, probe=probe)
    await run.until_ready()
    pid = run.supervisor.children["broker"].pid
    assert pid is not None
    suspend(pid)
    await until(lambda: "broker is ready again" in run.out.getvalue())
    assert run.supervisor.children["broker"].pid != pid


async def test_a_component_that_ignores_sigterm_is_killed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "STOP_MARGIN_SECONDS", 0.1)
    run.add("deaf", "deaf", drain=0.1)
    await run.until_ready()
    os.kill(os.getpid(), signal.SIGTERM)
    assert run.task is not None
    assert await asyncio.wait_for(run.task, 10) == 0
    assert "deaf did not stop within 0.2 s: killed" in run.said


async def test_a_second_signal_kills_at_once(run: Run) -> None:
    run.add("deaf", "deaf", drain=60.0)
    await run.until_ready()
    os.kill(os.getpid(), signal.SIGINT)
    await until(lambda: "stopping" in run.out.getvalue())
    os.kill(os.getpid(), signal.SIGINT)
    assert run.task is not None
    assert await asyncio.wait_for(run.task, 10) == 0
    assert "killing what is left" in run.said


async def test_a_signal_during_the_start_ends_it(run: Run) -> None:
    run.add("slow", "mute")
    run.start()
    await until(lambda: "start slow" in run.events)
    os.kill(os.getpid(), signal.SIGTERM)
    assert run.task is not None
    assert await asyncio.wait_for(run.task, 10) == 0
    assert not run.ready.is_set()


async def test_lines_carry_the_name_and_json_is_made_readable(run: Run) -> None:
    run.add("a")
    run.add("longer")
    await run.until_ready()
    await until(lambda: run.out.getvalue().count("as json") == 2)
    lines = run.out.getvalue().splitlines()
    assert "a      │ a says hello" in lines
    assert "longer │ longer says hello" in lines
    assert "a      │ 21:14:38.123 WARNING as json user=ada" in lines


async def test_children_end_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    script = (
        "import asyncio, io, os, sys\n"
        "from mesh.control.supervise import listening_sockets\n"
        "from mesh.control.supervise.child import ComponentSpec\n"
        "from mesh.control.supervise.log_output import LogOutput\n"
        "from mesh.control.supervise.supervisor import Supervisor\n"
        "one = ComponentSpec(name='one', command=(sys.executable, sys.argv[1], 'one', 'deaf'),\n"
        "                listener=listening_sockets.bind('one', '127.0.0.1:0'))\n"
        "supervisor = Supervisor([one], LogOutput(io.StringIO(), ['one']), dict(os.environ))\n"
        "asyncio.run(supervisor.run(lambda children: print(children['one'].pid, flush=True)))\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(CHILD),
        env={**os.environ, "EVENTS": str(tmp_path / "events")},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    child = int(await asyncio.wait_for(process.stdout.readline(), 20))
    process.kill()
    await process.wait()
    await until(lambda: "orphan one" in (tmp_path / "events").read_text())
    await until(lambda: not _alive(child))


def test_backoff_grows_is_bounded_and_forgets() -> None:
    delays = []
    failures = 0
    for _ in range(12):
        decision = restart_policy.decide(failures, ready_at=None, now=100.0)
        failures = decision.failures
        delays.append(decision.delay)
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays == sorted(delays)
    assert delays[-1] == restart_policy.MAX_RESTART_DELAY
    healthy = restart_policy.decide(failures, ready_at=100.0, now=100.0 + restart_policy.HEALTHY_AGE)
    assert healthy == restart_policy.Restart(1, restart_policy.FIRST_RESTART_DELAY)
    assert restart_policy.decide(failures, ready_at=100.0, now=101.0).failures == 13
    assert restart_policy.decide(10**6, ready_at=None, now=0.0).delay == restart_policy.MAX_RESTART_DELAY

"""Supervisor of the components of a mesh on one machine: starts them in order, stops them in reverse order.

Signals are queued, and the event loop acts on them. Each component has a ``Child`` of its own, so a component that
hangs delays no other one. The supervisor knows nothing of gRPC, contracts or configuration. To it, a component is a
command line and a listening socket.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from mesh.contract import graph
from mesh.control.supervise.child import Child, ComponentSpec, StartError
from mesh.control.supervise.log_output import LogOutput
from mesh.control.supervise.restart_policy import MAX_RESTART_DELAY

__all__ = ["START_TIMEOUT", "Supervisor"]

START_TIMEOUT = 60.0
"""Seconds that the start of one component may take."""
PROGRESS_INTERVAL = 5.0
"""Seconds between two lines about a start that has not ended."""


class Supervisor:
    """Runs components.

    Args:
        components: In any order; their ``needs`` must have no cycle.
        output: Shows their lines and the supervisor's.
        environment: All environment variables that the components may get.
        start_timeout: Seconds that the start of one component may take.
        max_restart_delay: Seconds that a restart is delayed at most.
        liveness_timeout: Seconds without a response to liveness probes after which one is restarted; None: never.

    Attributes:
        children: The components by name.
    """

    def __init__(
        self,
        components: Iterable[ComponentSpec],
        output: LogOutput,
        environment: Mapping[str, str],
        *,
        start_timeout: float = START_TIMEOUT,
        max_restart_delay: float = MAX_RESTART_DELAY,
        liveness_timeout: float | None = None,
    ) -> None:
        components = list(components)
        self.children = {
            component.name: Child(component, output, environment, start_timeout, max_restart_delay, liveness_timeout)
            for component in components
        }
        self._start_order = graph.order({component.name: component.needs for component in components})
        self._output = output

    async def run(
        self,
        on_ready: Callable[[Mapping[str, Child]], None],
        background: Callable[[Mapping[str, Child]], Coroutine[Any, Any, None]] | None = None,
    ) -> int:
        """Start all components, keep them running until SIGTERM, SIGINT or SIGHUP, and stop them.

        Args:
            on_ready: Called once, when all components are ready.
            background: Runs from then on, until the shutdown begins.

        Returns:
            The exit code: 0, or 1 when a component could not start.
        """
        loop = asyncio.get_running_loop()
        signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        stops = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup: the mesh outlives its terminal
            stops.append(signal.SIGHUP)
        for number in stops:
            loop.add_signal_handler(number, signals.put_nowait, number)
        try:
            code = await self._run(on_ready, background, signals)
        finally:
            await self._stop(signals)
            for number in stops:
                loop.remove_signal_handler(number)
        if code == 0:
            self._output.supervisor_line("stopped")
        return code

    async def _run(
        self,
        on_ready: Callable[[Mapping[str, Child]], None],
        background: Callable[[Mapping[str, Child]], Coroutine[Any, Any, None]] | None,
        signals: asyncio.Queue[signal.Signals],
    ) -> int:
        starting = asyncio.create_task(self._start())
        first_signal = asyncio.create_task(signals.get())
        await asyncio.wait([starting, first_signal], return_when=asyncio.FIRST_COMPLETED)
        failures: list[str] = []
        if starting.done():
            failures = starting.result()
            if not failures:
                on_ready(self.children)
                running = None if background is None else asyncio.create_task(background(self.children))
                await first_signal
                if running is not None:
                    running.cancel()
                    await asyncio.wait([running])
        else:
            starting.cancel()
            await asyncio.wait([starting])
        if failures:
            first_signal.cancel()
            for failure in failures:
                self._output.supervisor_line(failure)
            self._output.supervisor_line("the mesh did not start")
        else:
            self._output.supervisor_line(f"{first_signal.result().name}: stopping; a second signal kills")
        return 1 if failures else 0

    async def _start(self) -> list[str]:
        """Start every component; return the reasons of those that cannot start.

        All processes start at the same time. Each gets the start signal once its dependencies are ready.
        """
        started = {name: asyncio.Event() for name in self.children}

        async def one(child: Child) -> None:
            await child.start([started[need] for need in child.component.needs])
            started[child.component.name].set()

        progress = asyncio.create_task(self._progress(started))
        failures: list[str] = []
        try:
            async with asyncio.TaskGroup() as group:
                for child in self.children.values():
                    group.create_task(one(child))
        except* StartError as errors:
            failures = [str(error) for error in errors.exceptions]
        finally:
            progress.cancel()
        return failures

    async def _progress(self, started: Mapping[str, asyncio.Event]) -> None:
        waited = 0.0
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL)
            waited += PROGRESS_INTERVAL
            missing = ", ".join(name for name, event in started.items() if not event.is_set())
            self._output.supervisor_line(f"still starting after {waited:g} s: {missing}")

    async def _stop(self, signals: asyncio.Queue[signal.Signals]) -> None:
        """Stop in reverse order; a second signal kills the rest."""
        stopping = asyncio.create_task(self._drain())
        second_signal = asyncio.create_task(signals.get())
        await asyncio.wait([stopping, second_signal], return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            self._output.supervisor_line("killing what is left")
            for child in self.children.values():
                child.kill()
        second_signal.cancel()
        await stopping

    async def _drain(self) -> None:
        for names in reversed(self._start_order):
            await asyncio.gather(*(self.children[name].stop() for name in names))

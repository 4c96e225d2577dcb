"""Runs the components of a mesh on this machine: in order, until told to stop, and down again in reverse.

Signals only queue; the loop acts on them. Each component has a keeper of its own, so one that hangs stalls nobody. It
knows nothing of gRPC, contracts or configuration: a component is a command line and a listening socket.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from mesh.contract import graph
from mesh.control.supervise.child import Component, Keeper, StartError
from mesh.control.supervise.log_output import Console
from mesh.control.supervise.restart_policy import LONGEST

__all__ = ["PATIENCE", "Supervisor"]

PATIENCE = 60.0
"""Seconds that the start of one component may take."""
PROGRESS = 5.0
"""Seconds after which, again and again, a start says what it is waiting for."""


class Supervisor:
    """Runs components.

    Args:
        components: In any order; their ``needs`` must not run in a circle.
        console: Where their lines and the supervisor's go.
        environment: All of their environment.
        patience: Seconds that the start of one may take.
        longest: Seconds that what died waits at most for its next start.
    """

    def __init__(
        self,
        components: Iterable[Component],
        console: Console,
        environment: Mapping[str, str],
        *,
        patience: float = PATIENCE,
        longest: float = LONGEST,
    ) -> None:
        components = list(components)
        self.keepers = {
            component.name: Keeper(component, console, environment, patience, longest) for component in components
        }
        self._layers = graph.order({component.name: component.needs for component in components})
        self._console = console

    async def run(
        self,
        ready: Callable[[Mapping[str, Keeper]], None],
        beside: Callable[[Mapping[str, Keeper]], Coroutine[Any, Any, None]] | None = None,
    ) -> int:
        """Start everything, keep it running until SIGTERM, SIGINT or SIGHUP, stop everything.

        Args:
            ready: Called once, when all components are ready.
            beside: Runs from then on, until the stop begins.

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
            code = await self._run(ready, beside, signals)
        finally:
            await self._stop(signals)
            for number in stops:
                loop.remove_signal_handler(number)
        if code == 0:
            self._console.say("stopped")
        return code

    async def _run(
        self,
        ready: Callable[[Mapping[str, Keeper]], None],
        beside: Callable[[Mapping[str, Keeper]], Coroutine[Any, Any, None]] | None,
        signals: asyncio.Queue[signal.Signals],
    ) -> int:
        starting = asyncio.create_task(self._start())
        told = asyncio.create_task(signals.get())
        await asyncio.wait([starting, told], return_when=asyncio.FIRST_COMPLETED)
        failures: list[str] = []
        if starting.done():
            failures = starting.result()
            if not failures:
                ready(self.keepers)
                running = None if beside is None else asyncio.create_task(beside(self.keepers))
                await told
                if running is not None:
                    running.cancel()
                    await asyncio.wait([running])
        else:
            starting.cancel()
            await asyncio.wait([starting])
        if failures:
            told.cancel()
            for failure in failures:
                self._console.say(failure)
            self._console.say("the mesh did not start")
        else:
            self._console.say(f"{told.result().name}: stopping; a second one kills")
        return 1 if failures else 0

    async def _start(self) -> list[str]:
        """Start every component, each to go once what it needs is ready; return why it cannot be, or nothing."""
        started = {name: asyncio.Event() for name in self.keepers}

        async def one(keeper: Keeper) -> None:
            await keeper.start([started[need] for need in keeper.component.needs])
            started[keeper.component.name].set()

        progress = asyncio.create_task(self._progress(started))
        failures: list[str] = []
        try:
            async with asyncio.TaskGroup() as group:
                for keeper in self.keepers.values():
                    group.create_task(one(keeper))
        except* StartError as errors:
            failures = [str(error) for error in errors.exceptions]
        finally:
            progress.cancel()
        return failures

    async def _progress(self, started: Mapping[str, asyncio.Event]) -> None:
        waited = 0.0
        while True:
            await asyncio.sleep(PROGRESS)
            waited += PROGRESS
            missing = ", ".join(name for name, event in started.items() if not event.is_set())
            self._console.say(f"still starting after {waited:g} s: {missing}")

    async def _stop(self, signals: asyncio.Queue[signal.Signals]) -> None:
        """Stop in reverse order; a second signal kills what is left."""
        stopping = asyncio.create_task(self._drain())
        again = asyncio.create_task(signals.get())
        await asyncio.wait([stopping, again], return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            self._console.say("killing what is left")
            for keeper in self.keepers.values():
                keeper.kill()
        again.cancel()
        await stopping

    async def _drain(self) -> None:
        for layer in reversed(self._layers):
            await asyncio.gather(*(self.keepers[name].stop() for name in layer))

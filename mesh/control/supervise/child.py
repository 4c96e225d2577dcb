"""Child component: starts, restarts, replaces and stops the process of one component.

It waits for no other component, except that the start signal waits for the dependencies.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.control.readiness import STOP_MARGIN_SECONDS, Failed, Ready
from mesh.control.supervise import restart_policy
from mesh.control.supervise.child_process import ChildProcess, exit_text
from mesh.control.supervise.log_output import LogOutput
from mesh.liveness import ABORT_TIMEOUT, SilenceTimer, traced

__all__ = ["Child", "ComponentSpec", "StartError"]


class StartError(Exception):
    """A component cannot start; the text names it and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentSpec:
    """Specification of a component: command, socket, dependencies.

    Attributes:
        name: Its name in mesh.toml, or ``edge``, or ``broker``.
        command: Program and arguments; ``--fd N`` is added, where N is the descriptor of the listening socket.
        restart_arguments: Added to the command of every process after the first one that was ready.
        listener: The socket that it serves, or None for a program that listens by itself.
        probe: For a program without the readiness protocol: waits until it accepts, and returns its address.
        format_line: Returns the line to show for a line of its output, or None for a line that is not shown.
        needs_restart: Whether a line of its output says that only a restart helps.
        needs: The components that must be ready before it gets the start signal.
        drain: Seconds that it may take to finish calls in progress when it stops.
        environment: Selects the variables that it gets from those of the supervisor.
        reloads: Whether SIGHUP makes it run new code; else a new process is needed.
    """

    name: str
    command: tuple[str, ...]
    listener: socket.socket | None
    restart_arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    drain: float = 10.0
    reloads: bool = False
    probe: Callable[[], Awaitable[str]] | None = None
    format_line: Callable[[str], str | None] = str
    needs_restart: Callable[[str], bool] = lambda _: False
    environment: Callable[[Mapping[str, str]], Mapping[str, str]] = dict


class Child:
    """One supervised component, across its processes.

    Args:
        component: The specification.
        output: Shows the lines of its processes and of the supervisor.
        environment: All environment variables that its processes may get.
        start_timeout: Seconds that a start may take.
        max_restart_delay: Seconds that a restart is delayed at most.
        liveness_timeout: Seconds without a response to liveness probes after which it is restarted; None: never.

    Attributes:
        component: The specification; a reload may replace it.
        address: ``host:port`` where it accepts, once it is ready.
    """

    def __init__(
        self,
        component: ComponentSpec,
        output: LogOutput,
        environment: Mapping[str, str],
        start_timeout: float,
        max_restart_delay: float = restart_policy.MAX_RESTART_DELAY,
        liveness_timeout: float | None = None,
    ) -> None:
        self.component = component
        self.address: str | None = None
        self._output = output
        self._environment = environment
        self._start_timeout = start_timeout
        self._max_restart_delay = max_restart_delay
        self._liveness_timeout = liveness_timeout
        self._process: ChildProcess | None = None
        self._restart_arguments: tuple[str, ...] = ()
        self._ready_at: float | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._draining: dict[ChildProcess, asyncio.Task[None]] = {}

    @property
    def pid(self) -> int | None:
        """Process id of the process that runs now, or None between two processes."""
        return self._process.pid if self._process and not self._process.ended.done() else None

    async def start(self, needed: Sequence[asyncio.Event]) -> None:
        """Start the component and wait until it is ready; from then on it is restarted whenever it dies.

        Args:
            needed: One event for each dependency, set when it is ready. The start signal waits for all of them.

        Raises:
            StartError: It cannot start. Nothing is retried here, because the reason is a fault that stays.
        """
        reason = await self._launch(needed)
        if reason is not None:
            await self._kill_process()
            raise StartError("\n".join(f"{self.component.name}: {line}" for line in reason.splitlines()))
        self._restart_arguments = self.component.restart_arguments
        self._restarting = asyncio.get_running_loop().create_task(self._restart_for_ever())

    def reload(self) -> None:
        """Make the process run the current code. A process that is not ready yet loads the current code anyway."""
        if self._process is not None and self._ready_at is not None:
            self._process.reload()

    async def replace(self) -> str | None:
        """Start a new process beside the current one, on the same socket; once it is ready, the old one drains.

        Returns:
            None, or the reason why the new process did not start. The old process then continues unchanged.
        """
        await self._cancel_restarts()
        if self._ready_at is None:  # between two attempts to restart it
            await self._kill_process()
        old, ready_at = self._process, self._ready_at
        reason: str | None = "was interrupted"
        try:
            reason = await self._launch()
        finally:
            if reason is not None:
                if self._process is not old:
                    await self._kill_process()
                self._process, self._ready_at = old, ready_at
        loop = asyncio.get_running_loop()
        if reason is None and old is not None:
            draining = self._draining[old] = loop.create_task(self._drain(old))
            draining.add_done_callback(lambda _: self._draining.pop(old))
        self._restarting = loop.create_task(self._restart_for_ever())
        return reason

    async def stop(self) -> None:
        """Stop the component: close the socket, SIGTERM, and SIGKILL after the drain time and a margin."""
        await self._cancel_restarts()
        if self.component.listener is not None:
            self.component.listener.close()
        await asyncio.gather(self._drain(self._process), *self._draining.values())

    async def _cancel_restarts(self) -> None:
        if self._restarting is not None:
            self._restarting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restarting

    async def _drain(self, process: ChildProcess | None) -> None:
        """Make a process finish its calls in progress and end."""
        if process is None or process.ended.done():
            return
        process.terminate()
        done, _ = await asyncio.wait([process.ended], timeout=self.component.drain + STOP_MARGIN_SECONDS)
        if not done:
            limit = self.component.drain + STOP_MARGIN_SECONDS
            self._output.supervisor_line(f"{self.component.name} did not stop within {limit:g} s: killed")
        elif process.ended.result() != 0 and self._ready_at is not None:  # one that still loads handles no SIGTERM
            self._output.supervisor_line(f"{self.component.name} stopped with {exit_text(process.ended.result())}")
        process.kill()
        await asyncio.shield(process.ended)

    def kill(self) -> None:
        """Kill all processes of the component; it is not restarted."""
        if self._restarting is not None:
            self._restarting.cancel()
        for process in (self._process, *self._draining):
            if process is not None:
                process.kill()

    async def _kill_process(self) -> None:
        if self._process is not None:
            self._process.kill()
            await asyncio.shield(self._process.ended)

    async def _launch(self, needed: Sequence[asyncio.Event] = ()) -> str | None:
        """Start a process; return None once it is ready, or the reason why it did not become ready."""
        self._ready_at = None
        component = self.component

        inherit = [] if component.listener is None else [component.listener.fileno()]
        command = component.command + self._restart_arguments
        command += tuple(word for fd in inherit for word in ("--fd", str(fd)))
        try:
            process = await ChildProcess.start(
                command, component.environment(self._environment), inherit, self._on_line
            )
        except OSError as error:
            return f"{self.component.command[0]} cannot be started: {error.strerror}"
        self._process = process
        if component.probe is not None:
            process.probe(component.probe())
        first: list[asyncio.Future[Any]] = [process.report, process.ended]
        for event in needed:  # the process loads meanwhile; a fault that it reports ends the start at once
            waiting = asyncio.ensure_future(event.wait())
            try:
                await asyncio.wait([*first, waiting], return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
        process.send_start_signal()
        await asyncio.wait(first, timeout=self._start_timeout, return_when=asyncio.FIRST_COMPLETED)
        if not process.report.done():
            if process.ended.done():
                return f"ended with {exit_text(process.ended.result())} before it was ready"
            return f"was not ready within {self._start_timeout:g} s"
        match process.report.result():
            case Ready(address):
                self.address = address
                self._ready_at = asyncio.get_running_loop().time()
                return None
            case Failed(reason):
                return reason

    def _on_line(self, text: str) -> None:
        """Show a line of the process, and end the process if the line says that only a restart helps."""
        shown = self.component.format_line(text)
        if shown is not None:
            self._output.component_line(self.component.name, shown)
        if self.component.needs_restart(text) and self._process is not None:
            self._process.terminate()

    async def _restart_for_ever(self) -> None:
        """Start the component again each time it has died."""
        name, failures = self.component.name, 0
        reason: str | None = None
        while True:
            if reason is None:
                assert self._process is not None  # noqa: S101 - a launch that gave no reason left a process
                reason = await self._end_reason(self._process)
            else:
                await self._kill_process()
            now = asyncio.get_running_loop().time()
            restart = restart_policy.decide(
                failures, ready_at=self._ready_at, now=now, max_delay=self._max_restart_delay
            )
            failures = restart.failures
            in_a_row = f" ({failures} failures in a row)" if failures > 1 else ""
            self._output.supervisor_line(f"{name} {reason}; it starts again in {restart.delay:.1f} s{in_a_row}")
            await asyncio.sleep(restart.delay)
            reason = await self._launch()
            if reason is None:
                self._output.supervisor_line(f"{name} is ready again, pid {self.pid}")

    async def _end_reason(self, process: ChildProcess) -> str:
        """Wait until a process has died, or end it because it hangs; return the reason of its end."""
        if self._liveness_timeout is None:
            return f"died with {exit_text(await asyncio.shield(process.ended))}"
        loop = asyncio.get_running_loop()
        silence = SilenceTimer(self._liveness_timeout, loop.time())
        name, hangs = self.component.name, False
        while not process.ended.done():
            hung_before, hangs = hangs, silence.check(loop.time(), answered=process.answered)
            if hangs and not (process.debugger or traced(process.pid)):
                timeout = f"{self._liveness_timeout:g} s"
                self._output.supervisor_line(f"{name} has not responded for {timeout}: it is aborted, with its stacks:")
                await process.abort(ABORT_TIMEOUT)
                return f"hung for {timeout} and was ended with {exit_text(process.ended.result())}"
            if hangs and not hung_before:
                self._output.supervisor_line(f"{name} does not respond; a debugger is attached, so it is left alone")
            process.send_liveness_probe(self.component.probe)
            await asyncio.wait([process.ended], timeout=silence.interval)
        return f"died with {exit_text(process.ended.result())}"

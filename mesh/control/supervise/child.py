"""Keeps one component running: starts it, starts it again when it dies, stops it. Never waits for another component."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.control.readiness import STOP_MARGIN, Failed, Ready
from mesh.control.supervise import restart_policy
from mesh.control.supervise.child_process import Process, how
from mesh.control.supervise.log_output import Console

__all__ = ["Component", "Keeper", "StartError"]


class StartError(Exception):
    """A component cannot start; the text says which one and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """What is to be run.

    Attributes:
        name: Its name in mesh.toml, or ``edge``.
        command: Program and arguments; ``--fd N`` is added, where N is the listening socket's descriptor.
        again: Arguments of every process after the first one that was ready.
        listener: The socket that it serves, or None for a program that listens by itself.
        probe: For a program that does not report: waits until it accepts, and returns its address.
        shown: Makes the line that is shown of a line that it wrote, or None.
        broken: Whether a line that it wrote says that only a new start helps.
        needs: The components that must be ready before it is told to go.
        drain: Seconds that it may take to finish what is in flight when it stops.
        reloads: Whether SIGHUP makes it run new code; else a new process has to.
    """

    name: str
    command: tuple[str, ...]
    listener: socket.socket | None
    again: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    drain: float = 10.0
    reloads: bool = False
    probe: Callable[[], Awaitable[str]] | None = None
    shown: Callable[[str], str | None] = str
    broken: Callable[[str], bool] = lambda _: False


class Keeper:
    """Runs one component.

    Args:
        component: What to run.
        console: Where its lines go.
        environment: All of its environment.
        patience: Seconds that a start may take.
        longest: Seconds that it waits at most before it starts again what died.

    Attributes:
        address: Where it accepts, once it is ready.
    """

    def __init__(
        self,
        component: Component,
        console: Console,
        environment: Mapping[str, str],
        patience: float,
        longest: float = restart_policy.LONGEST,
    ) -> None:
        self.component = component
        self.address: str | None = None
        self._console = console
        self._environment = environment
        self._patience = patience
        self._longest = longest
        self._process: Process | None = None
        self._again: tuple[str, ...] = ()
        self._ready_at: float | None = None
        self._watch: asyncio.Task[None] | None = None
        self._leaving: dict[Process, asyncio.Task[None]] = {}

    @property
    def pid(self) -> int | None:
        """The process that runs now, or None between two."""
        return self._process.pid if self._process and not self._process.ended.done() else None

    async def start(self, needed: Sequence[asyncio.Event]) -> None:
        """Start its process, let it go once all that it needs is ready, and wait until it is; then it is kept running.

        Args:
            needed: Set when what it needs is ready.

        Raises:
            StartError: It cannot start, and another try would not help.
        """
        reason = await self._launch(needed)
        if reason is not None:
            await self._end()
            raise StartError("\n".join(f"{self.component.name}: {line}" for line in reason.splitlines()))
        self._again = self.component.again
        self._watch = asyncio.get_running_loop().create_task(self._keep())

    def reload(self) -> None:
        """Have its process run the code as it is now; one that has not started yet will run it anyway."""
        if self._process is not None and self._ready_at is not None:
            self._process.reload()

    async def replace(self) -> str | None:
        """Start a new process beside the one that runs, on the same socket; once it is ready, the old one drains.

        Returns:
            None, or why the new one did not start; then the old one goes on as if nothing had been.
        """
        await self._unwatch()
        if self._ready_at is None:  # between two tries to start it again
            await self._end()
        old, ready_at = self._process, self._ready_at
        reason: str | None = "was interrupted"
        try:
            reason = await self._launch()
        finally:
            if reason is not None:
                if self._process is not old:
                    await self._end()
                self._process, self._ready_at = old, ready_at
        loop = asyncio.get_running_loop()
        if reason is None and old is not None:
            leaving = self._leaving[old] = loop.create_task(self._leave(old))
            leaving.add_done_callback(lambda _: self._leaving.pop(old))
        self._watch = loop.create_task(self._keep())
        return reason

    async def stop(self) -> None:
        """Stop it: SIGTERM, its drain and a margin, SIGKILL. No connection is taken any more."""
        await self._unwatch()
        if self.component.listener is not None:
            self.component.listener.close()
        await asyncio.gather(self._leave(self._process), *self._leaving.values())

    async def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch

    async def _leave(self, process: Process | None) -> None:
        """Have a process finish what is in flight and end."""
        if process is None or process.ended.done():
            return
        process.terminate()
        done, _ = await asyncio.wait([process.ended], timeout=self.component.drain + STOP_MARGIN)
        if not done:
            limit = self.component.drain + STOP_MARGIN
            self._console.say(f"{self.component.name} did not stop within {limit:g} s: killed")
        elif process.ended.result() != 0 and self._ready_at is not None:  # one that still loads has no way of its own
            self._console.say(f"{self.component.name} stopped with {how(process.ended.result())}")
        process.kill()
        await asyncio.shield(process.ended)

    def kill(self) -> None:
        """End it at once, for good."""
        if self._watch is not None:
            self._watch.cancel()
        for process in (self._process, *self._leaving):
            if process is not None:
                process.kill()

    async def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            await asyncio.shield(self._process.ended)

    async def _launch(self, needed: Sequence[asyncio.Event] = ()) -> str | None:
        """Start a process; return None once it is ready, or the reason why it will not be."""
        self._ready_at = None
        component = self.component

        inherit = [] if component.listener is None else [component.listener.fileno()]
        command = component.command + self._again + tuple(word for fd in inherit for word in ("--fd", str(fd)))
        try:
            process = await Process.start(command, self._environment, inherit, self._line)
        except OSError as error:
            return f"{self.component.command[0]} cannot be started: {error.strerror}"
        self._process = process
        if component.probe is not None:
            process.probe(component.probe())
        first: list[asyncio.Future[Any]] = [process.report, process.ended]
        for event in needed:  # it loads meanwhile, and what it finds wrong ends the start at once
            waiting = asyncio.ensure_future(event.wait())
            try:
                await asyncio.wait([*first, waiting], return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
        process.go()
        await asyncio.wait(first, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
        if not process.report.done():
            if process.ended.done():
                return f"ended with {how(process.ended.result())} before it was ready"
            return f"was not ready within {self._patience:g} s"
        match process.report.result():
            case Ready(address):
                self.address = address
                self._ready_at = asyncio.get_running_loop().time()
                return None
            case Failed(reason):
                return reason

    def _line(self, text: str) -> None:
        """Take a line that the process wrote."""
        shown = self.component.shown(text)
        if shown is not None:
            self._console.line(self.component.name, shown)
        if self.component.broken(text) and self._process is not None:
            self._process.terminate()

    async def _keep(self) -> None:
        """Start it again, for ever, each time it has died."""
        name, failures = self.component.name, 0
        reason: str | None = None
        while True:
            if reason is None:
                assert self._process is not None  # noqa: S101 - a launch that gave no reason left a process
                reason = f"died with {how(await asyncio.shield(self._process.ended))}"
            else:
                await self._end()
            now = asyncio.get_running_loop().time()
            decision = restart_policy.decide(failures, ready_at=self._ready_at, now=now, longest=self._longest)
            failures = decision.failures
            tries = f" ({failures} failures in a row)" if failures > 1 else ""
            self._console.say(f"{name} {reason}; it starts again in {decision.delay:.1f} s{tries}")
            await asyncio.sleep(decision.delay)
            reason = await self._launch()
            if reason is None:
                self._console.say(f"{name} is ready again, pid {self.pid}")

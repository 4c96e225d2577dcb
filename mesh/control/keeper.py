"""Keeps one component running: starts it, starts it again when it dies, stops it. Never waits for another component."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.control import restart
from mesh.control.output import Console
from mesh.control.process import Process, how
from mesh.control.ready import Failed, Ready

__all__ = ["Component", "Keeper", "StartError"]

MARGIN = 4.0
"""Seconds beyond its drain that a component has for its stop, before it is killed."""


class StartError(Exception):
    """A component cannot start; the text says which one and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """What is to be run.

    Attributes:
        name: Its name in mesh.toml, or ``edge``.
        command: Program and arguments; ``--fd N`` is added, where N is the listening socket's descriptor.
        listener: The socket that it serves, or None for a program that listens by itself.
        probe: For a program that does not report: waits until it accepts, and returns its address.
        shown: Makes the line that is shown of a line that it wrote, or None.
        needs: The components that must be ready before it is told to go.
        drain: Seconds that it may take to finish what is in flight when it stops.
    """

    name: str
    command: tuple[str, ...]
    listener: socket.socket | None
    needs: tuple[str, ...] = ()
    drain: float = 10.0
    probe: Callable[[], Awaitable[str]] | None = None
    shown: Callable[[str], str | None] = str


class Keeper:
    """Runs one component.

    Args:
        component: What to run.
        console: Where its lines go.
        environment: All of its environment.
        patience: Seconds that a start may take.

    Attributes:
        address: Where it accepts, once it is ready.
    """

    def __init__(self, component: Component, console: Console, environment: Mapping[str, str], patience: float) -> None:
        self.component = component
        self.address: str | None = None
        self._console = console
        self._environment = environment
        self._patience = patience
        self._process: Process | None = None
        self._ready_at: float | None = None
        self._watch: asyncio.Task[None] | None = None

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
        self._watch = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """Stop it: SIGTERM, its drain and a margin, SIGKILL. No connection is taken any more."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        if self.component.listener is not None:
            self.component.listener.close()
        process = self._process
        if process is None or process.ended.done():
            return
        process.terminate()
        done, _ = await asyncio.wait([process.ended], timeout=self.component.drain + MARGIN)
        if not done:
            self._console.say(f"{self.component.name} did not stop within {self.component.drain + MARGIN:g} s: killed")
        elif process.ended.result() != 0 and self._ready_at is not None:  # one that still loads has no way of its own
            self._console.say(f"{self.component.name} stopped with {how(process.ended.result())}")
        await self._end()

    def kill(self) -> None:
        """End it at once, for good."""
        if self._watch is not None:
            self._watch.cancel()
        if self._process is not None:
            self._process.kill()

    async def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            await asyncio.shield(self._process.ended)

    async def _launch(self, needed: Sequence[asyncio.Event] = ()) -> str | None:
        """Start a process; return None once it is ready, or the reason why it will not be."""
        self._ready_at = None
        component = self.component

        def line(text: str) -> None:
            shown = component.shown(text)
            if shown is not None:
                self._console.line(component.name, shown)

        inherit = [] if component.listener is None else [component.listener.fileno()]
        command = component.command + tuple(word for fd in inherit for word in ("--fd", str(fd)))
        try:
            process = await Process.start(command, self._environment, inherit, line)
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
            decision = restart.decide(failures, ready_at=self._ready_at, now=now)
            failures = decision.failures
            tries = f" ({failures} failures in a row)" if failures > 1 else ""
            self._console.say(f"{name} {reason}; it starts again in {decision.delay:.1f} s{tries}")
            await asyncio.sleep(decision.delay)
            reason = await self._launch()
            if reason is None:
                self._console.say(f"{name} is ready again, pid {self.pid}")

"""The sidecar's side of the fork server: starts it, asks it for workers, hears how they ended, starts it again.

It knows processes and nothing of calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable

import msgspec

from mesh.sidecar.workers import process_tag
from mesh.sidecar.workers.call_headers import decoder
from mesh.sidecar.workers.fork_setup import Setup
from mesh.sidecar.workers.frames import Reader
from mesh.sidecar.workers.spawner_messages import COMMAND, LENGTH, Command, Ended, Preloaded, Report
from mesh.sidecar.workers.watermark import Begun, shared_file

__all__ = ["Born", "Nursery"]

log = logging.getLogger("mesh.workers")

PATIENCE = 60.0
"""Seconds that the fork server may take for its imports."""
_preloaded, _pid, _ended = decoder(Preloaded), decoder(int), decoder(Ended)


class Born:
    """A worker process, from the request for it on.

    Attributes:
        number: Its number.
        sock: The sidecar's end of its socket pair.
        begun: How far it has come.
        pid: Done when it was forked.
        ended: Done when it has ended.
    """

    __slots__ = ("begun", "ended", "number", "pid", "sock")

    def __init__(self, number: int, sock: socket.socket, begun: Begun) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.sock = sock
        self.begun = begun
        self.pid: asyncio.Future[int] = loop.create_future()
        self.ended: asyncio.Future[Ended] = loop.create_future()


class Nursery:
    """The fork server, kept running.

    Args:
        setup: What workers host.

    Attributes:
        name: The name of the service.
        on_lost: Called when it has ended, and nobody told it to.
    """

    def __init__(self, setup: Setup) -> None:
        self.name = setup.name
        self.on_lost: Callable[[], None] | None = None
        self._setup = setup
        self._left_out: set[str] = set()
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._reader = Reader()
        self._born: dict[int, Born] = {}
        self._count = 0
        self._preloaded: asyncio.Future[Preloaded] | None = None
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The pid of the fork server, or None while there is none."""
        return None if self._process is None else self._process.pid

    async def ready(self) -> None:
        """Return when the fork server runs and has preloaded; starts it if need be.

        Raises:
            OSError: It cannot be started.
        """
        async with self._lock:
            while self._control is None:
                await self._start()

    async def prepare(self) -> None:
        """Start it now if it can be; if it cannot, whoever needs a worker says so."""
        with contextlib.suppress(OSError):
            await self.ready()

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        preload = tuple(name for name in self._setup.preload if name not in self._left_out)
        setup = msgspec.structs.replace(self._setup, preload=preload)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "mesh.sidecar.workers.forkserver",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, process_tag.NAME: process_tag.BLANK},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        loop = asyncio.get_running_loop()
        body = pickle.dumps(setup)  # settings hold whatever TOML has, dates too
        ours.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        self._process = process
        self._reader = Reader()
        self._preloaded = loop.create_future()
        loop.add_reader(ours, self._listen, ours)
        try:
            async with asyncio.timeout(PATIENCE):
                await loop.sock_sendall(ours, LENGTH.pack(len(body)) + body)
                found = await self._preloaded
        except BaseException as error:
            self._lose(ours)
            process.kill()
            await process.wait()
            if isinstance(error, (ConnectionError, TimeoutError)):
                raise OSError(f"the fork server did not start: exit code {process.returncode}") from None
            raise
        for name, why in found.failed.items():
            log.warning("%s could not be preloaded for the workers: %s", name, why)
        if found.threaded:
            log.warning(
                "%s starts threads when it is imported, so workers import it themselves, which takes each %.0f ms",
                found.threaded, found.seconds[found.threaded] * 1000,
            )  # fmt: skip
            self._left_out.add(found.threaded)
            self._lose(ours)
            await process.wait()
            return
        self._control = ours

    async def fork(self) -> Born:
        """Have a worker forked; the fork server must be ready.

        Raises:
            ConnectionError: It has gone.
            OSError: It cannot fork now, and says why.
        """
        if self._control is None:
            raise ConnectionError("there is no fork server")
        ours, theirs = socket.socketpair()
        memory = shared_file()
        self._count += 1
        try:
            socket.send_fds(self._control, [COMMAND.pack(Command.FORK, self._count)], [theirs.fileno(), memory])
            born = Born(self._count, ours, Begun(memory))
        except OSError as error:
            ours.close()
            raise ConnectionError("the fork server takes no commands") from error
        finally:
            theirs.close()
            os.close(memory)
        self._born[born.number] = born
        try:
            await asyncio.wait([born.pid])
        except asyncio.CancelledError:
            self.kill(born)
            ours.close()
            raise
        if born.pid.cancelled():
            ours.close()
            how = born.ended.result()
            raise OSError(str(how) if how.unborn else "the fork server ended before it had forked one")
        return born

    def kill(self, born: Born) -> None:
        """End a worker at once (SIGKILL)."""
        if self._control is not None and not born.ended.done():
            try:
                self._control.send(COMMAND.pack(Command.KILL, born.number))
            except OSError:
                log.warning("the fork server takes no commands; it is ended")
                self._lose(self._control)

    async def stop(self) -> None:
        """End the fork server, and every worker with it."""
        self.on_lost = None
        if self._control is not None:
            self._lose(self._control)
        if self._process is not None:
            await self._process.wait()

    def _listen(self, control: socket.socket) -> None:
        try:
            data = control.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose(control)
            return
        for kind, number, body in self._reader.feed(data):
            if kind == Report.PRELOADED and self._preloaded is not None:
                self._preloaded.set_result(_preloaded(body))
            elif kind == Report.FORKED:
                born = self._born.get(number)
                if born is not None:
                    born.pid.set_result(_pid(body))
            elif kind == Report.ENDED:
                born = self._born.pop(number, None)
                if born is not None:
                    _end(born, _ended(body))

    def _lose(self, control: socket.socket) -> None:
        """The fork server is gone, or is to go; so are its workers."""
        if control.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(control)
            control.close()
        ran = self._control is control
        if ran:
            self._control = None
        if self._preloaded is not None and not self._preloaded.done():
            self._preloaded.set_exception(ConnectionResetError("the fork server ended"))
        for born in self._born.values():
            _end(born, Ended(-signal.SIGKILL))
        self._born.clear()
        if ran and self.on_lost is not None:
            self.on_lost()


def _end(born: Born, how: Ended) -> None:
    if not born.pid.done():
        born.pid.cancel()
    if not born.ended.done():
        born.ended.set_result(how)

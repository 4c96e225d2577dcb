"""Client of the fork server: starts and restarts it, requests workers from it, receives reports of their ends.

It knows processes, and no calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable

import msgspec

from mesh.liveness import SilenceTimer, probe_interval, traced
from mesh.secret import Secret
from mesh.sidecar.workers import process_tag
from mesh.sidecar.workers.frame_payloads import decoder
from mesh.sidecar.workers.frames import FrameReader
from mesh.sidecar.workers.spawner_messages import (
    COMMAND,
    LENGTH,
    ForkServerCommand,
    ForkServerReport,
    PreloadResult,
    ProcessEnd,
)  # fmt: skip
from mesh.sidecar.workers.watermark import Watermark, shared_file
from mesh.sidecar.workers.worker_setup import WorkerSetup

__all__ = ["SpawnedProcess", "Spawner"]

log = logging.getLogger("mesh.workers")

PRELOAD_TIMEOUT = 60.0
"""Seconds that the fork server may take for its imports."""
_LIVENESS_CHECK_INTERVAL = 1.0
"""Seconds between two calls of ``check_liveness`` at most."""
_preloaded, _pid, _ended = decoder(PreloadResult), decoder(int), decoder(ProcessEnd)


class SpawnedProcess:
    """A worker process, from the request for it on.

    Attributes:
        number: Its number, unique per spawner.
        sock: The sidecar's end of its socket pair.
        watermark: Its watermark.
        pid: Done when it was forked; cancelled if it was not.
        ended: Done when it has ended, also if it was never forked.
    """

    __slots__ = ("ended", "number", "pid", "sock", "watermark")

    def __init__(self, number: int, sock: socket.socket, watermark: Watermark) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.sock = sock
        self.watermark = watermark
        self.pid: asyncio.Future[int] = loop.create_future()
        self.ended: asyncio.Future[ProcessEnd] = loop.create_future()


class Spawner:
    """Keeps the fork server of one service running.

    Args:
        setup: The service, as workers host it.

    Attributes:
        name: The name of the service.
        on_lost: Called when the fork server has ended by itself.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self.name = setup.name
        self.on_lost: Callable[[], None] | None = None
        self._setup = setup
        self._excluded: set[str] = set()
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._reader = FrameReader()
        self._processes: dict[int, SpawnedProcess] = {}
        self._count = 0
        self._preloaded: asyncio.Future[PreloadResult] | None = None
        self._lock = asyncio.Lock()
        self._probed_at = 0.0
        self._alive = True  # the fork server has responded to the last liveness probe
        self._silence: SilenceTimer | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the fork server, or None before its first start."""
        return None if self._process is None else self._process.pid

    async def ensure_running(self) -> None:
        """Return when the fork server runs and has preloaded; start it if it does not run.

        Raises:
            OSError: It cannot be started.
        """
        async with self._lock:
            while self._control is None:
                await self._start()

    async def prepare(self) -> None:
        """Start the fork server now if possible; a failure is reported by the next worker's start."""
        with contextlib.suppress(OSError):
            await self.ensure_running()

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        preload = tuple(name for name in self._setup.preload if name not in self._excluded)
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
                env={**os.environ, process_tag.VARIABLE: process_tag.FORK_SERVER_TAG},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        loop = asyncio.get_running_loop()
        body = _pickled(setup)
        ours.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        self._process = process
        self._reader = FrameReader()
        self._alive, self._silence = True, None
        self._preloaded = loop.create_future()
        loop.add_reader(ours, self._listen, ours)
        try:
            async with asyncio.timeout(PRELOAD_TIMEOUT):
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
                "%s starts threads when it is imported, so each worker imports it itself, which takes %.0f ms",
                found.threaded, found.seconds * 1000,
            )  # fmt: skip
            self._excluded.add(found.threaded)
            self._lose(ours)
            await process.wait()
            return
        self._control = ours

    async def fork(self) -> SpawnedProcess:
        """Fork a worker; the fork server must be running.

        Raises:
            ConnectionError: The fork server is gone.
            OSError: It cannot fork now; the message gives the reason.
        """
        if self._control is None:
            raise ConnectionError("there is no fork server")
        ours, theirs = socket.socketpair()
        memory = shared_file()
        self._count += 1
        try:
            socket.send_fds(
                self._control, [COMMAND.pack(ForkServerCommand.FORK, self._count)], [theirs.fileno(), memory]
            )
            process = SpawnedProcess(self._count, ours, Watermark(memory))
        except OSError as error:
            ours.close()
            raise ConnectionError("the fork server takes no commands") from error
        finally:
            theirs.close()
            os.close(memory)
        self._processes[process.number] = process
        try:
            await asyncio.wait([process.pid])
        except asyncio.CancelledError:
            self.kill(process)
            ours.close()
            raise
        if process.pid.cancelled():
            ours.close()
            end = process.ended.result()
            raise OSError(str(end) if end.fork_error else "the fork server ended before it had forked the worker")
        return process

    def kill(self, process: SpawnedProcess) -> None:
        """Kill a worker (SIGKILL)."""
        if self._control is not None and not process.ended.done():
            try:
                self._control.send(COMMAND.pack(ForkServerCommand.KILL, process.number))
            except OSError:
                log.warning("the fork server takes no commands; it is killed, and its workers with it")
                self._lose(self._control)

    def check_liveness(self, now: float, timeout: float) -> None:
        """Kill a fork server that has not responded for a time, and its workers with it; called periodically.

        Args:
            now: The time, seconds.
            timeout: Seconds without a response after which it hangs.
        """
        if self._control is None or self._process is None:
            return
        if self._silence is None:
            self._silence = SilenceTimer(timeout, now, _LIVENESS_CHECK_INTERVAL)
        if self._silence.check(now, answered=self._alive) and not traced(self._process.pid):
            log.warning("the fork server has not responded for %g s; it is killed, and its workers with it", timeout)
            self._process.kill()
            self._lose(self._control)
        elif self._alive and now - self._probed_at >= probe_interval(timeout):
            self._alive, self._probed_at = False, now
            with contextlib.suppress(OSError):  # it takes no commands
                self._control.send(COMMAND.pack(ForkServerCommand.PROBE, 0))

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
            if kind == ForkServerReport.PRELOADED and self._preloaded is not None:
                self._preloaded.set_result(_preloaded(body))
            elif kind == ForkServerReport.PROBE_RESPONSE:
                self._alive = True
            else:
                self._on_process_report(kind, number, body)

    def _on_process_report(self, kind: int, number: int, body: bytes) -> None:
        """Pass on that a worker was forked, or has ended."""
        if kind == ForkServerReport.FORKED:
            process = self._processes.get(number)
            if process is not None:
                process.pid.set_result(_pid(body))
        elif kind == ForkServerReport.ENDED:
            process = self._processes.pop(number, None)
            if process is not None:
                _resolve_end(process, _ended(body))

    def _lose(self, control: socket.socket) -> None:
        """Give up the fork server and its workers: it has ended, or has to end."""
        if control.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(control)
            control.close()
        ran = self._control is control
        if ran:
            self._control = None
        if self._preloaded is not None and not self._preloaded.done():
            self._preloaded.set_exception(ConnectionResetError("the fork server ended"))
        for process in self._processes.values():
            _resolve_end(process, ProcessEnd(-signal.SIGKILL))
        self._processes.clear()
        if ran and self.on_lost is not None:
            self.on_lost()


def _pickled(setup: WorkerSetup) -> bytes:
    """Return the setup as bytes. Settings may hold any TOML value, such as dates, and secrets, which workers need."""
    body = io.BytesIO()
    pickler = pickle.Pickler(body)
    pickler.dispatch_table = {Secret: lambda secret: (Secret, (secret.reveal(),))}
    pickler.dump(setup)
    return body.getvalue()


def _resolve_end(process: SpawnedProcess, end: ProcessEnd) -> None:
    if not process.pid.done():
        process.pid.cancel()
    if not process.ended.done():
        process.ended.set_result(end)

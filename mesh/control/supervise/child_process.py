"""One child process: its output line by line, its report, its end. It decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence

from mesh.control.readiness import GO, VARIABLE, Failed, Ready, parse

__all__ = ["Process", "how"]

_LONGEST_LINE = 256 * 1024
"""Bytes of output without a line end after which they are shown all the same."""
_LAST_WORDS = 1.0
"""Seconds that the output of a process that has ended is waited for; a grandchild can hold the pipe open for ever."""


class Process:
    """A running child process, as ``start`` makes it.

    It leads a process group of its own, so that Ctrl-C in a terminal reaches only ``mesh up``, and so that what it
    started ends with it.

    Attributes:
        pid: Its process id.
        report: Done when it has reported; never, when it ends without a word.
        ended: Done when it has ended; the result is the return code (negative: the signal).
    """

    def __init__(self, child: asyncio.subprocess.Process, link: socket.socket, output: int) -> None:
        loop = asyncio.get_running_loop()
        self.pid = child.pid
        self.report: asyncio.Future[Ready | Failed] = loop.create_future()
        self._child = child
        self._link = link
        self._heard = b""
        self._output = output
        self._said = loop.create_future()
        loop.add_reader(link, self._listen)
        self.ended: asyncio.Task[int] = loop.create_task(self._wait())

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        inherit: Sequence[int],
        line: Callable[[str], None],
    ) -> Process:
        """Start the command.

        Args:
            command: Program and arguments.
            environment: All of its environment; where to report is added.
            inherit: File descriptors that it keeps, by the same numbers.
            line: Called with each line of its output and errors.

        Raises:
            OSError: The program cannot be started.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        readable, writable = os.pipe()
        try:
            child = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writable,
                stderr=writable,
                pass_fds=(*inherit, theirs.fileno()),
                env={**environment, VARIABLE: str(theirs.fileno())},
                process_group=0,
            )
        except BaseException:
            ours.close()
            os.close(readable)
            raise
        finally:
            theirs.close()
            os.close(writable)
        self = cls(child, ours, readable)
        # A pipe of our own and not asyncio's: there, waiting for the process also waits for the end of its output.
        os.set_blocking(readable, False)
        asyncio.get_running_loop().add_reader(readable, self._read, line, bytearray())
        return self

    def go(self) -> None:
        """Tell it that all it needs is ready."""
        with contextlib.suppress(OSError):  # it has ended
            self._link.send(GO)

    def probe(self, ready: Awaitable[str]) -> None:
        """Let ``ready`` report in its place: what it returns is the address at which it accepts."""
        probing = asyncio.ensure_future(self._probe(ready))
        self.ended.add_done_callback(lambda _: probing.cancel())

    async def _probe(self, ready: Awaitable[str]) -> None:
        address = await ready
        if not self.report.done():
            self.report.set_result(Ready(address))

    def terminate(self) -> None:
        """Ask it to stop (SIGTERM)."""
        self._signal(signal.SIGTERM)

    def reload(self) -> None:
        """Ask it to run the code as it is now (SIGHUP)."""
        self._signal(signal.SIGHUP)

    def _signal(self, number: signal.Signals) -> None:
        # Not asyncio's send_signal: it polls the child, and one that has just ended is 255 for asyncio's own wait then.
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, and all that it started, at once (SIGKILL)."""
        if not self.ended.done():
            self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left (macOS says EPERM)
            os.killpg(self.pid, signal.SIGKILL)

    async def _wait(self) -> int:
        code = await self._child.wait()
        self._kill_group()  # what it left behind
        await asyncio.wait([self._said], timeout=_LAST_WORDS)
        self._close()
        return code

    def _close(self) -> None:
        loop = asyncio.get_running_loop()
        if self._link.fileno() >= 0:
            self._listen()  # a report that came with the end
            loop.remove_reader(self._link)
            self._link.close()
        if not self._said.done():
            self._finish_output()

    def _finish_output(self) -> None:
        asyncio.get_running_loop().remove_reader(self._output)
        os.close(self._output)
        self._said.set_result(None)

    def _listen(self) -> None:
        try:
            data = self._link.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._heard += data
        first, found, _ = self._heard.partition(b"\n")
        if found and not self.report.done():
            self.report.set_result(parse(first))
        if not data:
            asyncio.get_running_loop().remove_reader(self._link)

    def _read(self, line: Callable[[str], None], rest: bytearray) -> None:
        try:
            data = os.read(self._output, 65536)
        except BlockingIOError:
            return
        rest += data
        *whole, last = rest.split(b"\n")
        if not data or len(last) > _LONGEST_LINE:
            whole.append(last)
            last = bytearray()
        for text in whole:
            if text:
                line(text.decode("utf-8", "replace").rstrip("\r"))
        rest[:] = last
        if not data:
            self._finish_output()


def how(code: int) -> str:
    """Return in words how a process ended: ``exit code 3`` or ``signal SIGKILL``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"

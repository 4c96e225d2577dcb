"""One child process: its output line by line, its readiness report, liveness probes, its end. It decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence

from mesh.control.readiness import FD_VARIABLE, PROBE, START_SIGNAL, Alive, Failed, Ready, parse

__all__ = ["ChildProcess", "exit_text"]

_MAX_LINE_BYTES = 256 * 1024
"""Bytes of output without a line end after which they are shown as a line."""
_OUTPUT_TIMEOUT = 1.0
"""Seconds to wait for the rest of the output of a process that has ended; a grandchild can hold the pipe open."""


class ChildProcess:
    """A running child process; ``start`` makes it.

    It leads a process group of its own. Ctrl-C in a terminal then reaches ``mesh up`` only, and the processes that it
    started are killed when it ends.

    Attributes:
        pid: Its process id.
        report: Done when it has reported; never done when it ends without a report.
        ended: Done when it has ended; the result is the return code (negative: the signal).
        answered: Whether it has answered the last liveness probe.
        debugger: Whether a debugger was attached to it at its last response.
    """

    def __init__(self, child: asyncio.subprocess.Process, report_socket: socket.socket, output: int) -> None:
        loop = asyncio.get_running_loop()
        self.pid = child.pid
        self.report: asyncio.Future[Ready | Failed] = loop.create_future()
        self._child = child
        self._report_socket = report_socket
        self._received = b""
        self.answered = True
        self.debugger = False
        self._output = output
        self._output_closed = loop.create_future()
        loop.add_reader(report_socket, self._receive_report)
        self.ended: asyncio.Task[int] = loop.create_task(self._wait())

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        inherit: Sequence[int],
        on_line: Callable[[str], None],
    ) -> ChildProcess:
        """Start the command.

        Args:
            command: Program and arguments.
            environment: All its environment variables; the descriptor of its report socket is added.
            inherit: File descriptors that it inherits with the same numbers.
            on_line: Called with each line of its standard output and standard error.

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
                env={**environment, FD_VARIABLE: str(theirs.fileno())},
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
        # The pipe is our own because asyncio's wait for a process also waits for the end of its pipes.
        os.set_blocking(readable, False)
        asyncio.get_running_loop().add_reader(readable, self._read, on_line, bytearray())
        return self

    def send_start_signal(self) -> None:
        """Tell it that its dependencies are ready."""
        with contextlib.suppress(OSError):  # it has ended
            self._report_socket.send(START_SIGNAL)

    def probe(self, ready: Awaitable[str]) -> None:
        """Report in its place once ``ready`` returns the address at which it accepts."""
        probing = asyncio.ensure_future(self._probe(ready))
        self.ended.add_done_callback(lambda _: probing.cancel())

    async def _probe(self, ready: Awaitable[str]) -> None:
        address = await ready
        if not self.report.done():
            self.report.set_result(Ready(address))

    def send_liveness_probe(self, accepts: Callable[[], Awaitable[str]] | None) -> None:
        """Probe its liveness, unless the last probe is not answered yet.

        Args:
            accepts: For a program without the readiness protocol: waits until it accepts a connection.
        """
        if not self.answered:
            return
        self.answered = False
        if accepts is None:
            with contextlib.suppress(OSError):  # it has ended
                self._report_socket.send(PROBE)
        else:
            probing = asyncio.ensure_future(self._await_connection(accepts))
            self.ended.add_done_callback(lambda _: probing.cancel())

    async def _await_connection(self, accepts: Callable[[], Awaitable[str]]) -> None:
        await accepts()
        self.answered = True

    async def abort(self, kill_delay: float) -> None:
        """End it by SIGABRT, which writes its stacks to its output, and after ``kill_delay`` seconds by SIGKILL."""
        self._signal(signal.SIGABRT)
        self._signal(signal.SIGCONT)  # a stopped process handles no other signal
        await asyncio.wait([self.ended], timeout=kill_delay)
        self.kill()
        await asyncio.shield(self.ended)

    def terminate(self) -> None:
        """Ask it to stop (SIGTERM)."""
        self._signal(signal.SIGTERM)

    def reload(self) -> None:
        """Ask it to run the current code (SIGHUP)."""
        self._signal(signal.SIGHUP)

    def _signal(self, number: signal.Signals) -> None:
        # asyncio's send_signal polls the child; the return code of a child that has just ended would become 255.
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it and the processes that it started (SIGKILL)."""
        if not self.ended.done():
            self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # no process is left; macOS raises EPERM then
            os.killpg(self.pid, signal.SIGKILL)

    async def _wait(self) -> int:
        code = await self._child.wait()
        self._kill_group()  # processes that it left behind
        await asyncio.wait([self._output_closed], timeout=_OUTPUT_TIMEOUT)
        self._close()
        return code

    def _close(self) -> None:
        loop = asyncio.get_running_loop()
        if self._report_socket.fileno() >= 0:
            self._receive_report()  # a report that was written just before the end
            loop.remove_reader(self._report_socket)
            self._report_socket.close()
        if not self._output_closed.done():
            self._finish_output()

    def _finish_output(self) -> None:
        asyncio.get_running_loop().remove_reader(self._output)
        os.close(self._output)
        self._output_closed.set_result(None)

    def _receive_report(self) -> None:
        try:
            data = self._report_socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            match parse(line):
                case Alive(debugger):
                    self.answered, self.debugger = True, debugger
                case report:
                    if not self.report.done():
                        self.report.set_result(report)
        if not data:
            asyncio.get_running_loop().remove_reader(self._report_socket)

    def _read(self, on_line: Callable[[str], None], rest: bytearray) -> None:
        try:
            data = os.read(self._output, 65536)
        except BlockingIOError:
            return
        rest += data
        *lines, last = rest.split(b"\n")
        if not data or len(last) > _MAX_LINE_BYTES:
            lines.append(last)
            last = bytearray()
        for line in lines:
            if line:
                on_line(line.decode("utf-8", "replace").rstrip("\r"))
        rest[:] = last
        if not data:
            self._finish_output()


def exit_text(code: int) -> str:
    """Return the text for a return code: ``exit code 3`` or ``signal SIGKILL``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"

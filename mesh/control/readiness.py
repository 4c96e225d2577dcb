"""Protocol between ``mesh up`` and a component: start signal, readiness report, liveness probes, end of the parent.

The two processes share a socket pair. The parent writes ``START_SIGNAL`` once the dependencies of the component are
ready. A component loads its code before that, so all components load at the same time. The child writes one JSON line,
``{"ready": "127.0.0.1:9101"}`` or ``{"failed": "reason"}``. The socket then stays open. Its end tells the child that
the parent has ended, also by SIGKILL.

The parent also writes ``PROBE``. The child's event loop answers ``{"alive": true}`` on its next turn, with ``debugger``
true if one is attached. The probe passes no listener and no limit, so load cannot hide that the loop turns.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = [
    "FD_VARIABLE",
    "PROBE",
    "START_SIGNAL",
    "STOP_MARGIN_SECONDS",
    "TRACES_ENDPOINT_VARIABLE",
    "TRACES_SECRET_VARIABLE",
    "Alive",
    "Failed",
    "ParentConnection",
    "Ready",
    "parse",
]

START_SIGNAL = b"go\n"
"""Start signal that the parent writes."""
PROBE = b"probe\n"
"""Liveness probe that the parent writes."""
FD_VARIABLE = "MESH_INTERNAL_READY_FD"
"""Environment variable with the descriptor of the child's end of the pair."""
TRACES_ENDPOINT_VARIABLE = "MESH_INTERNAL_OTLP_ENDPOINT"
"""Environment variable with the URL of the trace store of ``mesh up``."""
TRACES_SECRET_VARIABLE = "MESH_INTERNAL_OTLP_SECRET"  # noqa: S105 - the name of a variable
"""Environment variable with the bearer token of that trace store."""
STOP_MARGIN_SECONDS = 4.0
"""Seconds that a component has for its shutdown beyond its drain time, before it is killed."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Report of a component that accepts connections at ``address`` (``host:port``)."""

    address: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Report of a component that cannot start; ``reason`` is for the user, one line for each fault."""

    reason: str


@dataclass(frozen=True, slots=True)
class Alive:
    """Answer of an event loop to a liveness probe; ``debugger``: whether one is attached to the process."""

    debugger: bool


def parse(line: bytes) -> Ready | Failed | Alive:
    """Return the report in a line; a line that is no report is ``Failed`` with that reason."""
    try:
        report = json.loads(line)
    except (ValueError, RecursionError):
        report = {}
    match report:
        case {"ready": str(address)}:
            return Ready(address)
        case {"failed": str(reason)}:
            return Failed(reason)
        case {"alive": True, "debugger": bool(debugger)}:
            return Alive(debugger)
    return Failed(f"it reported {line[:200]!r}, which is neither ready nor failed")


class ParentConnection:
    """The child's end of the socket pair.

    Args:
        sock: The child's end, or None when ``mesh up`` did not start this component; reports are then dropped.
    """

    def __init__(self, sock: socket.socket | None) -> None:
        self._sock = sock

    @classmethod
    def inherited(cls, environ: Mapping[str, str] | None = None) -> ParentConnection:
        """Return the connection to the parent of this process; without a parent one that drops reports."""
        number = (os.environ if environ is None else environ).get(FD_VARIABLE)
        if number is None:
            return cls(None)
        sock = socket.socket(fileno=int(number))
        sock.set_inheritable(False)  # a worker of this component that holds it open would hide the parent's end
        return cls(sock)

    @property
    def present(self) -> bool:
        """Whether there is a parent."""
        return self._sock is not None

    def ready(self, address: str) -> None:
        """Report that the component accepts at ``address``."""
        self._report({"ready": address})

    def failed(self, reason: str) -> None:
        """Report why the component cannot start."""
        self._report({"failed": reason})

    def alive(self, *, debugger: bool) -> None:
        """Answer a liveness probe.

        Args:
            debugger: Whether a debugger is attached to this process.
        """
        self._report({"alive": True, "debugger": debugger})

    def watch(
        self,
        on_start: Callable[[], None],
        on_probe: Callable[[], None],
        on_parent_exit: Callable[[], None],
        exit_delay: float,
    ) -> None:
        """Read from the parent in a thread of its own.

        A function that blocks the event loop would otherwise keep an orphaned process alive.

        Args:
            on_start: Called at the start signal; at once when there is no parent.
            on_probe: Called at each liveness probe; makes the event loop call ``alive``.
            on_parent_exit: Called once the parent has ended.
            exit_delay: Seconds after ``on_parent_exit`` until this process ends in any case.
        """
        if self._sock is None:
            on_start()
        else:
            arguments = (self._sock, {START_SIGNAL: on_start, PROBE: on_probe}, on_parent_exit, exit_delay)
            threading.Thread(target=self._read, args=arguments, name="parent", daemon=True).start()

    @staticmethod
    def _read(
        sock: socket.socket,
        actions: Mapping[bytes, Callable[[], None]],
        on_parent_exit: Callable[[], None],
        exit_delay: float,
    ) -> None:
        try:
            for line in sock.makefile("rb"):
                actions[line]()
        except OSError:  # a reset also means that the parent has ended
            pass
        try:
            on_parent_exit()
        finally:
            time.sleep(exit_delay)
            os._exit(1)

    def _report(self, report: Mapping[str, str | bool]) -> None:
        if self._sock is not None:
            try:
                self._sock.sendall(json.dumps(report).encode() + b"\n")
            except OSError:  # the parent has ended; ``watch`` acts on that
                return

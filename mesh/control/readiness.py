"""How a component tells ``mesh up`` that it is ready or has failed, and learns when it may start and that it must end.

The two share a socket pair. The parent writes ``GO`` once all that the component needs is ready: what can be done
before, imports above all, the components do at the same time. The child writes one JSON line,
``{"ready": "127.0.0.1:9101"}`` or ``{"failed": "reason"}``; after that the socket stays open, and its end is the end of
the parent, however that came (SIGKILL included).
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["GO", "STOP_MARGIN", "TRACES_ENDPOINT", "VARIABLE", "Failed", "Parent", "Ready", "parse"]

GO = b"go\n"
"""What the parent writes."""
VARIABLE = "MESH_INTERNAL_READY_FD"
"""The environment variable that holds the number of the child's end."""
TRACES_ENDPOINT = "MESH_INTERNAL_OTLP_ENDPOINT"
"""The environment variable that tells components where the trace store is."""
STOP_MARGIN = 4.0
"""Seconds beyond its drain that a component has for its stop, before it is killed."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The component accepts at ``address`` (``host:port``)."""

    address: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The component cannot start; ``reason`` is for the user, a line for each fault."""

    reason: str


def parse(line: bytes) -> Ready | Failed:
    """Return what the line says; what cannot be read is a failure that says so."""
    try:
        report = json.loads(line)
    except ValueError:
        report = {}
    match report:
        case {"ready": str(address)}:
            return Ready(address)
        case {"failed": str(reason)}:
            return Failed(reason)
    return Failed(f"it reported {line[:200]!r}, which is neither ready nor failed")


class Parent:
    """The child's end.

    Args:
        sock: The child's end of the pair, or None when the component was not started by ``mesh up``; then reports go
            nowhere.
    """

    def __init__(self, sock: socket.socket | None) -> None:
        self._sock = sock

    @classmethod
    def inherited(cls, environ: Mapping[str, str] | None = None) -> Parent:
        """Take the socket that the parent left for this process, if there is one."""
        number = (os.environ if environ is None else environ).get(VARIABLE)
        if number is None:
            return cls(None)
        sock = socket.socket(fileno=int(number))
        sock.set_inheritable(False)  # workers of this component must not hold it open
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

    def watch(self, go: Callable[[], None], gone: Callable[[], None], grace: float) -> None:
        """Listen to the parent, from a thread of its own: a loop that a function blocks must not keep an orphan alive.

        Args:
            go: Called when the component may start: at once, when there is no parent.
            gone: Called once the parent is no more.
            grace: Seconds after ``gone`` that this process ends, come what may.
        """
        if self._sock is None:
            go()
        else:
            threading.Thread(target=self._wait, args=(self._sock, go, gone, grace), name="parent", daemon=True).start()

    @staticmethod
    def _wait(sock: socket.socket, go: Callable[[], None], gone: Callable[[], None], grace: float) -> None:
        try:
            while sock.recv(64):
                go()
        except OSError:  # reset: the same news
            pass
        try:
            gone()
        finally:
            time.sleep(grace)
            os._exit(1)

    def _report(self, report: dict[str, str]) -> None:
        if self._sock is not None:
            try:
                self._sock.sendall(json.dumps(report).encode() + b"\n")
            except OSError:  # the parent is gone; ``watch`` acts on that
                return

"""Run state of ``mesh up`` for the other commands: addresses and pid, in ``.mesh/up.json``.

The process that wrote the file holds a lock on it (flock). A file that a killed ``mesh up`` has left is not locked, so
it is never taken for a running mesh, even when another process has its pid.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from mesh import private_files
from mesh.faults import Fault, Faults

__all__ = ["Claim", "RunState", "claim", "running"]

_NAME = "up.json"


@dataclass(frozen=True, slots=True)
class RunState:
    """A mesh that runs on this machine.

    Attributes:
        pid: Process id of ``mesh up``.
        addresses: Service, or ``edge`` → ``host:port``.
        edge: URL of the edge, or "".
        traces: URL of the trace store, or "" when a collector gets the traces.
        traces_secret: Bearer token of the trace store.
        broker: URL of the broker that this ``mesh up`` runs, or "".
    """

    pid: int
    addresses: dict[str, str]
    edge: str = ""
    traces: str = ""
    traces_secret: str = field(default="", repr=False)
    broker: str = ""


@contextmanager
def claim(state: Path) -> Iterator[Claim]:
    """Hold the lock of a state folder until the block ends; one ``mesh up`` at a time can.

    The file gets mode 0600 at each start: one of an earlier release was readable for all, and it holds a secret now.

    Raises:
        Faults: Another ``mesh up`` holds it.
        OSError: The file is of another user, or cannot be made.
    """
    private_files.make_folder(state)
    with open(state / _NAME, "a+", opener=private_files.opener) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = _read(file)
            holder = f"pid {found.pid}" if found else "another `mesh up`, which is starting"
            raise Faults([Fault(str(state), f"this mesh runs already ({holder}); stop it first")]) from None
        os.fchmod(file.fileno(), private_files.FILE_MODE)
        own = Claim(file)
        own.write(RunState(os.getpid(), {}))
        try:
            yield own
        finally:
            file.truncate(0)


class Claim:
    """The locked file with the run state."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, state: RunState) -> None:
        """Replace the content of the file."""
        self._file.truncate(0)
        self._file.write(json.dumps(asdict(state)))
        self._file.flush()


def running(state: Path) -> RunState | None:
    """Return the mesh that runs with a state folder, or None."""
    try:
        file = (state / _NAME).open()
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(file)
    return None


def _read(file: IO[str]) -> RunState | None:
    file.seek(0)
    try:
        return RunState(**json.loads(file.read()))
    except (ValueError, TypeError, RecursionError):
        return None

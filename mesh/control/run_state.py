"""What ``mesh up`` leaves for the other commands while it runs: ``.mesh/up.json``.

The file is locked (flock) by the process that wrote it, so what a killed ``mesh up`` left behind is never taken for a
running one, whatever its pid is used for now.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from mesh.faults import Fault, Faults

__all__ = ["Running", "claim", "running"]

_NAME = "up.json"


@dataclass(frozen=True, slots=True)
class Running:
    """A mesh that runs on this machine.

    Attributes:
        pid: Of ``mesh up``.
        addresses: Entry of mesh.toml → ``host:port``.
        edge: URL of the edge, or "".
        traces: URL of the trace store, or "" when a collector has them.
        broker: URL of the event broker that this mesh runs for itself, or "".
    """

    pid: int
    addresses: dict[str, str]
    edge: str = ""
    traces: str = ""
    broker: str = ""


@contextmanager
def claim(state: Path) -> Iterator[Claim]:
    """Be the one ``mesh up`` of a state folder, until the block ends.

    Raises:
        Faults: Another one runs.
    """
    state.mkdir(parents=True, exist_ok=True)
    with (state / _NAME).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = _read(file)
            who = f"pid {found.pid}" if found else "another `mesh up`, which is starting"
            raise Faults([Fault(str(state), f"this mesh runs already ({who}); stop it first")]) from None
        own = Claim(file)
        own.write(Running(os.getpid(), {}))
        try:
            yield own
        finally:
            file.truncate(0)


class Claim:
    """The held file."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, running: Running) -> None:
        """Say what runs."""
        self._file.truncate(0)
        self._file.write(json.dumps(asdict(running)))
        self._file.flush()


def running(state: Path) -> Running | None:
    """Return the mesh that runs with this state folder, or None."""
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


def _read(file: IO[str]) -> Running | None:
    file.seek(0)
    try:
        return Running(**json.loads(file.read()))
    except (ValueError, TypeError):
        return None

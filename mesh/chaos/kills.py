"""Fault injector of ``mesh chaos``: kills processes (SIGKILL) and locks SQLite files."""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from mesh.chaos.plan import BROKER, EDGE, WORKERS, Injection, pick

__all__ = ["FaultInjector", "Outage", "lock_database", "processes_by_target"]

_READY = re.compile(r"is ready again, pid (\d+)")
_FORK_SERVER = "mesh.sidecar.workers.forkserver"

Outage: TypeAlias = Callable[[float, float], Awaitable[None]]
"""Function that makes a database unavailable, for some seconds and in one of several kinds (``Injection.variant``)."""


def processes_by_target(up: int, listing: str) -> dict[str, list[int]]:
    """Return the process ids of each target of a mesh.

    Args:
        up: Process id of its ``mesh up``.
        listing: Lines of process id, parent's process id and command line.
    """
    processes: dict[int, tuple[int, list[str]]] = {}
    for line in listing.splitlines():
        number, above, *words = line.split()
        processes[int(number)] = (int(above), words)
    found: dict[str, list[int]] = {}
    sidecars: dict[int, str] = {}
    for pid, (parent, words) in processes.items():
        if parent != up:
            continue
        if "sidecar" in words:
            sidecars[pid] = words[words.index("sidecar") + 1]
            found[sidecars[pid]] = [pid]
        elif "edge" in words:
            found[EDGE] = [pid]
        elif words[0].endswith("nats-server"):
            found[BROKER] = [pid]
    servers = {
        pid: sidecars[parent]
        for pid, (parent, words) in processes.items()
        if parent in sidecars and _FORK_SERVER in words
    }
    for pid, (parent, _) in processes.items():
        name = servers.get(pid) or servers.get(parent)
        if name is not None:
            found.setdefault(f"{name} {WORKERS}", []).append(pid)
    return found


class FaultInjector:
    """Injects faults into the processes and databases of one mesh.

    Args:
        up: Process id of its ``mesh up``.
        targets: The possible targets.
        databases: Target → function that makes it unavailable.
        log: Output of its ``mesh up``, which names each process that is ready again.

    Attributes:
        injected: Time (``time.monotonic``) and target of each fault.
    """

    def __init__(self, up: int, targets: list[str], databases: Mapping[str, Outage], log: Path) -> None:
        self.injected: list[tuple[float, str]] = []
        self._up = up
        self._targets = targets
        self._databases = databases
        self._log = log
        self._first: set[int] = set()
        self._first_seen: dict[int, float] = {}
        self._last_outage: dict[str, float] = {}
        self._outages: set[asyncio.Task[None]] = set()

    async def inject(self, injection: Injection) -> str | None:
        """Inject a fault; return its target, or None when no target has lived long enough.

        Raises:
            Faults: A database does not start again.
        """
        now = time.monotonic()
        found = processes_by_target(self._up, await _listing())
        ready = {int(pid) for pid in _READY.findall(self._log.read_text(errors="replace"))}
        if not self._first:  # all processes were ready when the experiment began
            self._first = {pid for pids in found.values() for pid in pids}
            self._first_seen = dict.fromkeys(self._first, 0.0)
        if not injection.immediate:
            up = ready | self._first
            found = {name: [pid for pid in pids if pid in up or WORKERS in name] for name, pids in found.items()}
            found = {name: pids for name, pids in found.items() if pids}
        here = [pid for pids in found.values() for pid in pids]
        self._first_seen |= {pid: self._first_seen.get(pid, now) for pid in here}
        ages = {
            name: now - min(self._first_seen[pid] for pid in pids)
            for name, pids in found.items()
            if name in self._targets
        }
        # The age of a database is the time since its last outage, so other writers get the lock in between.
        ages |= {name: now - self._last_outage.get(name, 0.0) for name in self._databases if name in self._targets}
        name = pick(injection, ages)
        if name is None:
            return None
        if name in self._databases:
            self._last_outage[name] = math.inf
            self._outages.add(asyncio.create_task(self._outage(name, injection)))
        else:
            pid = found[name][int(injection.variant * len(found[name]))]
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return None
        self.injected.append((time.monotonic(), name))
        return name

    async def _outage(self, name: str, injection: Injection) -> None:
        await self._databases[name](injection.duration, injection.variant)
        self._last_outage[name] = time.monotonic()

    async def end(self) -> None:
        """Wait until every database is available.

        Raises:
            Faults: A database does not start again.
        """
        await asyncio.gather(*self._outages)


async def _listing() -> str:
    process = await asyncio.create_subprocess_exec(
        "ps", "-A", "-ww", "-o", "pid=,ppid=,args=", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return out.decode(errors="replace")


async def lock_database(file: Path, seconds: float) -> None:
    """Hold the write lock of a SQLite file for some seconds."""
    connection = await asyncio.to_thread(_locked, file)
    if connection is None:  # other writers have held the lock for seconds
        return
    try:
        await asyncio.sleep(seconds)
    finally:
        connection.close()


def _locked(file: Path) -> sqlite3.Connection | None:
    connection = sqlite3.connect(file, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        connection.close()
        return None
    return connection

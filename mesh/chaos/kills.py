"""What ``mesh chaos`` does to the processes and databases of its mesh: kill -9, and a SQLite file that is held."""

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

from mesh.chaos.plan import BROKER, EDGE, WORKERS, Strike, pick

__all__ = ["Herd", "Outage", "hold", "victims"]

_READY = re.compile(r"is ready again, pid (\d+)")
_FORK_SERVER = "mesh.sidecar.workers.forkserver"

Outage: TypeAlias = Callable[[float, float], Awaitable[None]]
"""Takes a database away: for how many seconds, and in which way (``Strike.way``)."""


def victims(up: int, listing: str) -> dict[str, list[int]]:
    """Return the processes of a mesh: target → process ids.

    Args:
        up: Process id of its ``mesh up``.
        listing: Lines of process id, parent's id and command line.
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


class Herd:
    """The processes and databases of one mesh.

    Args:
        up: Process id of its ``mesh up``.
        targets: What may be struck.
        databases: Target → what makes a strike at it.
        log: Output of its ``mesh up``, which names each process that is ready again.

    Attributes:
        struck: When, by ``time.monotonic``, and what.
    """

    def __init__(self, up: int, targets: list[str], databases: Mapping[str, Outage], log: Path) -> None:
        self.struck: list[tuple[float, str]] = []
        self._up = up
        self._targets = targets
        self._databases = databases
        self._log = log
        self._first: set[int] = set()
        self._seen: dict[int, float] = {}
        self._held: dict[str, float] = {}
        self._holding: set[asyncio.Task[None]] = set()

    async def strike(self, strike: Strike) -> str | None:
        """Strike; return what was struck, or None when nothing has lived long enough.

        Raises:
            Faults: A database does not start again.
        """
        now = time.monotonic()
        found = victims(self._up, await _listing())
        ready = {int(pid) for pid in _READY.findall(self._log.read_text(errors="replace"))}
        if not self._first:  # all were ready when it began
            self._first = {pid for pids in found.values() for pid in pids}
            self._seen = dict.fromkeys(self._first, 0.0)
        if not strike.early:
            up = ready | self._first
            found = {name: [pid for pid in pids if pid in up or WORKERS in name] for name, pids in found.items()}
            found = {name: pids for name, pids in found.items() if pids}
        here = [pid for pids in found.values() for pid in pids]
        self._seen |= {pid: self._seen.get(pid, now) for pid in here}
        ages = {
            name: now - min(self._seen[pid] for pid in pids) for name, pids in found.items() if name in self._targets
        }
        # A database that has just been let go lets others through first.
        ages |= {name: now - self._held.get(name, 0.0) for name in self._databases if name in self._targets}
        name = pick(strike, ages)
        if name is None:
            return None
        if name in self._databases:
            self._held[name] = math.inf
            holding = asyncio.create_task(self._hold(name, strike))
            self._holding.add(holding)
        else:
            pid = found[name][int(strike.way * len(found[name]))]
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return None
        self.struck.append((time.monotonic(), name))
        return name

    async def _hold(self, name: str, strike: Strike) -> None:
        await self._databases[name](strike.lasts, strike.way)
        self._held[name] = time.monotonic()

    async def end(self) -> None:
        """Wait until no database is held, or away.

        Raises:
            Faults: One does not start again.
        """
        await asyncio.gather(*self._holding)


async def _listing() -> str:
    process = await asyncio.create_subprocess_exec(
        "ps", "-A", "-ww", "-o", "pid=,ppid=,args=", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return out.decode(errors="replace")


async def hold(file: Path, seconds: float) -> None:
    """Keep everybody from writing to a SQLite file."""
    connection = await asyncio.to_thread(_locked, file)
    if connection is None:  # it was busy for seconds: others hold it well enough
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

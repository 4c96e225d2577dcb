"""One run of ``mesh chaos``: the mesh is started, called and struck; then everything is counted."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mesh.chaos import evidence, ledger, plan, recovery, requests
from mesh.chaos.kills import Herd, Outage
from mesh.chaos.ledger import Fate
from mesh.chaos.requests import Drive
from mesh.config.manifest import Manifest
from mesh.contract.model import Contract
from mesh.control import run_state, topology
from mesh.control.component import service_events
from mesh.control.supervise import exec_with_parent
from mesh.events.broker.broker import Broker
from mesh.faults import Fault, Faults

__all__ = ["Bounds", "Trial", "endings"]

START = 90.0
"""Seconds that the mesh may take to start."""
STOP = 60.0
QUIET = 2
"""Looks in a row, a second apart, that find nothing waiting."""
PAUSE = 0.1
"""Seconds before a client calls again after a call that was not answered."""
SETTLED = 15.0
"""Seconds that a strike waits for the mesh to work again after the one before."""
SAID = 10.0
"""Seconds between two lines of progress that nobody watches; at a terminal, one line changes every second."""
_ENDED = re.compile(r"(\S+) died with (?!signal SIGKILL)(.*?);")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much of it.

    Attributes:
        duration: Seconds that it is struck.
        patience: Seconds that outboxes and consumers may take afterwards.
        rate: Strikes a second, at most.
        kills: After how many killed processes it ends earlier; 0: not by their number.
        clients: Calls at once.
    """

    duration: float
    patience: float
    rate: float
    kills: int
    clients: int


@dataclass(eq=False)
class Trial:
    """One run.

    Attributes:
        manifest: The mesh, with addresses, state and databases that are this run's alone.
        contract: Its contract.
        drive: What is called.
        targets: What may be struck.
        databases: Service → URL of its database.
        outages: Target that is a database → what takes it away.
        seed: Of all chance.
        bounds: How much of it.
        uncounted: Methods (``package.Service/Method``) whose effects are not counted.
        doomed: Whether the event with a word has to be a dead letter of each method; None: no such thing is known.
    """

    manifest: Manifest
    contract: Contract
    drive: Drive
    targets: list[str]
    databases: Mapping[str, str]
    outages: Mapping[str, Outage]
    seed: int
    bounds: Bounds
    uncounted: Collection[str] = ()
    doomed: Callable[[str], bool] | None = None

    def __post_init__(self) -> None:
        self._calls: dict[str, Fate] = {}
        self._accepted: list[tuple[float, float]] = []  # when it was begun, when answered
        self._latest = 0.0  # of the accepted calls, the one that was begun last
        self._news = asyncio.Event()
        self._over = asyncio.Event()
        self._edge = ""
        self._broker = ""
        self._began = time.monotonic()

    @property
    def _folder(self) -> Path:
        return self.manifest.state.parent

    @property
    def _log(self) -> Path:
        return self._folder / "mesh.log"

    async def run(self) -> int:
        """Do it, and print the ledger.

        Returns:
            0 when nothing was lost or doubled, the mesh worked again after the last strike, nothing of it ended by
            itself, and it stopped when it was told to; else 1.

        Raises:
            Faults: The mesh, or a database, did not start.
        """
        print(
            f"{self.drive.method.path.lstrip('/')} through the edge; {self.drive.event} is counted; "
            f"struck are {', '.join(self.targets)}; seed {self.seed}",
            flush=True,
        )
        up = (sys.executable, "-P", "-m", "mesh", "up", "--file", str(self.manifest.file), "--restart-within", "0.5")
        with self._log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *exec_with_parent.command(str(self._folder / "up.lock"), up),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        code, troubles = 1, list[str]()
        try:
            herd = await self._ready(process)
            works = await self._drill(process, herd)
            code = await self._reckon(herd, works=works)
        finally:
            stopped = await _stop(process)
            troubles = endings(self._log.read_text(errors="replace"), process.returncode or 0, stopped=stopped)
            code = code or int(bool(troubles))
            if code:
                (self._folder / "failed").touch()
        print("\n".join(troubles), end="\n" if troubles else "")
        if code:
            print(f"databases and log stay in {self._folder}")
        return code

    async def _ready(self, process: asyncio.subprocess.Process) -> Herd:
        until = time.monotonic() + START
        while time.monotonic() < until and process.returncode is None:
            running = run_state.running(self.manifest.state)
            if running is not None and running.edge:
                self._edge, self._broker = running.edge, running.broker
                for url in self.databases.values():
                    await evidence.look(url, evidence.witness)
                return Herd(running.pid, self.targets, self.outages, self._log)
            await asyncio.sleep(0.05)  # the file is the only thing to watch
        last = self._log.read_text(errors="replace").strip().splitlines()[-5:]
        raise Faults([Fault("mesh up", f"did not start; it said:\n{chr(10).join(last)}")])

    # -- while it lasts --

    async def _drill(self, process: asyncio.subprocess.Process, herd: Herd) -> bool:
        """Call and strike; return whether the mesh works after the last strike."""
        self._began = time.monotonic()
        ended = asyncio.create_task(process.wait())
        striking = asyncio.create_task(self._strike(herd))
        clients = [asyncio.create_task(self._call(at)) for at in range(self.bounds.clients)]
        beside = [asyncio.create_task(self._progress(herd)), ended, striking]
        try:
            await asyncio.wait([ended, striking], timeout=self.bounds.duration, return_when=asyncio.FIRST_COMPLETED)
            if striking.done():
                striking.result()
            striking.cancel()
            await herd.end()
            works = await self._works(time.monotonic(), self.bounds.patience)
            self._over.set()
            await asyncio.gather(*clients)
        finally:
            for task in (*beside, *clients):
                task.cancel()
            await asyncio.gather(*beside, *clients, return_exceptions=True)
        if process.returncode is not None:
            raise Faults([Fault("mesh up", f"ended with exit code {process.returncode}")])
        return works

    async def _call(self, client: int) -> None:
        """Be one client: one call after the other, each with its own word, none of them twice."""
        number = client
        while not self._over.is_set():
            word = requests.word(self.seed, number)
            number += self.bounds.clients
            begun, found = time.monotonic(), Fate.UNKNOWN
            try:
                found = ledger.fate(await requests.ask(self._edge, self.drive, word))
            finally:
                self._calls[word] = found
            if found is Fate.ACCEPTED:
                self._accepted.append((begun, time.monotonic()))
                self._latest = max(self._latest, begun)
                self._news.set()
            else:
                await asyncio.sleep(PAUSE)

    async def _works(self, since: float, within: float) -> bool:
        """Wait until a call that was begun since then has been accepted; False if that does not come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self._latest < since:
                    self._news.clear()
                    await self._news.wait()
        return self._latest >= since

    async def _strike(self, herd: Herd) -> None:
        due = last = time.monotonic()
        for strike in plan.strikes(self.seed, self.bounds.rate, self.targets):
            due += strike.after
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if not strike.early:
                await self._works(last, SETTLED)
            if await herd.strike(strike) is not None:
                last = herd.struck[-1][0]
                if self.bounds.kills and plan.kills(herd.struck) >= self.bounds.kills:
                    return

    async def _progress(self, herd: Herd) -> None:
        while True:
            await asyncio.sleep(1 if sys.stderr.isatty() else SAID)
            self._say(herd)

    def _say(self, herd: Herd, more: str = "") -> None:
        fates = Counter(self._calls.values())
        counts = "  ".join(f"{fate.value} {fates[fate]:,}" for fate in Fate)
        struck = f"killed {plan.kills(herd.struck):,}  struck {len(herd.struck):,}"
        line = f"{time.monotonic() - self._began:6.0f} s  {struck}  {counts}{more}"
        watched = sys.stderr.isatty()
        print(f"\r{line:<120}" if watched else line, end="" if watched else "\n", file=sys.stderr, flush=True)

    # -- afterwards --

    async def _reckon(self, herd: Herd, *, works: bool) -> int:
        """Wait until all is delivered, count, and print; returns the exit code."""
        self._say(herd)
        async with self._connected() as broker:
            quiet = await self._settle(broker, herd)
            made = await self._count_all(broker)
        if sys.stderr.isatty():
            print(file=sys.stderr)
        print(f"\n{recovery.show(herd.struck, recovery.recoveries(herd.struck, self._accepted))}")
        print(f"\n{ledger.show(made)}")
        patience = f"{self.bounds.patience:g} s"
        if not quiet:
            print(f"what waits had not gone within {patience}; it counts as lost where it is missing")
        if not works:
            print(f"no call was accepted within {patience} after the last strike; look into the log of the mesh")
        return 0 if works and quiet and not made.lost and not made.doubled else 1

    async def _settle(self, broker: Broker, herd: Herd) -> bool:
        """Wait until nothing waits any more; False if that does not come."""
        until, quiet = time.monotonic() + self.bounds.patience, 0
        while quiet < QUIET and time.monotonic() < until:
            outboxes = sum([await evidence.look(url, evidence.waiting) for url in self.databases.values()])
            lag = await evidence.lag(await broker.ready(), self.contract)
            quiet = 0 if outboxes or lag else quiet + 1
            self._say(herd, f"  in outboxes {outboxes:,}  to be delivered {lag:,}")
            if quiet < QUIET:
                await asyncio.sleep(1)
        return quiet == QUIET

    async def _count_all(self, broker: Broker) -> ledger.Ledger:
        hosts = {
            name: [one.name for one in topology.served(self.manifest, self.contract, name)]
            for name in self.manifest.services
        }
        facts = await evidence.collect(
            await broker.ready(),
            self.contract,
            hosts,
            self.databases,
            self._calls,
            self.drive.event,
            self.uncounted,
            self.doomed,
        )
        return ledger.ledger(facts)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Broker]:
        named = msgspec.structs.replace(self.manifest, broker=self._broker)
        broker = Broker(service_events.broker_settings(named, "mesh chaos"), "mesh-chaos")
        broker.start()
        try:
            await asyncio.wait_for(broker.ready(), START)
            yield broker
        finally:
            await broker.stop()


def endings(log: str, code: int, *, stopped: bool) -> list[str]:
    """Return what ended as it should not have, a sentence each.

    Args:
        log: What ``mesh up`` has said.
        code: Its exit code.
        stopped: It ended when it was told to.
    """
    found = [
        f"{name} ended by itself {times} times, with {how}"
        for (name, how), times in Counter(_ENDED.findall(log)).items()
    ]
    if not stopped:
        return [*found, f"the mesh did not stop within {STOP:g} s and was killed"]
    return [*found, f"mesh up ended with exit code {code}"] if code else found


async def _stop(process: asyncio.subprocess.Process) -> bool:
    """Tell the mesh to stop; return whether it did."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(process.wait(), STOP)
        except TimeoutError:
            process.kill()
            await process.wait()
            return False
    return True

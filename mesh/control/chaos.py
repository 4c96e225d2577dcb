"""``mesh chaos``: runs a mesh of its own, calls it, kills what it can, and counts what became of every call.

It never touches a mesh that runs, nor its data: state folder, databases, ports and broker are its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mesh import manifest as manifests
from mesh.contract import Contract
from mesh.control import (
    chaos_calls,
    chaos_count,
    chaos_ledger,
    chaos_plan,
    component,
    eventing,
    state,
    tether,
    topology,
)
from mesh.control.chaos_calls import Drive, UncountableError
from mesh.control.chaos_ledger import Fate
from mesh.control.chaos_strike import Herd
from mesh.events.broker import Broker
from mesh.faults import Fault, Faults
from mesh.manifest import Manifest
from mesh.values import Duration

__all__ = ["UNCOUNTABLE", "Wishes", "run"]

UNCOUNTABLE = 2
"""Exit code: nothing in this mesh can be counted."""
START = 90.0
"""Seconds that the mesh may take to start."""
STOP = 60.0
QUIET = 2
"""Looks in a row, a second apart, that find nothing waiting."""
PAUSE = 0.1
"""Seconds before a client calls again after a call that was not answered."""
_SQLITE = "sqlite:///"
_ENDED = re.compile(r"(\S+) died with (?!signal SIGKILL)(.*?);")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What was asked for.

    Attributes:
        duration: How long it is struck, as ``"60s"``.
        rate: Strikes a second.
        seed: Of all chance; None: a new one, which is printed.
        only: Kinds of targets, or services; empty: everything.
        call: The method; "": found by the contract.
        data: Its request; "": made by the contract.
        event: What it publishes; "": the first that its service declares.
        clients: Calls at once.
        workers: Run the functions of every service in workers.
        keep: Where state, databases and log stay; "": a temporary folder, which stays only after a failure.
        patience: How long is waited for outboxes and consumers, as ``"120s"``.
    """

    duration: str
    rate: float
    seed: int | None
    only: tuple[str, ...]
    call: str
    data: str
    event: str
    clients: int
    workers: bool
    keep: str
    patience: str


def run(file: Path, wishes: Wishes) -> int:
    """Run a mesh through it and print the ledger.

    Returns:
        0 when nothing was lost or doubled, 1 when something was, 2 when nothing can be counted.

    Raises:
        Faults: Of the mesh, or of what was asked for.
    """
    duration, patience = _seconds("--duration", wishes.duration), _seconds("--patience", wishes.patience)
    if wishes.rate <= 0 or wishes.clients < 1:
        raise Faults([Fault("--rate, --clients", "expected a rate above 0 and at least one client")])
    with _folder(wishes.keep) as folder:
        environment = _environment(manifests.load(file), folder, workers=wishes.workers)
        os.environ.update(environment)  # for `load`, as for every process of the mesh
        manifest, contract = component.load(file)
        try:
            trial = _trial(manifest, contract, wishes, duration, patience)
        except UncountableError as error:
            print(f"{file}: {error}", file=sys.stderr)
            return UNCOUNTABLE
        try:
            return asyncio.run(trial.run())
        except OSError as error:
            raise Faults([Fault("mesh chaos", str(error))]) from None


def _seconds(place: str, text: str) -> float:
    try:
        return float(Duration.parse(text))
    except ValueError as error:
        raise Faults([Fault(place, str(error))]) from None


@contextmanager
def _folder(keep: str) -> Iterator[Path]:
    """Yield the folder of state, databases and log."""
    if keep:
        folder = Path(keep).resolve()
        if folder.exists() and any(folder.iterdir()):
            raise Faults([Fault(f"--keep {keep}", "is not empty: what is there already would be counted too")])
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix="mesh-chaos-"))
    try:
        yield folder
    finally:
        if not (folder / "failed").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _environment(found: Manifest, folder: Path, *, workers: bool) -> dict[str, str]:
    """Return the variables that give the mesh ports, state, databases and a broker of its own.

    Raises:
        Faults: A service has a PostgreSQL database.
    """
    words = {"MESH_STATE": str(folder / "state"), "MESH_BROKER": "", "MESH_EVENTS_LISTEN": "127.0.0.1:0"}
    if found.edge is not None:
        words["MESH_EDGE_LISTEN"] = "127.0.0.1:0"
    faults = []
    for name, entry in found.services.items():
        prefix = f"MESH_SERVICES_{name.upper().replace('-', '_')}"
        words |= {f"{prefix}_LISTEN": "127.0.0.1:0", f"{prefix}_ADDRESS": ""}
        if entry.database.startswith(_SQLITE):
            words[f"{prefix}_DATABASE"] = f"{_SQLITE}{folder / name}.db"
        elif entry.database:
            text = f"its data is not touched here; give it a SQLite file for this: {prefix}_DATABASE={_SQLITE}{name}.db"
            faults.append(Fault(f"{found.file.name} [services.{name}] database", text))
        if workers and entry.workers is None and name not in found.lambdas:
            words[f"{prefix}_WORKERS"] = "{ min = 1, max = 2 }"
    if faults:
        raise Faults(faults)
    return words


def _trial(manifest: Manifest, contract: Contract, wishes: Wishes, duration: float, patience: float) -> _Trial:
    """Return what is to be done.

    Raises:
        UncountableError: There is nothing to count.
        Faults: What shall be struck is not there.
    """
    if manifest.edge is None:
        raise UncountableError("it has no [edge], and calls are made through the edge")
    files = {
        name: Path(entry.database.removeprefix(_SQLITE)) for name, entry in manifest.services.items() if entry.database
    }
    publishers = [service for name in files for service in manifest.services[name].serves]
    drive = chaos_calls.choose(contract, publishers, wishes.call, wishes.data, wishes.event)
    try:
        targets = chaos_plan.targets(
            list(manifest.services),
            edge=True,
            workers=[name for name, entry in manifest.services.items() if entry.workers is not None],
            databases=list(files),
            only=wishes.only,
        )
    except ValueError as error:
        raise Faults([Fault("--kill", str(error))]) from None
    seed = secrets.randbelow(2**24) if wishes.seed is None else wishes.seed
    return _Trial(manifest, contract, drive, targets, files, seed, wishes.rate, wishes.clients, duration, patience)


@dataclass(eq=False)
class _Trial:
    """One run."""

    manifest: Manifest
    contract: Contract
    drive: Drive
    targets: list[str]
    files: dict[str, Path]
    seed: int
    rate: float
    clients: int
    duration: float
    patience: float

    def __post_init__(self) -> None:
        self._calls: dict[str, Fate] = {}
        self._count = 0
        self._edge = ""
        self._broker = ""
        self._herd: Herd | None = None
        self._over = asyncio.Event()

    @property
    def _folder(self) -> Path:
        return self.manifest.state.parent

    async def run(self) -> int:
        """Do it; returns the exit code."""
        print(
            f"{self.drive.method.path.lstrip('/')} through the edge; {self.drive.event} is counted; "
            f"struck are {', '.join(self.targets)}; seed {self.seed}",
            flush=True,
        )
        with (self._folder / "mesh.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *tether.command(
                    str(self._folder / "up.lock"),
                    (
                        sys.executable, "-P", "-m", "mesh", "up", "--file", str(self.manifest.file),
                        "--restart-within", "0.5",
                    ),
                ),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            await self._ready(process)
            code = await self._trial(process)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGINT)
                try:
                    await asyncio.wait_for(process.wait(), STOP)
                except TimeoutError:
                    print(f"the mesh did not stop within {STOP:g} s and is killed")
                    process.kill()
                    await process.wait()
        return self._end(code, process.returncode)

    def _end(self, code: int, up: int | None) -> int:
        """Say what else was seen; returns the exit code."""
        found = Counter(_ENDED.findall((self._folder / "mesh.log").read_text(errors="replace")))
        for (name, how), count in found.items():
            print(f"{name} ended by itself {count} times, with {how}")
        if up:
            print(f"mesh up ended with exit code {up}")
        if code:
            (self._folder / "failed").touch()
            print(f"databases and log stay in {self._folder}")
        return code

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        until = time.monotonic() + START
        while time.monotonic() < until and process.returncode is None:
            running = state.running(self.manifest.state)
            if running is not None and running.edge:
                self._edge, self._broker = running.edge, running.broker
                for file in self.files.values():
                    await asyncio.to_thread(chaos_count.witness, file)
                self._herd = Herd(
                    running.pid,
                    self.targets,
                    {f"{name} {chaos_plan.DATABASE}": file for name, file in self.files.items()},
                    self._folder / "mesh.log",
                    self.seed,
                )
                return
            await asyncio.sleep(0.05)  # the file is the only thing to watch
        (self._folder / "failed").touch()
        last = (self._folder / "mesh.log").read_text(errors="replace").strip().splitlines()[-5:]
        raise Faults([Fault("mesh up", f"did not start; it said:\n{chr(10).join(last)}")])

    async def _trial(self, process: asyncio.subprocess.Process) -> int:
        began = time.monotonic()
        beside = [asyncio.create_task(self._progress(began)), asyncio.create_task(self._strike())]
        clients = [asyncio.create_task(self._call()) for _ in range(self.clients)]
        try:
            await asyncio.wait([*beside, asyncio.create_task(process.wait())], timeout=self.duration)
            self._over.set()
            await asyncio.gather(*clients)
        finally:
            for task in (*beside, *clients):
                task.cancel()
            await asyncio.gather(*beside, *clients, return_exceptions=True)
        assert self._herd is not None  # noqa: S101 - made when the mesh was ready
        await self._herd.end()
        self._say(began)
        if process.returncode is not None:
            raise Faults([Fault("mesh up", f"ended with exit code {process.returncode}")])
        async with self._connected() as broker:
            quiet = await self._settle(broker, began)
            ledger = await self._count_all(broker)
        struck = ", ".join(f"{name} {count}" for name, count in sorted(self._herd.struck.items()))
        print(f"\nstruck {self._herd.struck.total():,} times: {struck or 'nothing'}\n\n{chaos_ledger.show(ledger)}")
        if not quiet:
            print(f"what waits had not gone within {self.patience:g} s; it counts as lost where it is missing")
        if not self._calls or Fate.ACCEPTED not in self._calls.values():
            print("no call was accepted, so this says nothing; look into the log of the mesh")
            return 1
        return 0 if quiet and not ledger.lost and not ledger.doubled else 1

    # -- while it lasts --

    async def _call(self) -> None:
        """Be one client: one call after the other, each with its own word, none of them twice."""
        while not self._over.is_set():
            self._count += 1
            word = chaos_calls.word(self.seed, self._count)
            self._calls[word] = Fate.UNKNOWN
            found = self._calls[word] = chaos_ledger.fate(await chaos_calls.ask(self._edge, self.drive, word))
            if found is not Fate.ACCEPTED:
                await asyncio.sleep(PAUSE)

    async def _strike(self) -> None:
        assert self._herd is not None  # noqa: S101 - as above
        due = time.monotonic()
        for strike in chaos_plan.strikes(self.seed, self.rate, self.targets):
            due += strike.after
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._herd.strike(strike)

    async def _progress(self, began: float) -> None:
        while True:
            await asyncio.sleep(1)
            self._say(began)

    def _say(self, began: float, more: str = "") -> None:
        fates = Counter(self._calls.values())
        struck = self._herd.struck.total() if self._herd is not None else 0
        counts = "  ".join(f"{fate.value} {fates[fate]:,}" for fate in Fate)
        print(f"{time.monotonic() - began:6.0f} s  struck {struck:,}  {counts}{more}", flush=True)

    # -- afterwards --

    async def _settle(self, broker: Broker, began: float) -> bool:
        """Wait until nothing waits any more; False if that does not come."""
        until, quiet = time.monotonic() + self.patience, 0
        while quiet < QUIET and time.monotonic() < until:
            outboxes = sum([await asyncio.to_thread(chaos_count.waiting, file) for file in self.files.values()])
            lag = await chaos_count.lag(await broker.ready(), self.contract)
            quiet = 0 if outboxes or lag else quiet + 1
            self._say(began, f"  in outboxes {outboxes:,}  to be delivered {lag:,}")
            if quiet < QUIET:
                await asyncio.sleep(1)
        return quiet == QUIET

    async def _count_all(self, broker: Broker) -> chaos_ledger.Ledger:
        hosts = {
            name: [one.name for one in topology.served(self.manifest, self.contract, name)]
            for name in self.manifest.services
        }
        facts = await chaos_count.collect(
            await broker.ready(), self.contract, hosts, self.files, self._calls, self.drive.event
        )
        return chaos_ledger.ledger(facts)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Broker]:
        named = msgspec.structs.replace(self.manifest, broker=self._broker)
        broker = Broker(eventing.settings(named, "mesh chaos"), "mesh-chaos")
        broker.start()
        try:
            await asyncio.wait_for(broker.ready(), START)
            yield broker
        finally:
            await broker.stop()

"""Experiment of ``mesh chaos``: starts the mesh, calls it, injects faults, and compares the counts."""

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
from typing import Any

from mesh.chaos import evidence, ledger, plan, recovery, requests
from mesh.chaos.kills import FaultInjector, Outage
from mesh.chaos.ledger import CallOutcome
from mesh.chaos.people import attacked_paths
from mesh.chaos.people.campaign import MIN_SUCCESS_PERCENT, Campaign
from mesh.chaos.requests import Workload
from mesh.config.manifest import Manifest
from mesh.contract.model import Contract
from mesh.control import identity_keys, mesh_certificates, run_state, topology
from mesh.control.component import service_events
from mesh.control.supervise import exec_with_parent
from mesh.events.broker.broker import Broker
from mesh.faults import Fault, Faults

__all__ = ["Experiment", "ExperimentLimits", "unexpected_exits"]

START_TIMEOUT = 90.0
"""Seconds that the mesh may take to start."""
STOP_TIMEOUT = 60.0
"""Seconds that the mesh may take to stop."""
QUIET_CHECKS = 2
"""Checks in a row, a second apart, that must find no waiting event."""
FAILURE_DELAY = 0.1
"""Seconds before the next call of a client whose call was not accepted."""
RECOVERY_TIMEOUT = 15.0
"""Seconds that a fault waits for the recovery of the mesh after the fault before."""
PROGRESS_INTERVAL = 10.0
"""Seconds between two lines of progress in a file. In a terminal, one line changes every second."""
FIRST_OFFERED = 5_000_000
"""Number of the first word of the attackers; the clients' words begin with 0."""
_ENDED = re.compile(r"(\S+) died with (?!signal SIGKILL)(.*?);")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentLimits:
    """Limits of an experiment.

    Attributes:
        duration: Seconds of fault injection.
        recovery_timeout: Seconds that the mesh may take afterwards to work and to deliver all events.
        rate: Faults a second, at most.
        kills: Number of killed processes after which it ends earlier; 0: no such limit.
        clients: Concurrent calls.
    """

    duration: float
    recovery_timeout: float
    rate: float
    kills: int
    clients: int


@dataclass(eq=False)
class Experiment:
    """One run of ``mesh chaos``.

    Attributes:
        manifest: The mesh, with addresses, state and databases of this run only.
        contract: Its contract.
        workload: The calls to make.
        targets: The possible targets of faults.
        databases: Service → URL of its database.
        outages: Target that is a database → function that makes it unavailable.
        seed: Seed of the words and of the fault plan.
        limits: The limits.
        uncounted: Methods (``package.Service/Method``) whose effects are not counted.
        doomed: Whether the event with a word must become a dead letter of each method; None: unknown.
        people: Whether hostile clients attack the mesh meanwhile, beside an honest one.
    """

    manifest: Manifest
    contract: Contract
    workload: Workload
    targets: list[str]
    databases: Mapping[str, str]
    outages: Mapping[str, Outage]
    seed: int
    limits: ExperimentLimits
    uncounted: Collection[str] = ()
    doomed: Callable[[str], bool] | None = None
    people: bool = False

    def __post_init__(self) -> None:
        self._campaign: Campaign | None = None
        self._offered: list[str] = []  # words of the costly requests of the attackers
        self._calls: dict[str, CallOutcome] = {}
        self._accepted: list[tuple[float, float]] = []  # time of the call's start and of its response
        self._latest_start = 0.0  # latest start of an accepted call
        self._call_accepted = asyncio.Event()
        self._clients_stop = asyncio.Event()
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
        """Run the experiment and print the ledger.

        Returns:
            0 when nothing was lost or doubled, the mesh worked after the last fault, no process ended by itself, and
            the mesh stopped at SIGINT; else 1.

        Raises:
            Faults: The mesh, or a database, did not start.
        """
        print(
            f"calls: {self.workload.method.path.lstrip('/')} through the edge; event: {self.workload.event}; "
            f"targets: {', '.join(self.targets)}; seed: {self.seed}",
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
            injector = await self._ready(process)
            works = await self._inject_while_calling(process, injector)
            code = await self._print_results(injector, works=works)
        finally:
            stopped = await _stop(process)
            troubles = unexpected_exits(self._log.read_text(errors="replace"), process.returncode or 0, stopped=stopped)
            code = code or int(bool(troubles))
            if code:
                (self._folder / "failed").touch()
        print("\n".join(troubles), end="\n" if troubles else "")
        if code:
            print(f"databases and log stay in {self._folder}")
        return code

    async def _ready(self, process: asyncio.subprocess.Process) -> FaultInjector:
        until = time.monotonic() + START_TIMEOUT
        while time.monotonic() < until and process.returncode is None:
            running = run_state.running(self.manifest.state)
            if running is not None and running.edge:
                self._edge, self._broker = running.edge, running.broker
                if self.people:
                    self._campaign = self._new_campaign(running.addresses)
                for url in self.databases.values():
                    await evidence.run_query(url, evidence.install_commit_log)
                return FaultInjector(running.pid, self.targets, self.outages, self._log)
            await asyncio.sleep(0.05)  # the state file cannot be awaited
        last = self._log.read_text(errors="replace").strip().splitlines()[-5:]
        raise Faults([Fault("mesh up", f"did not start; it said:\n{chr(10).join(last)}")])

    def _new_campaign(self, addresses: Mapping[str, str]) -> Campaign:
        edge = attacked_paths.edge_target(self._edge, self.contract, self.workload)
        sidecars = attacked_paths.sidecar_targets(addresses, self.contract, self._hosts())
        return Campaign([edge, *sidecars], attacked_paths.honest_request(self.contract), self.seed, self._new_bodies)

    def _new_bodies(self, number: int) -> tuple[str, ...]:
        """Return the bodies of requests with words that no other request has; they count as unknown calls."""
        first = FIRST_OFFERED + len(self._offered)
        words = [requests.word(self.seed, first + index) for index in range(number)]
        self._offered += words
        return tuple((requests.request(self.workload, word)[2] or b"").decode() for word in words)

    # -- calls and faults --

    async def _inject_while_calling(self, process: asyncio.subprocess.Process, injector: FaultInjector) -> bool:
        """Make calls and inject faults; return whether the mesh works after the last fault."""
        self._began = time.monotonic()
        ended = asyncio.create_task(process.wait())
        injecting = asyncio.create_task(self._inject(injector))
        numbers = range(self.limits.clients)
        clients: list[asyncio.Task[None]] = [asyncio.create_task(self._call(number)) for number in numbers]
        others: list[asyncio.Task[Any]] = [asyncio.create_task(self._progress(injector)), ended, injecting]
        forever: list[asyncio.Task[None]] = []
        if self._campaign is not None:
            forever.append(asyncio.create_task(self._campaign.attack()))
            clients.append(asyncio.create_task(self._campaign.serve()))
            others += forever
        try:
            await asyncio.wait(
                [ended, injecting, *forever], timeout=self.limits.duration, return_when=asyncio.FIRST_COMPLETED
            )
            for task in (injecting, *forever):
                if task.done():
                    task.result()
                task.cancel()
            await injector.end()
            works = await self._wait_until_works(time.monotonic(), self.limits.recovery_timeout)
            self._clients_stop.set()
            if self._campaign is not None:
                self._campaign.end()
            await asyncio.gather(*clients)
        finally:
            for task in (*others, *clients):
                task.cancel()
            await asyncio.gather(*others, *clients, return_exceptions=True)
        if process.returncode is not None:
            raise Faults([Fault("mesh up", f"ended with exit code {process.returncode}")])
        return works

    async def _call(self, client: int) -> None:
        """Make calls one after the other, each with a word of its own. No call is retried."""
        number = client
        while not self._clients_stop.is_set():
            word = requests.word(self.seed, number)
            number += self.limits.clients
            start, found = time.monotonic(), CallOutcome.UNKNOWN
            try:
                found = ledger.outcome(await requests.send(self._edge, self.workload, word))
            finally:
                self._calls[word] = found
            if found is CallOutcome.ACCEPTED:
                self._accepted.append((start, time.monotonic()))
                self._latest_start = max(self._latest_start, start)
                self._call_accepted.set()
            else:
                await asyncio.sleep(FAILURE_DELAY)

    async def _wait_until_works(self, since: float, timeout: float) -> bool:  # noqa: ASYNC109 - a timeout is no error
        """Wait until a call that was started since a time has been accepted; return False after the timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._latest_start < since:
                    self._call_accepted.clear()
                    await self._call_accepted.wait()
        return self._latest_start >= since

    async def _inject(self, injector: FaultInjector) -> None:
        due = last = time.monotonic()
        for injection in plan.injections(self.seed, self.limits.rate, self.targets):
            due += injection.delay
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if not injection.immediate:
                await self._wait_until_works(last, RECOVERY_TIMEOUT)
            if await injector.inject(injection) is not None:
                last = injector.injected[-1][0]
                if self.limits.kills and plan.killed_processes(injector.injected) >= self.limits.kills:
                    return

    async def _progress(self, injector: FaultInjector) -> None:
        while True:
            await asyncio.sleep(1 if sys.stderr.isatty() else PROGRESS_INTERVAL)
            self._say(injector)

    def _say(self, injector: FaultInjector, more: str = "") -> None:
        outcomes = Counter(self._calls.values())
        counts = "  ".join(f"{outcome.value} {outcomes[outcome]:,}" for outcome in CallOutcome)
        faults = f"faults {len(injector.injected):,}  killed {plan.killed_processes(injector.injected):,}"
        line = f"{time.monotonic() - self._began:6.0f} s  {faults}  {counts}{more}"
        terminal = sys.stderr.isatty()
        print(f"\r{line:<120}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)

    # -- results --

    async def _print_results(self, injector: FaultInjector, *, works: bool) -> int:
        """Wait until all events are delivered, count, and print; return the exit code."""
        self._say(injector)
        async with self._connected() as broker:
            quiet = await self._wait_until_quiet(broker, injector)
            found = await self._count_all(broker)
        if sys.stderr.isatty():
            print(file=sys.stderr)
        print(f"\n{recovery.show(injector.injected, recovery.recoveries(injector.injected, self._accepted))}")
        print(f"\n{ledger.show(found)}")
        held = self._campaign is None or self._campaign.held
        if self._campaign is not None:
            print(f"\n{self._campaign.show()}")
        timeout = f"{self.limits.recovery_timeout:g} s"
        if not quiet:
            print(f"events still waited after {timeout}; those that are missing count as lost")
        if not works:
            print(f"no call was accepted within {timeout} after the last fault; see the log of the mesh")
        if not held:
            print(f"fewer than {MIN_SUCCESS_PERCENT:g} % of the honest requests were served")
        return 0 if works and quiet and held and not found.lost and not found.doubled else 1

    async def _wait_until_quiet(self, broker: Broker, injector: FaultInjector) -> bool:
        """Wait until outboxes are empty and all events are delivered; return False after the timeout."""
        until, quiet = time.monotonic() + self.limits.recovery_timeout, 0
        while quiet < QUIET_CHECKS and time.monotonic() < until:
            outboxes = sum([await evidence.run_query(url, evidence.outbox_size) for url in self.databases.values()])
            lag = await evidence.undelivered(await broker.ready(), self.contract)
            quiet = 0 if outboxes or lag else quiet + 1
            self._say(injector, f"  in outboxes {outboxes:,}  undelivered {lag:,}")
            if quiet < QUIET_CHECKS:
                await asyncio.sleep(1)
        return quiet == QUIET_CHECKS

    async def _count_all(self, broker: Broker) -> ledger.Ledger:
        observations = await evidence.collect(
            await broker.ready(),
            self.contract,
            self._hosts(),
            self.databases,
            {**self._calls, **dict.fromkeys(self._offered, CallOutcome.UNKNOWN)},
            self.workload.event,
            self.uncounted,
            self.doomed,
        )
        return ledger.ledger(observations)

    def _hosts(self) -> dict[str, list[str]]:
        """Return the gRPC services that each service of mesh.toml serves."""
        return {
            name: [one.name for one in topology.served(self.manifest, self.contract, name)]
            for name in self.manifest.services
        }

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Broker]:
        named = mesh_certificates.with_broker(self.manifest, self._broker)
        broker = Broker(service_events.broker_settings(named, identity_keys.OPERATOR), "mesh-chaos")
        broker.start()
        try:
            await asyncio.wait_for(broker.ready(), START_TIMEOUT)
            yield broker
        finally:
            await broker.stop()


def unexpected_exits(log: str, code: int, *, stopped: bool) -> list[str]:
    """Return a sentence for each process that ended by itself or did not stop.

    Args:
        log: Output of ``mesh up``.
        code: Its exit code.
        stopped: Whether it stopped at SIGINT.
    """
    found = [
        f"{name} ended by itself {times} times, with {end}"
        for (name, end), times in Counter(_ENDED.findall(log)).items()
    ]
    if not stopped:
        return [*found, f"the mesh did not stop within {STOP_TIMEOUT:g} s and was killed"]
    return [*found, f"mesh up ended with exit code {code}"] if code else found


async def _stop(process: asyncio.subprocess.Process) -> bool:
    """Stop the mesh (SIGINT); return whether it ended in time."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()
            return False
    return True

"""Two replicas of every service on PostgreSQL, each a process: they share the work; none of it is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from broker_process import BrokerProcess
from mesh_process import ROOT, START, http

SERVICES = ("login", "audit", "registration")
PASSWORD, ADMIN = "correct horse battery", "the admin's own password"
EVERY = '"7 * * * *"', '"@every 1s"'
"""The schedule of PurgeSessions, and what it is here."""


_PORTS = itertools.count(21_000 + 1_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) + os.getpid() % 900)
"""Below those that the kernel gives away by itself: a replica comes back to its port."""


def free_port() -> int:
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


class Replicas:
    """The sample mesh: ``mesh sidecar`` twice for each service and one ``mesh edge``, without ``mesh up``."""

    def __init__(self, folder: Path, databases: dict[str, str], broker: str) -> None:
        self.folder, self.databases = folder, databases
        shutil.copytree(ROOT / "protos", folder / "protos")
        contract = folder / "protos/login/v1/login.proto"
        assert contract.read_text().count(EVERY[0]) == 1
        contract.write_text(contract.read_text().replace(*EVERY))
        shutil.copy(ROOT / "mesh.toml", folder)
        (folder / "services").symlink_to(ROOT / "services")
        self.ports = {(name, number): free_port() for name in SERVICES for number in (0, 1)}
        self.ports["edge", 0] = free_port()
        self.url = f"http://127.0.0.1:{self.ports['edge', 0]}"
        self.running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_"))}
        self.environ |= {"MESH_BROKER": broker, "MESH_SERVICES_REGISTRATION_SETTINGS_ADMIN_PASSWORD": ADMIN}
        self.environ["MESH_EDGE_LISTEN"] = f"127.0.0.1:{self.ports['edge', 0]}"
        for name in SERVICES:
            both = ",".join(f"127.0.0.1:{self.ports[name, number]}" for number in (0, 1))
            self.environ[f"MESH_SERVICES_{name.upper()}_ADDRESS"] = both
            self.environ[f"MESH_SERVICES_{name.upper()}_DATABASE"] = databases[name]
        for command in ("generate", "keys"):
            subprocess.run(
                [sys.executable, "-m", "mesh", command], cwd=folder, env=self.environ, check=True, capture_output=True
            )

    def start(self, *replicas: tuple[str, int]) -> None:
        """Start these processes, and wait until they accept."""
        for name, number in replicas:
            words = ["edge"] if name == "edge" else ["sidecar", name]
            listen = {f"MESH_SERVICES_{name.upper()}_LISTEN": f"127.0.0.1:{self.ports[name, number]}"}
            with self.log(name, number).open("ab") as log:
                self.running[name, number] = subprocess.Popen(
                    [sys.executable, "-m", "mesh", *words, "--file", "mesh.toml"],
                    cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env={**self.environ, **(listen if name != "edge" else {})},
                )  # fmt: skip
        until = time.monotonic() + START
        for replica in replicas:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", self.ports[replica]), timeout=1).close()
                    break
                except OSError:
                    assert self.running[replica].poll() is None, self.log(*replica).read_text()
                    assert time.monotonic() < until, self.log(*replica).read_text()
                    time.sleep(0.02)  # a port says nothing when it opens

    def stop(self, name: str, number: int) -> None:
        """SIGTERM; it has to end by itself with 0."""
        process = self.running.pop((name, number))
        process.send_signal(signal.SIGTERM)
        assert process.wait(25) == 0, self.log(name, number).read_text()

    def kill(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()

    def log(self, name: str, number: int) -> Path:
        return self.folder / f"{name}{number}.log"

    def rows(self, service: str, query: str) -> list[tuple[Any, ...]]:
        """What a query finds in the database of a service."""

        async def fetch() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(self.databases[service])
            try:
                return [tuple(row) for row in await connection.fetch(query)]
            finally:
                await connection.close()

        return asyncio.run(fetch())

    def number(self, service: str, query: str) -> int:
        return int(self.rows(service, query)[0][0])

    def wait(self, what: Callable[[], bool], seconds: float = 40.0) -> bool:
        """Wait for what other processes do to a database, which tells nobody here."""
        until = time.monotonic() + seconds
        while not what():
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True


@pytest.fixture
def mesh(tmp_path: Path, new_postgres: Callable[[], str]) -> Iterator[Replicas]:
    broker = BrokerProcess()
    broker.start()
    running = Replicas(tmp_path, {name: new_postgres() for name in SERVICES}, broker.url)
    try:
        for name in SERVICES:  # in the order of their calls: registration calls login when it starts
            running.start((name, 0), (name, 1))
        running.start(("edge", 0))
        yield running
    finally:
        running.kill()
        broker.stop()


class Registrations:
    """Registers one user after the other, in a thread; keeps whom it was told of."""

    def __init__(self, mesh: Replicas) -> None:
        self.users: list[str] = []
        self.others: list[int] = []
        self._mesh = mesh
        self._more = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._ending:
            number += 1
            user = {"name": f"user{number}", "email": f"user{number}@example.com", "password": PASSWORD}
            answer = http(f"{self._mesh.url}/v1/users", "POST", user)
            with self._more:
                if answer.status == 200:
                    self.users.append(answer.json["id"])
                else:
                    self.others.append(answer.status)
                self._more.notify_all()

    def progress(self, more: int) -> None:
        """Wait until so many more have registered."""
        with self._more:
            target = len(self.users) + more
            assert self._more.wait_for(lambda: len(self.users) >= target, 60), self.others

    def stop(self) -> None:
        self._ending = True
        self._thread.join(60)


def watched(mesh: Replicas, number: int, token: str, last: int) -> list[int]:
    """What one replica of audit sends in its live stream, up to the record ``last``."""
    from audit.v1 import audit_pb2 as pb
    from audit.v1.audit_pb2_grpc import AuditStub

    with grpc.insecure_channel(f"127.0.0.1:{mesh.ports['audit', number]}") as channel:
        found: list[int] = []
        stream = AuditStub(channel).WatchRecords(
            pb.WatchRecordsRequest(after=1), metadata=[("authorization", f"Bearer {token}")], timeout=30
        )
        for record in stream:
            found.append(record.sequence)
            if record.sequence >= last:
                stream.cancel()
                return found
    return found


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_replicas_of_every_service_do_everything_once(mesh: Replicas) -> None:
    load = Registrations(mesh)
    try:
        load.progress(5)
        for name in SERVICES:  # a rolling restart, one replica after the other
            for number in (0, 1):
                mesh.stop(name, number)
                load.progress(1)
                mesh.start((name, number))
        load.progress(5)
    finally:
        load.stop()
    assert set(load.others) <= {503}
    # Each registration is its event and the two changes of its row.
    once = "select user_id, count(*), count(distinct event_id) from records group by user_id"

    def recorded() -> dict[str, tuple[int, int]]:
        return {user: (count, ids) for user, count, ids in mesh.rows("audit", once)}

    mesh.wait(lambda: all(recorded().get(user, (0, 0))[0] >= 3 for user in load.users))
    found = recorded()
    assert {user: found.get(user) for user in load.users} == dict.fromkeys(load.users, (3, 3))
    assert len(load.users) <= mesh.number("registration", "select count(*) from users")
    for name in SERVICES:
        assert mesh.wait(lambda name=name: mesh.number(name, "select count(*) from mesh_outbox") == 0)
        # One relay: the advisory lock of the outbox, held once; its owner may just have lost it.
        locks = (
            "select count(*) from pg_locks where locktype = 'advisory' and granted and objsubid = 2 and database = "
            "(select oid from pg_database where datname = current_database()) and classid = 1835365224"
        )
        assert mesh.wait(lambda name=name, locks=locks: mesh.number(name, locks) == 1)

    session = http(f"{mesh.url}/v1/sessions", "POST", {"login": "admin", "password": ADMIN})
    last = mesh.number("audit", "select last from counter")
    streams = [watched(mesh, number, session.json["accessToken"], last) for number in (0, 1)]
    assert streams[0] == streams[1] == list(range(2, last + 1))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_replicas_run_a_schedule_once(mesh: Replicas) -> None:
    ticks = "select count(*) from mesh_inbox where consumer like '%PurgeSessions%'"
    begun = mesh.number("login", ticks)
    began = time.monotonic()
    assert mesh.wait(lambda: mesh.number("login", ticks) >= begun + 4)
    assert mesh.number("login", ticks) - begun <= time.monotonic() - began + 1
    mesh.stop("login", 0)
    mesh.stop("login", 1)
    ran = sum(mesh.log("login", number).read_text().count("sessions had expired") for number in (0, 1))
    assert ran == mesh.number("login", ticks)

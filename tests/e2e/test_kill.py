"""kill -9 of each process in turn while requests flow: the mesh comes back, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mesh_process import Mesh, children, http, sample

PASSWORD = "correct horse battery"


class Load:
    """Registers users, each try with its own name; keeps what was acknowledged. Pauses after a refusal only."""

    def __init__(self, mesh: Mesh, workers: int = 4) -> None:
        self.mesh = mesh
        self.acknowledged: list[dict[str, Any]] = []
        self.others: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index,), daemon=True) for index in range(workers)]
        for thread in self._threads:
            thread.start()

    def _run(self, worker: int) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            name = f"load{worker}x{count}"
            user = {"name": name, "email": f"{name}@example.com", "password": PASSWORD}
            try:
                answer = http(f"{self.mesh.edge}/v1/users", "POST", user)
            except OSError as error:  # the edge itself was killed
                self.others.append(f"connection: {type(error).__name__}")
                time.sleep(0.05)
                continue
            if answer.status == 200:
                self.acknowledged.append({**user, "id": answer.json["id"]})
            else:
                self.others.append(f"{answer.status} {answer.json['code']}")
                time.sleep(0.05)

    def progress(self, more: int = 5) -> None:
        """Wait until so many more have been acknowledged."""
        target, until = len(self.acknowledged) + more, time.monotonic() + 60
        while len(self.acknowledged) < target:
            assert time.monotonic() < until, self.others[-20:]
            time.sleep(0.02)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


@pytest.mark.timeout(300)
def test_each_process_in_turn(tmp_path: Path) -> None:
    mesh = sample(tmp_path / "state")
    try:
        mesh.ready()
        load = Load(mesh)
        load.progress()
        for name in ("login", "registration", "edge"):
            killed = mesh.child(name)
            os.kill(killed, signal.SIGKILL)
            load.progress(10)
            assert mesh.child(name) != killed
        load.stop()
        # While a service is away its callers see UNAVAILABLE, or a deadline; never a lie, never a bug.
        assert {what for what in load.others if not what.startswith("connection")} <= {"503 14", "504 4"}, load.others
        token = http(f"{mesh.edge}/v1/sessions", "POST", {"login": "admin", "password": "admin's own password"}).json[
            "accessToken"
        ]
        for user in load.acknowledged:
            stored = http(f"{mesh.edge}/v1/users/{user['id']}", token=token)
            assert (stored.status, stored.json["email"]) == (200, user["email"])
        for user in load.acknowledged[:: max(1, len(load.acknowledged) // 10)]:
            session = http(f"{mesh.edge}/v1/sessions", "POST", {"login": user["name"], "password": PASSWORD})
            assert session.status == 200
    finally:
        assert mesh.stop() == 0, mesh.output()
    assert children(mesh.process.pid) == {}


def test_children_end_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    mesh = sample(tmp_path / "state")
    try:
        mesh.ready()
        started = children(mesh.process.pid)
        assert len(started) == 4
    finally:
        mesh.process.kill()
        mesh.process.wait()
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < until
        time.sleep(0.05)

"""The sample mesh, whole: what registration does reaches login and audit, over the real broker."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from mesh_process import Mesh, sample
from mesh_process import http as request

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    mesh = sample(tmp_path_factory.mktemp("audited") / "state")
    try:
        yield mesh.ready()
    finally:
        assert mesh.stop() == 0, mesh.output()


@pytest.fixture(scope="module")
def admin(audited: Mesh) -> str:
    token: str = login(audited, "admin", "admin's own password")
    return token


def register(mesh: Mesh, name: str) -> str:
    user = {"name": name, "email": f"{name}@example.com", "password": PASSWORD}
    answer = request(f"{mesh.edge}/v1/users", "POST", user)
    assert answer.status == 200, answer
    found: str = answer.json["id"]
    return found


def login(mesh: Mesh, name: str, password: str = PASSWORD) -> str:
    answer = request(f"{mesh.edge}/v1/sessions", "POST", {"login": name, "password": password})
    assert answer.status == 200, answer
    found: str = answer.json["accessToken"]
    return found


def records(mesh: Mesh, admin: str, user_id: str, number: int) -> list[Any]:
    """What is recorded of a user, oldest first, once there are so many."""
    until = time.monotonic() + 30
    while True:
        answer = request(f"{mesh.edge}/v1/audit?userId={user_id}", token=admin)
        assert answer.status == 200, answer
        found: list[Any] = answer.json.get("records", [])[::-1]
        if len(found) >= number or time.monotonic() > until:
            return found
        time.sleep(0.05)  # recorded by another process, which tells nobody but watchers


def kinds(found: list[Any]) -> list[str]:
    return sorted(
        record["change"]["operation"] if "change" in record else record["type"].removeprefix("registration.v1.")
        for record in found
    )


def test_what_happens_to_a_user_is_recorded_once(audited: Mesh, admin: str) -> None:
    user_id = register(audited, "ada")
    token = login(audited, "ada")
    answer = request(f"{audited.edge}/v1/users/me?updateMask=name", "PATCH", {"name": "lovelace"}, token=token)
    assert answer.status == 200, answer
    with sqlite3.connect(audited.state / "registration.db") as database:  # by hand
        database.execute("UPDATE users SET email = 'hand@example.com' WHERE id = ?", (user_id,))
    database.close()
    assert request(f"{audited.edge}/v1/users/me", "DELETE", token=token).status == 200
    found = records(audited, admin, user_id, 8)
    expected = ["DELETE", "INSERT", "UPDATE", "UPDATE", "UPDATE", "UserDeleted", "UserRegistered", "UserUpdated"]
    assert kinds(found) == expected
    rows = [record["change"] for record in found if "change" in record]
    assert [row["operation"] for row in rows] == ["INSERT", "UPDATE", "UPDATE", "UPDATE", "DELETE"]
    assert rows[-1]["before"]["email"] == "hand@example.com"
    assert len({record["eventId"] for record in found}) == 8
    assert request(f"{audited.edge}/v1/sessions", "POST", {"login": "lovelace", "password": PASSWORD}).status == 401


def test_the_record_is_for_admins(audited: Mesh) -> None:
    register(audited, "grace")
    token = login(audited, "grace")
    for path in ("/v1/audit", "/v1/audit:watch"):
        assert request(f"{audited.edge}{path}", token=token).status == 403
        assert request(f"{audited.edge}{path}").status == 401


def test_a_registration_appears_in_the_live_stream(audited: Mesh, admin: str) -> None:
    newest = request(f"{audited.edge}/v1/audit?pageSize=1", token=admin).json["records"][0]["sequence"]
    connection = http.client.HTTPConnection(urlsplit(audited.edge).netloc, timeout=30)
    headers = {"authorization": f"Bearer {admin}", "accept": "text/event-stream"}
    try:
        connection.request(
            "GET", f"/v1/audit:watch?after={newest}&type=registration.v1.UserRegistered", headers=headers
        )
        user_id = register(audited, "hopper")
        stream = connection.getresponse()
        assert stream.headers["content-type"].startswith("text/event-stream")
        told: list[str] = []
        while user_id not in told:
            line = stream.readline()
            assert line, told
            if line.startswith(b"data: "):
                told.append(json.loads(line[6:])["userId"])
    finally:
        connection.close()


def test_the_broker_goes_and_comes_back(audited: Mesh, admin: str) -> None:
    """Registrations go on without it; logins of those wait, and everything is recorded once it is back."""
    os.kill(broker(audited), signal.SIGKILL)
    user_id = register(audited, "lamarr")
    until = time.monotonic() + 60
    while request(f"{audited.edge}/v1/sessions", "POST", {"login": "lamarr", "password": PASSWORD}).status == 503:
        assert time.monotonic() < until
    login(audited, "lamarr")
    assert kinds(records(audited, admin, user_id, 3)) == ["INSERT", "UPDATE", "UserRegistered"]


def broker(mesh: Mesh) -> int:
    command = ["ps", "-o", "pid=,args=", "--ppid", str(mesh.process.pid)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return next(int(line.split()[0]) for line in lines if "nats-server" in line)

"""``mesh chaos`` itself: a short one over the sample mesh, and what it says when there is nothing to count."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mesh_process import ROOT


def chaos(*words: str, where: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_"))}
    return subprocess.run(
        [sys.executable, "-P", "-m", "mesh", "chaos", *words],
        capture_output=True, text=True, check=False, cwd=where, env=inherited | environment,
        timeout=220,
    )  # fmt: skip


@pytest.mark.timeout(240)
def test_nothing_is_lost_and_nothing_doubled(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    done = chaos(
        "--kills", "4", "--duration", "20s", "--rate", "2", "--seed", "5", "--clients", "2", "--keep", str(folder)
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "lost 0, doubled 0" in said
    assert int(re.search(r"^all +(\d+)", said, re.MULTILINE)[1]) > 0
    accepted = int(re.search(r"accepted calls → \S+\s+(\d+)", said)[1])
    # Its word is checked: what registration stored is what login knows and audit has recorded.
    stored = rows(folder / "registration.db", "SELECT id FROM users WHERE state = 'active'")
    audited = rows(folder / "audit.db", "SELECT user_id FROM records WHERE type = 'registration.v1.UserRegistered'")
    active = rows(folder / "login.db", "SELECT user_id FROM credentials WHERE active")
    assert 0 < accepted <= len(stored)
    assert sorted(stored) == sorted(audited) == sorted(active)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nothing_is_lost_while_people_attack_and_an_honest_client_is_served() -> None:
    done = chaos("--people", "--kills", "3", "--duration", "25s", "--rate", "0.3", "--seed", "3", "--clients", "2")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "lost 0, doubled 0" in said
    served, sent = re.search(r"^honest requests served: ([\d,]+) of ([\d,]+) ", said, re.MULTILINE).groups()
    assert int(served.replace(",", "")) >= 0.99 * int(sent.replace(",", "")) > 0
    attacks = re.findall(r"^(\S+) +\d+ +[\d,]+ +(?:connection|HTTP|gRPC|reset|GOAWAY)", said, re.MULTILINE)
    assert attacks, said


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nothing_is_lost_with_a_postgresql_that_is_killed() -> None:
    done = chaos(
        "--postgresql", "--kill", "databases", "--kills", "3", "--duration", "20s", "--seed", "1", "--clients", "2"
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "lost 0, doubled 0" in said
    assert "not counted" not in said
    assert int(re.search(r"^postgresql +(\d+)", said, re.MULTILINE)[1]) > 0


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_functions_that_end_in_every_way_lose_and_double_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    options = ("--endings", "--workers", "--kills", "4", "--duration", "15s", "--seed", "4", "--keep", str(folder))
    done = chaos(*options, where=tmp_path)  # it needs no project
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "lost 0, doubled 0" in said
    doomed = re.findall(r"^doomed → dead letters of (\S+) +(\d+) +(\d+)", said, re.MULTILINE)
    assert [name for name, expected, found in doomed if expected == found != "0"] == [
        "endings.v1.Sink/OnMade", "endings.v1.Sink/OnRow", "endings.v1.Steps/OnMade",
    ], said  # fmt: skip
    log = (folder / "mesh.log").read_text(errors="replace")
    assert "attempt 1 of event" in log
    assert "was never retrieved" not in log


def test_a_mesh_that_publishes_nothing_cannot_be_counted(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-P", "-m", "mesh", "new", "hello"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    done = chaos("--file", str(tmp_path / "mesh.toml"))
    assert done.returncode == 2
    assert "a service with a `database` in mesh.toml that `publishes` events" in done.stderr


def test_a_database_of_somebody_is_not_touched() -> None:
    done = chaos(MESH_SERVICES_LOGIN_DATABASE="postgresql://somebody@db/login")
    assert done.returncode == 1
    assert (
        "[services.login] database: its data is never touched; with --postgresql the service gets a database"
        in done.stderr
    )


def rows(file: Path, query: str) -> list[str]:
    with closing(sqlite3.connect(file)) as connection:
        return [row[0] for row in connection.execute(query)]

"""A program that is tied to its parent and to a file that only one may hold."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from mesh.control.supervise import exec_with_parent
from mesh.events.broker import nats_server

SLEEPER = (sys.executable, "-c", "print('runs', flush=True); import time; time.sleep(60)")


def test_only_one_at_a_time(tmp_path: Path) -> None:
    command = exec_with_parent.command(str(tmp_path / "lock"), SLEEPER)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == b"runs\n"
            second = subprocess.run(command, capture_output=True, text=True, check=False)
            assert second.returncode == 1
            assert "a process that an earlier `mesh up` started still runs" in second.stderr
        finally:
            first.kill()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as third:
        try:
            assert third.stdout is not None
            assert third.stdout.readline() == b"runs\n"
        finally:
            third.kill()


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    text = (
        "import subprocess, sys, time\n"
        "from mesh.control.supervise import exec_with_parent\n"
        f"command = exec_with_parent.command({str(tmp_path / 'lock')!r}, {SLEEPER!r})\n"
        "child = subprocess.Popen(command, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    until = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_parent_that_is_gone_already() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mesh.control.supervise.exec_with_parent", str(os.getppid()), "/dev/null", *SLEEPER],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "the process that started this has ended\n")


def test_what_is_shown_of_the_servers_log() -> None:
    assert nats_server.shown("[7] 2026/11/22 00:01:02.000003 [INF] Server is ready") is None
    assert nats_server.shown("[7] 2026/11/22 00:01:02.000003 [WRN] Slow") == (
        '{"time": "2026-11-22T00:01:02.000003Z", "level": "WARNING", "logger": "nats-server", "message": "Slow"}'
    )
    assert nats_server.shown("panic: it happens") == "panic: it happens"

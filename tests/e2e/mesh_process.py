"""A whole mesh as a user starts it: ``mesh up`` in a process of its own, on free ports, with its own state."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
START = 90
"""Seconds for a start on a busy machine."""


class Answer:
    """What an HTTP request was answered with."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"{self.status} {self.body.decode(errors='replace')}"


def http(
    url: str, method: str = "GET", body: Any = None, token: str = "", headers: dict[str, str] | None = None
) -> Answer:
    """Make one HTTP request; any status is an answer."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers=headers or {})  # noqa: S310 - loopback
    if data is not None and "Content-type" not in request.headers:
        request.add_header("content-type", "application/json")
    if token:
        request.add_header("authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - loopback
            return Answer(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


class Mesh:
    """``mesh up`` of one mesh.toml.

    Args:
        file: The mesh.toml.
        state: Where its state goes.
        environ: More environment.
        within: What the command stands behind, such as ``on_a_small_disk``.
    """

    def __init__(
        self, file: Path, state: Path, environ: dict[str, str], *options: str, within: Sequence[str] = ()
    ) -> None:
        self.state = state
        self.log = state.with_suffix(".log")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_"))}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", "mesh", "up", "--file", str(file), *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
                env={**inherited, "MESH_STATE": str(state), **environ},
            )  # fmt: skip

    @property
    def operator(self) -> str:
        """The file with which an operator authenticates at the broker."""
        return str(self.state / "identity" / "operator.nkey")

    def ready(self) -> Mesh:
        """Wait until it says where it listens."""
        until = time.monotonic() + START
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise AssertionError(f"mesh up ended with {self.process.returncode}:\n{self.output()}")
            running = self.running()
            if running.get("addresses"):
                self.addresses: dict[str, str] = running["addresses"]
                self.edge: str = running["edge"]
                return self
            time.sleep(0.05)  # the file is the only thing to watch
        raise AssertionError(f"mesh up was not ready in {START} s:\n{self.output()}")

    def running(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.state / "up.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, what: Callable[[], object], seconds: float = 40) -> None:
        """Wait for what nothing tells of: what the mesh writes, or exports by its interval."""
        until = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < until, self.output()
            time.sleep(0.05)

    def child(self, name: str) -> int:
        """Return the process id of a component."""
        found = children(self.process.pid)
        return next(pid for pid, line in found.items() if line.split()[4:5] == [name] or line.split()[5:6] == [name])

    def stop(self) -> int:
        """End it as Ctrl-C does; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode


def children(pid: int) -> dict[int, str]:
    """Return the processes that ``pid`` started: id → command line."""
    lines = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    ).stdout.splitlines()  # fmt: skip
    return {int(line.split(None, 1)[0]): line.split(None, 1)[1] for line in lines if " mesh " in line}


def sample(state: Path, *, within: Sequence[str] = (), **environ: str) -> Mesh:
    """Start the sample mesh on free ports; ``ready`` waits for it."""
    return Mesh(
        ROOT / "mesh.toml",
        state,
        {
            "MESH_EDGE_LISTEN": "127.0.0.1:0",
            "MESH_SERVICES_REGISTRATION_LISTEN": "127.0.0.1:0",
            "MESH_SERVICES_LOGIN_LISTEN": "127.0.0.1:0",
            "MESH_SERVICES_AUDIT_LISTEN": "127.0.0.1:0",
            "MESH_SERVICES_REGISTRATION_DATABASE": f"sqlite:///{state}/registration.db",
            "MESH_SERVICES_LOGIN_DATABASE": f"sqlite:///{state}/login.db",
            "MESH_SERVICES_AUDIT_DATABASE": f"sqlite:///{state}/audit.db",
            "MESH_SERVICES_REGISTRATION_SETTINGS_ADMIN_PASSWORD": "admin's own password",
            **environ,
        },
        within=within,
    )

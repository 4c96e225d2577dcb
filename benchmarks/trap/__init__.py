"""Mesh under attack: the sample mesh of a checkout and one more service, ``trap``, in a temporary folder."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.chaos.kills import processes_by_target
from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.honest_client import HonestRequest

__all__ = ["ROOT", "MeshUnderAttack", "running_mesh", "write_project"]

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
START_TIMEOUT = 90.0
"""Seconds that the mesh may take to start."""
STOP_TIMEOUT = 30.0
PASSWORD = "correct horse battery"  # noqa: S105 - of users of a temporary mesh
LARGE_SIZE = 1_000_000
"""Characters of a large response."""
SERVICES = ("registration", "login", "audit", "trap")
USERS = 3


@dataclass(slots=True)
class MeshUnderAttack:
    """A running mesh.

    Attributes:
        edge: URL of the edge; ``broker`` is that of the broker.
        addresses: Service → ``host:port``.
        up: Process id of ``mesh up``.
        log: File of its output.
        users: Body of a login request of each user.
        honest: Requests of the honest client.
    """

    edge: str
    addresses: dict[str, str]
    broker: str
    up: int
    log: Path
    users: tuple[str, ...] = ()
    honest: tuple[HonestRequest, ...] = ()

    def processes(self, *, last: bool = False) -> dict[str, int]:
        """Return the process id of each component; of several (workers) the first, the fork server, or the last."""
        listing = subprocess.run(
            ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        )
        return {name: pids[-1 if last else 0] for name, pids in processes_by_target(self.up, listing.stdout).items()}

    def edge_target(self, rate: float = 0.0) -> AttackTarget:
        """Return the edge as a target."""
        host, _, port = self.edge.rpartition("/")[2].rpartition(":")
        return AttackTarget(
            host=host, port=int(port), get="/.well-known/jwks.json", post="/trap/echo",
            large=f"/trap/large?size={LARGE_SIZE}", stream="/trap/wait", hung="/trap/hang", costly="/v1/sessions",
            costly_bodies=self.users, rate=rate,
        )  # fmt: skip

    def sidecar_target(self) -> AttackTarget:
        """Return the sidecar of ``trap`` as a target."""
        host, _, port = self.addresses["trap"].rpartition(":")
        echo, large, wait, hang = (f"/trap.v1.Trap/{name}" for name in ("Echo", "Large", "Wait", "Hang"))
        return AttackTarget(
            host=host, port=int(port), grpc=True, get=echo, post=echo, large=large,
            large_request="08c0843d",  # size (field 1): 1,000,000
            stream=wait, hung=hang,
        )  # fmt: skip

    def honest_target(self) -> AttackTarget:
        """Return the edge as the honest client sees it."""
        host, _, port = self.edge.rpartition("/")[2].rpartition(":")
        return AttackTarget(host=host, port=int(port), source="127.0.0.1")


def write_project(root: Path, folder: Path) -> Path:
    """Write mesh.toml of the checkout ``root`` with the service ``trap`` into a folder; return the file."""
    shutil.copytree(HERE / "protos", folder / "trap-protos")
    shutil.copy(HERE / "trap_functions.py", folder)
    text, replaced = re.subn(
        r'^protos = \["protos"\]', f'protos = ["{root}/protos", "trap-protos"]',
        (root / "mesh.toml").read_text(), flags=re.MULTILINE,
    )  # fmt: skip
    assert replaced == 1, f"{root}/mesh.toml has another list of protos"
    service = '[services.trap]\nmodule = "trap_functions"\nserves = ["trap.v1.Trap"]\nlisten = "127.0.0.1:0"\n'
    file = folder / "mesh.toml"
    file.write_text(f"{text}\n{service}")
    return file


def environment(root: Path, folder: Path) -> dict[str, str]:
    """Return the environment of the mesh in a folder: free ports, state and databases of its own, nothing else set."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_"))}
    words = {"PYTHONPATH": str(root), "MESH_STATE": str(folder / "state"), "MESH_EDGE_LISTEN": "127.0.0.1:0"}
    for name in SERVICES:
        words[f"MESH_SERVICES_{name.upper()}_LISTEN"] = "127.0.0.1:0"
        if name != "trap":
            words[f"MESH_SERVICES_{name.upper()}_DATABASE"] = f"sqlite:///{folder}/{name}.db"
    return inherited | words


@contextlib.contextmanager
def running_mesh(root: Path = ROOT, python: str = sys.executable, **environ: str) -> Iterator[MeshUnderAttack]:
    """Run the mesh of a checkout with default settings, with three users.

    Args:
        root: The checkout.
        python: Interpreter that has its dependencies.
        environ: More environment.
    """
    folder = Path(tempfile.mkdtemp(prefix="mesh-abuse-"))
    file, log = write_project(root, folder), folder / "mesh.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, "-P", "-m", "mesh", "up", "--file", str(file)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder,
            env=environment(root, folder) | environ,
        )  # fmt: skip
    failed = True
    try:
        state = _ready(process, folder / "state" / "up.json", log)
        mesh = MeshUnderAttack(state["edge"], state["addresses"], state["broker"], process.pid, log)
        prepare(mesh)
        yield mesh
        failed = False
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if failed:
            print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)


def prepare(mesh: MeshUnderAttack) -> None:
    """Register users, log one in, and make the requests of the honest client."""
    users = []
    for number in range(USERS):
        name = f"user{number}"
        body = {"name": name, "email": f"{name}@example.com", "password": PASSWORD}
        user = request(mesh.edge, "POST", "/v1/users", body)
        users.append({"login": name, "password": PASSWORD})
    token = request(mesh.edge, "POST", "/v1/sessions", users[-1])["accessToken"]
    mesh.users = tuple(json.dumps(one) for one in users)
    headers = ((b"authorization", f"Bearer {token}".encode()), (b"content-type", b"application/json"))
    path = f"/v1/users/{user['id']}"
    mesh.honest = (
        HonestRequest("GET", "/.well-known/jwks.json"),
        HonestRequest("GET", path, headers),
        HonestRequest("GET", "/.well-known/jwks.json"),
        HonestRequest("PATCH", f"{path}?updateMask=name", headers, b'{"name": "user2"}'),
    )


def request(edge: str, verb: str, path: str, body: Any) -> Any:
    """Make one JSON request; return the value of the response."""
    made = urllib.request.Request(  # noqa: S310 - loopback
        edge + path, json.dumps(body).encode(), {"content-type": "application/json"}, method=verb
    )
    try:
        with urllib.request.urlopen(made, timeout=30) as response:  # noqa: S310 - loopback
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            sys.exit(f"{verb} {path}: HTTP {error.code}: {error.read().decode(errors='replace')}")


def _ready(process: subprocess.Popen[bytes], file: Path, log: Path) -> dict[str, Any]:
    until = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError):
            state: dict[str, Any] = json.loads(file.read_text())
            if state.get("addresses") and state.get("edge"):
                return state
        time.sleep(0.05)  # the file is the only thing to watch
    sys.exit(f"the mesh did not start:\n{log.read_text(errors='replace')}")

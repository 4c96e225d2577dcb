"""Cold start: time from zero workers to the function's response, of the sample services and a trivial function.

    python -m benchmarks cold [--rounds 5]

Each round waits until every worker has ended, then makes one call on an open connection. For comparison: a fresh
interpreter that imports the same modules, and ``functions-framework`` (pip) started for one request, as a platform
without workers does.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc

from benchmarks import load

CALLS = 20
"""Cold calls of each service in a round; the last worker takes about a second to end."""
OURS = "from zero to the response"
MODULES = {
    "users": "users",
    "registration": "services.registration.functions",
    "login": "services.login.functions",
}
WORKERS = "{ min = 0, max = 1, idle = '20ms' }"
TRIVIAL = load.HERE / "peers" / "trivial.py"


def run(rounds: int) -> None:
    """Measure and report."""
    sys.path[:0] = [str(load.STUBS), str(load.ROOT / "gen")]
    found: dict[tuple[str, str], list[float]] = {}
    trivial = {"MESH_SERVICES_USERS_WORKERS": WORKERS}
    databases = {
        f"MESH_SERVICES_{name.upper()}_DATABASE": f"sqlite:///{load.SCRATCH}/state-cold-samples/{name}.db"
        for name in ("registration", "login")
    }
    samples = {
        "MESH_STUBS": str(load.ROOT / "gen"), "MESH_EDGE_LISTEN": "127.0.0.1:0",
        **{f"MESH_SERVICES_{name}_{key}": value for name in ("REGISTRATION", "LOGIN")
           for key, value in (("WORKERS", WORKERS), ("LISTEN", "127.0.0.1:0"))},
        **databases,
    }  # fmt: skip
    for file, environ, calls in (
        (load.HERE / "mesh" / "mesh.toml", trivial, {"users": _register}),
        (load.ROOT / "mesh.toml", samples, {"registration": _refused, "login": _keys}),
    ):
        with load.our_mesh(f"cold-{file.parent.name}", environ, file) as (addresses, _, pids):
            for service, call in calls.items():
                found[service, OURS] = _cold(_sidecar(pids, service), addresses[service], call, rounds)
    for service, module in MODULES.items():
        found[service, "a fresh interpreter imports it"] = [_fresh(module) for _ in range(4 * rounds)]
    if _has("functions_framework"):
        found["users", "functions-framework starts and responds"] = [_framework() for _ in range(2 * rounds)]
    lines = ["| service | what | p50 ms | p99 ms | least ms | of ours |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for (service, what), times in found.items():
        times.sort()
        p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
        ratio = p50 / statistics.median(found[service, OURS])
        lines.append(
            f"| {service} | {what} | {p50 * 1e3:.1f} | {p99 * 1e3:.1f} | {times[0] * 1e3:.1f} | {ratio:.0f}× |"
        )
    load.report("cold", f"{__doc__.splitlines()[0]}\n\n" + "\n".join(lines))


def _register(channel: Any) -> None:
    """Call a trivial function."""
    messages, stubs = import_module("bench.v1.bench_pb2"), import_module("bench.v1.bench_pb2_grpc")
    stubs.UsersStub(channel).Register(messages.RegisterRequest(name="alice"), timeout=20)


def _keys(channel: Any) -> None:
    """Call a function that reads the database."""
    messages, stubs = import_module("login.v1.login_pb2"), import_module("login.v1.login_pb2_grpc")
    stubs.LoginStub(channel).GetKeys(messages.GetKeysRequest(), timeout=20)


def _refused(channel: Any) -> None:
    """Call a function that refuses the request."""
    messages = import_module("registration.v1.registration_pb2")
    stub = import_module("registration.v1.registration_pb2_grpc").RegistrationStub(channel)
    try:
        stub.Register(messages.RegisterRequest(name=""), timeout=20)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
            raise


def _cold(sidecar: int, address: str, call: Callable[[Any], None], rounds: int) -> list[float]:
    times = []
    with grpc.insecure_channel(address) as channel:
        for _ in range(CALLS * rounds):
            call(channel)  # a warm call, so that only the start of the worker is measured
            _zero(sidecar)
            began = time.perf_counter()
            call(channel)
            times.append(time.perf_counter() - began)
    return times


def _sidecar(pids: list[int], name: str) -> int:
    """Return the process id of a service's sidecar."""
    for pid in pids:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if "sidecar" in words and name in words:
            return pid
    sys.exit(f"there is no sidecar of {name}")


def _zero(sidecar: int) -> None:
    """Return when no worker is left, and the process that the fork server forked ahead has settled."""
    while any(load.title(pid) == "mesh-worker" for pid in load.family(sidecar)):
        time.sleep(0.02)
    time.sleep(0.1)


def _fresh(module: str) -> float:
    code = f"import mesh.sidecar.workers.forkserver, grpc.aio, uvloop; import {module}"
    began = time.perf_counter()
    path = f"{load.STUBS}:{load.HERE / 'mesh'}:{load.ROOT / 'gen'}:{load.ROOT}"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, env={"PYTHONPATH": path})
    return time.perf_counter() - began


def _framework() -> float:
    port = load.free_port()
    url = f"http://127.0.0.1:{port}/"
    began = time.perf_counter()
    with load.process(
        sys.executable, "-m", "functions_framework", "--target", "hello", "--source", str(TRIVIAL), "--port", str(port)
    ):
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(url) as response:
                response.read()
                return time.perf_counter() - began
            time.sleep(0.002)


def _has(module: str) -> bool:
    with contextlib.suppress(ImportError):
        import_module(module)
        return True
    return False

"""A Lambda function over HTTP, JSON in and out, compared with functions-framework and serverless-offline.

    python -m benchmarks lambdas [--rounds 5]

A request to the mesh goes through edge and sidecar, becomes API Gateway's event, and is traced and exported. The peers
do less. functions-framework responds from the process that the client is connected to, traces nothing and makes no
event: the function gets Flask's request. It runs as in production, on gunicorn with threads, with one process and with
two. With tracing off the mesh still has the second process and the event. serverless-offline runs the very same
handler; it is made for development.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from benchmarks import load
from benchmarks.load import Contender, Load

OURS = "edge + sidecar, traced and exported"
SHARE = 0.5
"""Load at which latencies are compared, as a share of the slowest contender's throughput but serverless-offline's."""
CONNECTIONS = 64
SECONDS = 3
BODY = b'{"name":"alice"}'
HELLO = Path(__file__).parent / "hello"
NODE = load.SCRATCH / "serverless"
PACKAGES = ("serverless@3", "serverless-offline@13")


def run(rounds: int) -> None:
    """Measure and report."""
    load.need("wrk", "h2load")
    with ExitStack() as running:
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": running.enter_context(load.sink()), "OTEL_METRICS_EXPORTER": "none"}
        contenders = [
            _ours(running, OURS, traced),
            _ours(running, "the same, tracing off", {"OTEL_SDK_DISABLED": "true"}),
            _ours(running, "the same, 2 workers", {**traced, "MESH_SERVICES_HELLO_WORKERS": "{min=2, max=2}"}),
            _framework(running, 1),
            _framework(running, 2),
        ]
        fast = list(contenders)
        offline = _offline(running)
        if offline is not None:
            contenders.append(offline)
        _warm(contenders)
        found = load.rounds(contenders, load.wrk(HELLO / "hello.lua", CONNECTIONS, SECONDS), rounds)
        pace = max(50, int(min(statistics.median(found[one.name].rate) for one in fast) * SHARE / 50) * 50)
        paced = load.rounds(fast, load.paced(pace, BODY, seconds=SECONDS), rounds)
        memory = "\n".join(f"| {one.name} | {len(one.pids)} | {load.memory(one.pids):.0f} |" for one in contenders)
    load.report(
        "lambdas",
        f"{__doc__.splitlines()[0]}\n\n{load.table(found, OURS)}\n\n"
        f"At the same load for all, {pace} requests/s over 16 connections:\n\n{load.table(paced, OURS)}\n\n"
        f"Memory after that, pages that processes share counted once (PSS):\n\n"
        f"| contender | processes | MiB |\n| --- | ---: | ---: |\n{memory}",
    )


def _ours(running: ExitStack, name: str, environ: dict[str, str]) -> Contender:
    environ = {**environ, "MESH_STUBS": str(load.SCRATCH / "stubs-hello")}
    state = f"lambdas-{name.rpartition(' ')[2]}"
    _, edge, pids = running.enter_context(load.our_mesh(state, environ, HELLO / "mesh.toml"))
    return Contender(name, f"{edge}/hello", pids)


def _framework(running: ExitStack, processes: int) -> Contender:
    port = load.free_port()
    command = (sys.executable, "-m", "functions_framework", "--target", "hello", "--source", str(HELLO / "main.py"))
    started = running.enter_context(
        load.process(*command, "--host", "127.0.0.1", "--port", str(port), environ={"WORKERS": str(processes)})
    )
    load.wait_for(port)
    name = f"functions-framework, gunicorn with {processes} process{'es' if processes > 1 else ''}"
    return Contender(name, f"http://127.0.0.1:{port}/", [started.pid])


def _offline(running: ExitStack) -> Contender | None:
    """Run serverless-offline, after installing it from npm if needed; None, with a line on stderr, where that fails."""
    if shutil.which("npm") is None:
        print("serverless-offline is left out: npm is missing", file=sys.stderr)
        return None
    if not (NODE / "node_modules" / "serverless-offline").is_dir():
        NODE.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(NODE), *PACKAGES]
        if subprocess.run(command, check=False).returncode:
            print("serverless-offline is left out: npm cannot install it", file=sys.stderr)
            return None
    for name in ("handler.py", "serverless.yml"):
        shutil.copy(HELLO / name, NODE)
    port, inner = load.free_port(), load.free_port()
    started = running.enter_context(
        load.process(
            "node", str(NODE / "node_modules" / "serverless" / "bin" / "serverless.js"), "offline", "start",
            "--httpPort", str(port), "--lambdaPort", str(inner), cwd=NODE,
            environ={"SLS_TELEMETRY_DISABLED": "1", "SLS_NOTIFICATIONS_MODE": "off", "CI": "1",
                     "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )
    )  # fmt: skip
    load.wait_for(port, 60)
    return Contender("serverless-offline", f"http://127.0.0.1:{port}/hello", [started.pid])


def _warm(contenders: list[Contender]) -> None:
    """Check every contender's response, let it start its processes under load, and record them."""
    for one in contenders:
        request = urllib.request.Request(one.url, BODY, {"content-type": "application/json"})  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - loopback
            assert response.read() == b'{"message": "Hello, alice!"}', one.name
    warm: Load = load.wrk(HELLO / "hello.lua", CONNECTIONS, 1)
    for one in contenders:
        warm(one)
        one.pids = [pid for root in one.pids for pid in load.family(root)]

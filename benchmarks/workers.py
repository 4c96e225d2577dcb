"""A function in the sidecar's loop, in its threads and in worker processes, each with the whole inbound chain.

    python -m benchmarks workers [--rounds 5]

A worker process needs a core, so two cores that the load shares are its hardest case. A second table has a function
that computes for about 5 ms, a third the memory and CPU of idle processes.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from importlib import import_module

from benchmarks import load
from benchmarks.load import Contender, Figures

OURS = "in the loop"
_ONE, _TWO = "{ min = 1, max = 1, concurrency = 1000 }", "{ min = 2, max = 2, concurrency = 500 }"
PLACES = {
    OURS: {},
    "in threads": {"MODULE": "threaded"},
    "one worker": {"WORKERS": _ONE},
    "two workers": {"WORKERS": _TWO},
}
HEAVY = {
    "one worker": {"MODULE": "heavy", "WORKERS": "{ min = 1, max = 1, concurrency = 2 }"},
    "two workers": {"MODULE": "heavy", "WORKERS": "{ min = 2, max = 2, concurrency = 2 }"},
}
IDLE_SECONDS = 10
"""Seconds for which the CPU time of an idle worker is measured."""


def run(rounds: int) -> None:
    """Measure and report."""
    load.need("h2load")
    sys.path.insert(0, str(load.STUBS))
    text = [
        f"A trivial function:\n\n{load.table(_loaded(PLACES, rounds, 8, 32), OURS)}",
        f"A function that computes for some 5 ms, 8 calls at once:\n\n{_scaling(_loaded(HEAVY, rounds, 2, 4))}",
        f"Idle processes, at one worker and at none:\n\n{_idle()}",
    ]
    load.report("workers", "\n\n".join([__doc__.splitlines()[0], *text]))


def _loaded(places: Mapping[str, Mapping[str, str]], rounds: int, connections: int, streams: int) -> dict[str, Figures]:
    with ExitStack() as running:
        contenders = []
        for name, settings in places.items():
            environ = {f"MESH_SERVICES_USERS_{key}": value for key, value in settings.items()}
            addresses, _, pids = running.enter_context(load.our_mesh(name.replace(" ", "-"), environ))
            pids = [pid for one in pids for pid in load.family(one)]
            contenders.append(Contender(name, f"http://{addresses['users']}/bench.v1.Users/Register", pids))
        messages = import_module("bench.v1.bench_pb2")
        request = messages.RegisterRequest(
            name="alice", email="alice@example.com", password="p" * 20, age=30, tags=["a"]
        )
        body = load.grpc_body(request.SerializeToString())
        return load.rounds(contenders, load.h2load(body, connections=connections, streams=streams), rounds)


def _scaling(found: Mapping[str, Figures]) -> str:
    one, two = (figures.rate for figures in found.values())
    ratio = statistics.median(after / before for before, after in zip(one, two, strict=True))
    rows = [f"| {name} | {statistics.median(figures.rate):,.0f} |" for name, figures in found.items()]
    return "\n".join(["| contender | requests/s |", "| --- | ---: |", *rows, f"| two workers are | {ratio:.2f}× |"])


def _idle() -> str:
    """Return memory and CPU time of the processes at one worker and at none."""
    lines = ["| process | PSS MiB | its own MiB | CPU ms a minute |", "| --- | ---: | ---: | ---: |"]
    for settings in ("{ min = 1, max = 1 }", "{ min = 0, max = 1, idle = '20ms' }"):
        with load.our_mesh("idle-workers", {"MESH_SERVICES_USERS_WORKERS": settings}) as (_, _, pids):
            time.sleep(3)
            found = [pid for one in pids for pid in load.family(one)]
            processes = {pid: load.title(pid) for pid in found if load.title(pid).startswith("mesh-")}
            before = {pid: load.cpu_nanoseconds(pid) for pid in processes}
            time.sleep(IDLE_SECONDS)
            for pid, name in processes.items():
                shared, own = load.footprint(pid)
                used = (load.cpu_nanoseconds(pid) - before[pid]) / 1e6 * 60 / IDLE_SECONDS
                lines.append(f"| {name} | {shared:.1f} | {own:.1f} | {used:.1f} |")
    return "\n".join(lines)

"""A trivial function in the sidecar's loop and in worker processes; the whole inbound chain around both.

    python -m benchmarks workers [--rounds 5]

The worker's own process needs a core: on two cores, which the load shares, this is the hardest place for it.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

from benchmarks import load
from benchmarks.load import Contender

OURS = "in the loop"
PLACES = {
    OURS: "",
    "one worker": "{ min = 1, max = 1, concurrency = 1000 }",
    "two workers": "{ min = 2, max = 2, concurrency = 500 }",
}


def run(rounds: int) -> None:
    """Measure and report."""
    load.need("h2load")
    sys.path.insert(0, str(load.STUBS))
    with ExitStack() as running:
        contenders = []
        for name, workers in PLACES.items():
            environ = {"MESH_SERVICES_USERS_WORKERS": workers} if workers else {}
            addresses, _, pids = running.enter_context(load.our_mesh(name.replace(" ", "-"), environ))
            pids = [pid for one in pids for pid in load.family(one)]
            contenders.append(Contender(name, f"http://{addresses['users']}/bench.v1.Users/Register", pids))
        from bench.v1 import bench_pb2 as pb

        request = pb.RegisterRequest(name="alice", email="alice@example.com", password="p" * 20, age=30, tags=["a"])
        found = load.rounds(contenders, load.h2load(load.grpc_body(request.SerializeToString())), rounds)
    load.report("workers", f"{__doc__.splitlines()[0]}\n\n{load.table(found, OURS)}")

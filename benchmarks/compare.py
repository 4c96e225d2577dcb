"""This checkout against another one, in turns: what a change costs.

    python -m benchmarks.compare CHECKOUT [NAME …] [--rounds 5]

CHECKOUT has a ``.venv`` of its own. Both run the same mesh under the same load: JSON through the edge, gRPC into the
sidecar, events to a function. Ratios are this checkout's rate to the other's, pair by pair; their median is shown.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

import uvloop

from benchmarks import events, load
from benchmarks.edge import PEERS
from benchmarks.load import Contender
from benchmarks.tally import Tally
from mesh.contract import protoc
from mesh.events import subjects
from mesh.events.broker.broker import Broker, Settings

THIS, OTHER = "this checkout", "the other"
NAMES = ("calls", "events")


def python_of(root: Path) -> str:
    """Return the interpreter of a checkout."""
    return str(root.resolve() / ".venv" / "bin" / "python")


def called(roots: dict[str, Path], rounds: int) -> str:
    """Compare JSON through the edge and gRPC into the sidecar; return the tables."""
    sys.path.insert(0, str(load.STUBS))
    with ExitStack() as running:
        endpoint = running.enter_context(load.sink())
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRICS_EXPORTER": "none"}
        edges, sidecars = [], []
        for name, root in roots.items():
            mesh = load.our_mesh(name.replace(" ", "-"), traced, python=python_of(root))
            addresses, edge, pids = running.enter_context(mesh)
            edges.append(Contender(name, f"{edge}/v1/users", pids))
            sidecars.append(Contender(name, f"http://{addresses['users']}/bench.v1.Users/Register", pids))
        from bench.v1 import bench_pb2 as pb

        request = pb.RegisterRequest(name="alice", email="alice@example.com", password="p" * 20, age=30, tags=["a"])
        body = load.grpc_body(request.SerializeToString())
        by_edge = load.rounds(edges, load.wrk(PEERS / "register.lua"), rounds)
        by_sidecar = load.rounds(sidecars, load.h2load(body), rounds)
    return f"Edge:\n\n{load.table(by_edge, THIS)}\n\nSidecar:\n\n{load.table(by_sidecar, THIS)}"


async def delivered(roots: dict[str, Path], rounds: int) -> str:
    """Compare the way of events to a function; return the table."""
    with ExitStack() as running:
        endpoint = running.enter_context(load.sink())
        readers, links, brokers = [], [], []
        numbers = events.Numbers()
        try:
            for name, root in roots.items():
                kind = name.replace(" ", "-")
                url, _ = running.enter_context(events.running_nats(kind))
                tally = {part: load.SCRATCH / f"{kind}-{part}.tally" for part in ("reader", "writer")}
                for file in tally.values():
                    file.unlink(missing_ok=True)
                environ = {
                    "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
                    "OTEL_METRICS_EXPORTER": "none",
                    "PYTHONPATH": f"{events.STUBS}:{load.HERE}",
                    "MESH_BROKER": url,
                    "MESH_SERVICES_WRITER_DATABASE": f"sqlite:///{load.SCRATCH}/state-{kind}/writer.db",
                    "TALLY_READER": str(tally["reader"]),
                    "TALLY_WRITER": str(tally["writer"]),
                }
                _, pids = running.enter_context(events.running_mesh(kind, environ, python_of(root)))
                broker = Broker(Settings(urls=(url,)), "benchmark", events.signer(kind))
                broker.start()
                brokers.append(broker)
                links.append(await broker.ready())
                reader = events.Reader(name, _subject, Tally(str(tally["reader"])), pids["reader"])
                await events.run_burst(links[-1], reader, numbers, 1)
                readers.append(reader)
            for turn in range(rounds + 1):
                pairs = list(zip(links, readers, strict=True))
                for link, reader in pairs if turn % 2 else reversed(pairs):
                    await events.run_round(link, reader, numbers, keep=turn > 0)
                    print(f"  round {turn}/{rounds}  {reader.name}", file=sys.stderr, flush=True)
        finally:
            for broker in brokers:
                await broker.stop()
    return f"Events:\n\n{load.table({reader.name: reader.figures for reader in readers}, THIS)}"


def _subject(key: str) -> str:
    return subjects.event_subject("notes.v1.Noted", key, key)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="the other checkout, with a .venv")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(NAMES)}; all if none")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the medians are taken (5)")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"no such comparison: {', '.join(unknown)}")
    if not Path(python_of(options.checkout)).exists():
        parser.error(f"{options.checkout} has no .venv: run `make install` there")
    names = options.names or NAMES
    load.need("wrk", "h2load")
    roots = {OTHER: options.checkout, THIS: load.ROOT}
    protoc.generate([load.HERE / "mesh" / "protos"], load.STUBS)
    protoc.generate([events.MESH / "protos"], events.STUBS)
    texts = []
    if "calls" in names:
        texts.append(called(roots, options.rounds))
    if "events" in names:
        sys.path.insert(0, str(events.STUBS))
        texts.append(uvloop.run(delivered(roots, options.rounds)))
    print("\n\n".join([f"{load.machine()}, {options.rounds} rounds.", *texts]))


if __name__ == "__main__":
    main()

"""``python -m benchmarks [NAME …]``: runs benchmarks in turn and writes their tables to benchmarks/results."""

from __future__ import annotations

import argparse

from benchmarks import (
    channel,
    codec,
    cold,
    edge,
    events,
    idle,
    lambdas,
    layers,
    load,
    overload,
    paths,
    rules,
    sidecar,
    tls,
    workers,
)
from mesh.contract import protoc

RUNS = {
    "codec": codec.run,
    "paths": paths.run,
    "rules": rules.run,
    "layers": layers.run,
    "channel": channel.run,
    "sidecar": sidecar.run,
    "edge": edge.run,
    "idle": idle.run,
    "workers": workers.run,
    "cold": cold.run,
    "lambdas": lambdas.run,
    "events": events.run,
    "overload": overload.run,
    "tls": tls.run,
}


def main() -> None:
    """Run the benchmarks that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(RUNS)}; all if none")
    parser.add_argument("--rounds", type=int, default=5, help="number of interleaved rounds; medians are reported (5)")
    parser.add_argument(
        "--million", action="store_true", help="events: measure with a million retained events instead (minutes)"
    )
    options = parser.parse_args()
    unknown = sorted(set(options.names) - RUNS.keys())
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    protoc.generate([load.HERE / "mesh" / "protos"], load.STUBS)
    for name in options.names or RUNS:
        if name == "events" and options.million:
            events.run(options.rounds, million=True)
        else:
            RUNS[name](options.rounds)


if __name__ == "__main__":
    main()

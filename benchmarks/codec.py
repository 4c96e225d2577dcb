"""The JSON codec compared with ``google.protobuf.json_format``: a five-field message, parsed and printed.

python -m benchmarks codec [--rounds 5]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

from google.protobuf import json_format

from benchmarks import load
from mesh.contract import protoc
from mesh.protojson.codec import Codecs

CALLS = 20_000


def run(rounds: int) -> None:
    """Measure and report."""
    protoc.generate([load.HERE / "mesh" / "protos"], load.STUBS)
    sys.path.insert(0, str(load.STUBS))
    from bench.v1 import bench_pb2 as pb

    text = b'{"name":"alice","email":"alice@example.com","password":"pppppppp","age":30,"tags":["a","b"]}'
    user = pb.User(id="u-1", name="alice", email="alice@example.com", created_at=1700000000, roles=["user"])
    parse, show = Codecs().of(pb.RegisterRequest).parse, Codecs().of(pb.User).print
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "parse": (lambda: parse(text), lambda: json_format.Parse(text, pb.RegisterRequest())),
        "print": (lambda: show(user), lambda: json_format.MessageToJson(user, indent=None)),
    }
    lines = ["| way | codec µs | json_format µs | ratio |", "| --- | ---: | ---: | ---: |"]
    for name, (ours, theirs) in pairs.items():
        times = [(_time(ours), _time(theirs)) for _ in range(rounds + 1)][1:]
        mine, other = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(b / a for a, b in times)
        lines.append(f"| {name} | {mine:.2f} | {other:.2f} | {ratio:.1f}× |")
    load.report("codec", f"{__doc__.splitlines()[0]}\n\n" + "\n".join(lines))


def _time(call: Callable[[], object]) -> float:
    began = time.process_time()
    for _ in range(CALLS):
        call()
    return (time.process_time() - began) / CALLS * 1e6

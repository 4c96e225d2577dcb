"""The rules of a contract: decoding of a message of five fields with eight rules, with and without its check.

python -m benchmarks rules [--rounds 5]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import protovalidate

from benchmarks import load
from mesh.contract import loader, protoc
from mesh.message_methods import parser
from mesh.rules.message_checks import request_check

CALLS = 20_000


def run(rounds: int) -> None:
    """Measure and report."""
    roots = [load.HERE / "mesh" / "protos"]
    files = protoc.load(roots, load.STUBS)
    sys.path.insert(0, str(load.STUBS))
    from bench.v1 import rules_pb2 as pb

    message = pb.Ruled(name="alice", email="alice@example.com", age=30, tags=["a", "b"], score=0.5)
    data = message.SerializeToString()
    parse, validator = parser(pb.Ruled), protovalidate.Validator()
    check = request_check(loader.read(files).services["bench.v1.Rules"].methods["Check"])
    assert check is not None
    ways: dict[str, Callable[[], object]] = {
        "decoded": lambda: parse(data),
        "decoded and checked by the mesh": lambda: check(parse(data)),
        "decoded and checked by protovalidate alone": lambda: validator.validate(parse(data)),
    }
    times = [{name: _time(way) for name, way in ways.items()} for _ in range(rounds + 1)][1:]
    lines = ["| way | µs | more than decoded, µs |", "| --- | ---: | ---: |"]
    for name in ways:
        cost = statistics.median(one[name] for one in times)
        more = statistics.median(one[name] - one["decoded"] for one in times)
        lines.append(f"| {name} | {cost:.2f} | {more:.2f} |")
    load.report("rules", f"{__doc__.splitlines()[0]}\n\n" + "\n".join(lines))


def _time(call: Callable[[], object]) -> float:
    began = time.process_time()
    for _ in range(CALLS):
        call()
    return (time.process_time() - began) / CALLS * 1e6

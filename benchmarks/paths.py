"""Cost of finding the route of a path, at 10, 1,000 and 10,000 routes.

python -m benchmarks paths [--rounds 5]
"""

from __future__ import annotations

import random
import statistics
import time

from benchmarks import load
from mesh.contract import path_template
from mesh.edge.http.router import Router

COUNTS = (10, 1_000, 10_000)
CALLS = 20_000


def run(rounds: int) -> None:
    """Measure and report."""
    routers = {count: _router(count) for count in COUNTS}
    found: dict[tuple[int, str], list[float]] = {}
    for _ in range(rounds):
        for count, router in routers.items():
            for kind, paths in _paths(count).items():
                began = time.perf_counter()
                for path in paths:
                    router.find(path, "GET")
                found.setdefault((count, kind), []).append((time.perf_counter() - began) / len(paths) * 1e6)
    kinds = list(_paths(10))
    lines = [f"| routes | {' | '.join(f'{kind}, µs' for kind in kinds)} |", "| ---: |" + " ---: |" * len(kinds)]
    for count in COUNTS:
        cells = (f"{statistics.median(found[count, kind]):.2f}" for kind in kinds)
        lines.append(f"| {count:,} | {' | '.join(cells)} |")
    load.report("paths", f"{__doc__.splitlines()[0]}\n\n" + "\n".join(lines))


def _router(count: int) -> Router[int]:
    """Return a router with routes as in an API of collections: a list, an item, and a part of an item."""
    routes = []
    for number in range(count):
        base = f"/v{number % 3}/collection{number // 3}"
        text = (base, f"{base}/{{id}}", f"{base}/{{parent=items/*}}/parts/{{part}}")[number % 3]
        routes.append(("GET", path_template.parse(text), number))
    return Router(routes)


def _paths(count: int) -> dict[str, list[str]]:
    chance = random.Random(count)  # noqa: S311 - the same paths in every run

    def some(kind: int) -> int:
        return chance.randrange((count + 2 - kind) // 3)

    return {
        "literal": [f"/v0/collection{some(0)}" for _ in range(CALLS)],
        "one variable": [f"/v1/collection{some(1)}/i{some(1)}" for _ in range(CALLS)],
        "two variables": [f"/v2/collection{some(2)}/items/i{some(2)}/parts/p%20x" for _ in range(CALLS)],
        "no such path": [f"/v1/nothing{some(1)}/x" for _ in range(CALLS)],
    }

"""Service that an honest client gets while others attack the mesh.

    python -m benchmarks.abuse [CASE …] [--root CHECKOUT] [--duration 10] [--json FILE]

Each case starts the sample mesh of a checkout anew, with default settings and one service more (benchmarks/trap), in a
temporary folder. One process attacks. Another one sends 30 requests a second on a connection of its own, three GET to
one PATCH. A failed request is not sent again. CHECKOUT has a ``.venv`` of its own; this checkout is the default.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

from benchmarks import load
from benchmarks.trap import MeshUnderAttack, running_mesh
from mesh.chaos.people.attack_process import attacking
from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.attacks import ATTACKS, possible
from mesh.chaos.people.honest_client import HonestClient
from mesh.chaos.people.observed import Observed

WARM_UP = 2.0
"""Seconds of honest requests before the attack."""
CAPACITY_SECONDS = 5.0
"""Seconds of the measurement of a costly method's capacity."""
REQUEST_TIMEOUT = 10.0
"""Seconds after which an honest request has failed."""
SAMPLE_INTERVAL = 0.1
"""Seconds between two looks at the memory of the processes."""
FACTORS = (2, 5, 10)
LIMIT_MIB = 256
QUIET = "no attack"


@dataclass(slots=True)
class Result:
    """Figures of one case.

    Attributes:
        case: Its name.
        success: Share of the honest requests that succeeded, percent.
        p50: Median of their times, ms; also ``p99`` and ``longest``.
        failures: Outcomes of those that failed.
        memory: Component → peak of its resident memory, MiB.
        observed: What the attacker observed.
        goodput: Successful costly requests a second; 0 where none are sent.
        capacity: Costly requests a second that can be served.
        accepted_p99: p99 of successful costly requests, ms; ``alone_p99`` is that of the measurement of the capacity.
        ended: Components that ended meanwhile.
    """

    case: str
    success: float
    p50: float
    p99: float
    longest: float
    failures: dict[str, int]
    memory: dict[str, float]
    observed: dict[str, int]
    goodput: float = 0.0
    capacity: float = 0.0
    accepted_p99: float = 0.0
    alone_p99: float = 0.0
    ended: tuple[str, ...] = ()


class PeakMemory:
    """Peak of the resident memory of each component (``VmHWM`` of proc_pid_status(5)), since the start of a sampler.

    Args:
        pids: Component → process id.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        self.peak: dict[str, float] = dict.fromkeys(pids, 0.0)
        self.ended: set[str] = set()
        self._pids = pids
        self._stop = Event()
        self._thread = Thread(target=self._sample)

    def __enter__(self) -> Self:
        for pid in self._pids.values():
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets the peak
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_INTERVAL):
            self._look()

    def _look(self) -> None:
        for name, pid in self._pids.items():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                kilobytes = int(status.partition("VmHWM:")[2].split()[0])
            except (OSError, IndexError):
                self.ended.add(name)
                continue
            self.peak[name] = max(self.peak[name], kilobytes / 1024)


def cases(target: AttackTarget, sidecar: AttackTarget) -> dict[str, tuple[str, AttackTarget]]:
    """Return the cases: name → attack and its target."""
    found: dict[str, tuple[str, AttackTarget]] = {name: (name, target) for name in possible(target)}
    found.pop("oversubscription")
    found |= {f"{name} at a sidecar": (name, sidecar) for name in possible(sidecar)}
    grpc = replace(target, grpc=True, post=sidecar.post)
    found["uploads over gRPC"] = ("uploads", grpc)
    found["body-less over gRPC"] = ("body-less", grpc)
    return found | {f"login {factor}×": ("oversubscription", target) for factor in FACTORS}


async def measure(mesh: MeshUnderAttack, case: str, duration: float) -> Result:
    """Run one case."""
    target, name = mesh.edge_target(), ""
    if case != QUIET:
        name, target = cases(target, mesh.sidecar_target())[case]
    capacity = alone = 0.0
    if name == "oversubscription":
        async with attacking("capacity", target) as probe:
            await asyncio.sleep(CAPACITY_SECONDS)
        capacity = len(probe.observed.times) / CAPACITY_SECONDS
        alone = _p99(probe.observed.times)
        target = replace(target, rate=capacity * factor(case))
    await HonestClient(mesh.honest_target(), mesh.honest, timeout=REQUEST_TIMEOUT).run(WARM_UP)
    client = HonestClient(mesh.honest_target(), mesh.honest, timeout=REQUEST_TIMEOUT)
    observed = Observed()
    with PeakMemory(mesh.processes()) as memory:
        if name:
            async with attacking(name, target) as attack:
                served = await client.run(duration)
            observed = attack.observed
        else:
            served = await client.run(duration)
    return Result(
        case, served.success, served.percentile(0.5), served.percentile(0.99), served.percentile(1.0), served.failures,
        memory.peak, dict(observed.counts.most_common()),
        goodput=len(observed.times) / duration, capacity=capacity, accepted_p99=_p99(observed.times), alone_p99=alone,
        ended=tuple(sorted(memory.ended)),
    )  # fmt: skip


def factor(case: str) -> float:
    """Return the load of a case of oversubscription, as a multiple of the capacity."""
    return float(case.removeprefix("login ").removesuffix("×"))


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98] * 1000 if len(times) > 1 else 0.0


def show(results: list[Result]) -> str:
    """Return the results as Markdown tables."""
    lines = [
        "| case | honest success | p50 ms | p99 ms | longest ms | edge MiB | largest sidecar MiB | the attacker saw |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for one in results:
        sidecars = {name: size for name, size in one.memory.items() if name not in ("edge", "broker")}
        largest = max(sidecars, key=lambda name: sidecars[name], default="")
        seen = ", ".join(f"{name} {number:,}" for name, number in one.observed.items() if name != "requests")
        seen = f"{one.observed.get('requests', 0):,} requests: {seen}" if one.observed else ""
        seen += "".join(f"; **{name} ended**" for name in one.ended)
        lines.append(
            f"| {one.case} | {one.success:.1f} % | {one.p50:,.0f} | {one.p99:,.0f} | {one.longest:,.0f} "
            f"| {one.memory.get('edge', 0):.0f} | {sidecars.get(largest, 0):.0f} ({largest}) | {seen} |"
        )
    costly = [one for one in results if one.capacity]
    if costly:
        lines += [
            "",
            "| case | capacity/s | offered/s | goodput/s | of capacity | p99 accepted ms | p99 at capacity ms |",
        ]
        lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        lines += [
            f"| {one.case} | {one.capacity:.1f} | {one.capacity * factor(one.case):.0f} | {one.goodput:.1f} "
            f"| {100 * one.goodput / one.capacity:.0f} % | {one.accepted_p99:,.0f} | {one.alone_p99:,.0f} |"
            for one in costly
        ]
    return "\n".join(lines)


def commit(root: Path) -> str:
    """Return the commit of a checkout."""
    done = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def run(root: Path, python: str, names: list[str], duration: float) -> Iterator[Result]:
    """Run cases, each with a mesh of its own."""
    for name in names:
        try:
            with running_mesh(root, python) as mesh:
                result = asyncio.run(measure(mesh, name, duration))
        except Exception as error:  # noqa: BLE001 - the other cases are still worth their figures
            print(f"  {name}: failed: {error!r}", file=sys.stderr, flush=True)
            continue
        print(
            f"  {name:28} {result.success:5.1f} %  p99 {result.p99:8,.0f} ms  edge {result.memory['edge']:4.0f} MiB",
            file=sys.stderr,
            flush=True,
        )
        yield result


def main() -> None:
    """Measure and report."""
    nowhere = AttackTarget(host="", port=0, get="-", post="-", large="-", stream="-", hung="-", costly="-")
    known = [QUIET, *cases(nowhere, replace(nowhere, grpc=True, costly=""))]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.abuse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="cases:\n" + "\n".join(f"  {name:24} {attack.text}" for name, attack in ATTACKS.items()),
    )  # fmt: skip
    parser.add_argument("cases", nargs="*", metavar="CASE", help="one or more; all if none")
    parser.add_argument("--root", type=Path, default=load.ROOT, help="the checkout whose mesh is attacked (this one)")
    parser.add_argument("--python", help="interpreter for the mesh (that of CHECKOUT/.venv)")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds of each attack (10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    options = parser.parse_args()
    if options.list:
        print("\n".join(known))
        return
    unknown = sorted(set(options.cases) - set(known))
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; see --list")
    root = options.root.resolve()
    python = options.python or str(root / ".venv" / "bin" / "python")
    results: list[Result] = []
    for result in run(root, python, options.cases or known, options.duration):
        results.append(result)
        if options.json:
            figures: dict[str, Any] = {
                "commit": commit(root), "date": time.strftime("%Y-%m-%d"), "machine": load.machine(),
                "duration": options.duration, "results": [asdict(one) for one in results],
            }  # fmt: skip
            options.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    print(f"Commit {commit(root)}, {load.machine()}; {options.duration:g} s a case.\n\n{show(results)}")


if __name__ == "__main__":
    main()

"""Hung components: time until the mesh notices one, and the calls that fail meanwhile.

    python -m benchmarks.hung [CASE …] [--root CHECKOUT] [--duration 30] [--json FILE]

Each case starts the mesh of ``benchmarks.abuse`` anew. A component is stopped (SIGSTOP), or the event loop of a service
is blocked, while an honest client sends 30 requests a second: GET and PATCH to the sample mesh, POST to the service
``trap``. A failed request is not sent again. A request fails after five seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

from benchmarks import load
from benchmarks.abuse import commit
from benchmarks.trap import SERVICES, MeshUnderAttack, environment, running_mesh
from mesh.chaos.people.honest_client import HonestClient, HonestRequest

WARM_UP = 2.0
"""Seconds of honest requests before a component is stopped."""
REQUEST_TIMEOUT = 5.0
"""Seconds after which an honest request has failed."""
SETTLED_SECONDS = 2.0
"""Seconds after which a frozen replica should cost next to nothing."""
ECHO = HonestRequest("POST", "/trap/echo", ((b"content-type", b"application/json"),), b'{"text": "a"}')
STOPPED = ("edge", "registration", "login", "audit", "trap", "broker", "trap workers")
REPLICA, BLOCKED = "one of two replicas of trap", "loop of trap blocked"
CASES = (*STOPPED, REPLICA, BLOCKED)


@dataclass(slots=True)
class Result:
    """Figures of one case.

    Attributes:
        case: Its name.
        replaced_after: Seconds until another process had the component's place; None: never.
        works_after: Seconds until the last failed request was due; 0: none failed.
        calls: Honest requests after the stop; ``failed`` of them failed, ``failed_later`` after the first two seconds.
        failures: Outcomes of those that failed.
    """

    case: str
    replaced_after: float | None
    works_after: float
    calls: int
    failed: int
    calls_later: int
    failed_later: int
    failures: dict[str, int]


@contextlib.contextmanager
def mesh_of(case: str, root: Path, python: str) -> Iterator[tuple[MeshUnderAttack, int | None]]:
    """Run the mesh of a case; yields it and the process id of the second replica of trap, if there is one."""
    if case == "trap workers":
        with running_mesh(root, python, MESH_SERVICES_TRAP_WORKERS="{ min = 1, max = 1 }") as mesh:
            yield mesh, None
    elif case == REPLICA:
        first, second = (f"127.0.0.1:{load.free_port()}" for _ in range(2))
        environ = {
            "MESH_SERVICES_TRAP_LISTEN": first,
            "MESH_SERVICES_TRAP_ADDRESS": json.dumps([first, second]),
        }
        with running_mesh(root, python, **environ) as mesh:
            folder = mesh.log.parent
            with (folder / "replica.log").open("wb") as log:
                replica = subprocess.Popen(
                    [python, "-P", "-m", "mesh", "sidecar", "trap", "--file", str(folder / "mesh.toml")],
                    cwd=folder, stdout=log, stderr=log,
                    env=environment(root, folder)
                    | {f"MESH_SERVICES_{name.upper()}_ADDRESS": mesh.addresses[name] for name in SERVICES}
                    | environ
                    | {"MESH_SERVICES_TRAP_LISTEN": second, "MESH_BROKER": mesh.broker},
                )  # fmt: skip
            try:
                try:
                    load.wait_for(int(second.rpartition(":")[2]), 60)
                except SystemExit:
                    print((folder / "replica.log").read_text(errors="replace"), file=sys.stderr)
                    raise
                yield mesh, replica.pid
            finally:
                replica.kill()
                replica.wait()
    else:
        with running_mesh(root, python) as mesh:
            yield mesh, None


async def measure(mesh: MeshUnderAttack, replica: int | None, case: str, duration: float) -> Result:
    """Run one case."""
    requests = [ECHO, mesh.honest[0], ECHO, mesh.honest[1], ECHO, mesh.honest[3]]
    await HonestClient(mesh.honest_target(), requests, timeout=REQUEST_TIMEOUT).run(WARM_UP)
    client = HonestClient(mesh.honest_target(), requests, timeout=REQUEST_TIMEOUT)
    running = asyncio.create_task(client.run(WARM_UP + duration))
    await asyncio.sleep(WARM_UP)
    name = "trap" if case == BLOCKED else case
    pid = replica or mesh.processes(last=True)[name]
    began = monotonic()
    blocker = None
    if case == BLOCKED:
        block = HonestRequest("GET", f"/trap/block?seconds={duration}")
        blocker = asyncio.create_task(
            HonestClient(mesh.honest_target(), [block], timeout=duration + REQUEST_TIMEOUT).run(0.01)
        )
    else:
        os.kill(pid, signal.SIGSTOP)
    try:
        replaced = None if replica else await _replaced(mesh, name, pid, began, running)
        served = await running
    finally:
        if blocker is not None:
            blocker.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    after = [one for one in served.calls if one.start >= began]
    later = [one for one in after if one.start >= began + SETTLED_SECONDS]
    failed = [one for one in after if not one.succeeded]
    served.calls[:] = after
    return Result(
        case, replaced, max((one.start - began for one in failed), default=0.0), len(after), len(failed),
        len(later), sum(1 for one in later if not one.succeeded), dict(Counter(served.failures).most_common()),
    )  # fmt: skip


async def _replaced(
    mesh: MeshUnderAttack, name: str, pid: int, began: float, running: asyncio.Task[object]
) -> float | None:
    """Return the seconds until another process has the place of one; None: it never had."""
    while not running.done():
        processes = await asyncio.to_thread(mesh.processes, last=True)
        if processes.get(name, pid) != pid:
            return monotonic() - began
        await asyncio.sleep(0.1)
    return None


def show(results: list[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| stopped | replaced after | last failed request after | failed | failed after the first 2 s | failures |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for one in results:
        replaced = "never" if one.replaced_after is None else f"{one.replaced_after:.1f} s"
        failures = ", ".join(f"{name} × {number}" for name, number in one.failures.items())
        lines.append(
            f"| {one.case} | {replaced} | {one.works_after:.1f} s | {one.failed} of {one.calls} "
            f"| {one.failed_later} of {one.calls_later} ({100 * one.failed_later / max(1, one.calls_later):.1f} %) "
            f"| {failures} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hung", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one or more of {', '.join(CASES)}; all if none")
    parser.add_argument("--root", type=Path, default=load.ROOT, help="the checkout whose mesh is used (this one)")
    parser.add_argument("--python", help="interpreter for the mesh (that of CHECKOUT/.venv)")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds after the stop (30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    unknown = sorted(set(options.cases) - set(CASES))
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}")
    root = options.root.resolve()
    python = options.python or str(root / ".venv" / "bin" / "python")
    results: list[Result] = []
    for case in options.cases or CASES:
        with mesh_of(case, root, python) as (mesh, replica):
            results.append(asyncio.run(measure(mesh, replica, case, options.duration)))
        print(f"  {results[-1]}", file=sys.stderr, flush=True)
        if options.json:
            figures = {
                "commit": commit(root), "date": time.strftime("%Y-%m-%d"), "machine": load.machine(),
                "duration": options.duration, "results": [asdict(one) for one in results],
            }  # fmt: skip
            options.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"Commit {commit(root)}, {load.machine()}; {options.duration:g} s a case.\n\n{show(results)}")


if __name__ == "__main__":
    main()

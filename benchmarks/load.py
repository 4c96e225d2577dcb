"""Load harness: runs servers in processes of their own, loads them from another, in interleaved rounds.

Machines are noisy. The contenders are therefore loaded one after the other within each round, and medians over the
rounds are compared. The load generators are ``h2load`` (gRPC) and ``wrk`` (HTTP) of Debian's packages nghttp2-client
and wrk.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
HERE = Path(__file__).parent
SCRATCH = HERE / "scratch"
STUBS = HERE / "mesh" / "gen"
PACKAGES = ROOT / ".venv" / "lib"


@dataclass
class Figures:
    """Measurements of one contender, one value for each round."""

    rate: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def add(self, rate: float, p50: float, p99: float, cpu: float, memory: float) -> None:
        """Add one round: requests/s, ms, ms, CPU µs a request and MiB over all processes of the contender."""
        self.rate.append(rate)
        self.p50.append(p50)
        self.p99.append(p99)
        self.cpu.append(cpu)
        self.memory.append(memory)


@dataclass
class Contender:
    """A server under load.

    Attributes:
        name: Name in the table.
        url: The URL under load.
        pids: Its processes, children included.
    """

    name: str
    url: str
    pids: list[int]


Load = Callable[[Contender], tuple[float, float, float]]
"""Loads a contender for some seconds and returns requests/s, p50 ms and p99 ms."""


def need(*tools: str) -> None:
    """Exit with a line that names the packages to install if a tool is missing."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        sys.exit(f"this benchmark needs {', '.join(missing)} (Debian: apt-get install nghttp2-client wrk)")


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def process(
    *command: str, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a server; the caller reads its first line of output."""
    SCRATCH.mkdir(exist_ok=True)
    with (SCRATCH / f"{Path(command[0]).name}-{time.time_ns()}.log").open("w") as log:
        started = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=cwd,
            env={**os.environ, "PYTHONPATH": f"{STUBS}:{HERE}", **(environ or {})},
        )  # fmt: skip
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.wait(15)
            except subprocess.TimeoutExpired:
                started.kill()


def wait_for(port: int, seconds: float = 20) -> None:
    """Return when a server listens on the port."""
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > until:
            sys.exit(f"nothing listens at 127.0.0.1:{port}; see {SCRATCH}")
        time.sleep(0.05)


@contextlib.contextmanager
def sink() -> Iterator[str]:
    """Run a collector that drops every span; yields its OTLP/HTTP endpoint."""
    port = free_port()
    with process(sys.executable, "-m", "h2corn", "sink:app", "-b", f"127.0.0.1:{port}", "--no-access-log"):
        wait_for(port)
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def our_mesh(
    name: str, environ: Mapping[str, str], file: Path = HERE / "mesh" / "mesh.toml", python: str = sys.executable
) -> Iterator[tuple[dict[str, str], str, list[int]]]:
    """Run a mesh, by default the benchmarks' own; yields addresses, edge URL, and process ids of sidecars and edge."""
    state = SCRATCH / f"state-{name}"
    for one in state.iterdir() if state.is_dir() else ():
        if one.name != "identity":  # keys with which a benchmark has signed events already
            shutil.rmtree(one) if one.is_dir() else one.unlink()
    command = (python, "-P", "-m", "mesh", "up", "--file", str(file))
    with process(*command, environ={"MESH_STATE": str(state), "MESH_STUBS": str(STUBS), **environ}) as up:
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError, ValueError):
                running = json.loads((state / "up.json").read_text())
                if running.get("addresses"):
                    break
            if up.poll() is not None or time.monotonic() > until:
                sys.exit(f"the mesh did not start; see {SCRATCH}")
            time.sleep(0.05)
        yield running["addresses"], running["edge"], children(up.pid)


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    return [pid, *(one for child in children(pid) for one in family(child))]


def title(pid: int) -> str:
    """Return the name that a process has set, "" if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the CPU time of some processes so far (user and system, all threads)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def cpu_nanoseconds(pid: int) -> int:
    """Return the CPU time of a process's first thread so far, in the scheduler's resolution."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def footprint(pid: int) -> tuple[float, float]:
    """Return the memory of a process in MiB: with its share of shared pages (PSS), and without shared pages (USS)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {name: int(size) / 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return found["Pss"], found["Private_Clean"] + found["Private_Dirty"]


def memory(pids: Sequence[int]) -> float:
    """Return the memory of some processes in MiB; pages that they share count once (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
            total += int(found[1]) if found else 0
    return total / 1024


def grpc_body(message: bytes) -> Path:
    """Write one framed message to a file for h2load."""
    SCRATCH.mkdir(exist_ok=True)
    file = SCRATCH / "request.grpc"
    file.write_bytes(struct.pack(">BI", 0, len(message)) + message)
    return file


def h2load(
    body: Path, headers: Sequence[str] = (), seconds: int = 4, connections: int = 8, streams: int = 32
) -> Callable[[Contender], tuple[float, float, float]]:
    """Return a load of gRPC calls, ``streams`` at once on each connection."""
    log = SCRATCH / "h2load.log"

    def load(contender: Contender) -> tuple[float, float, float]:
        log.unlink(missing_ok=True)
        more = [part for header in headers for part in ("-H", header)]
        done = subprocess.run(
            ["h2load", "-D", str(seconds), "--warm-up-time=1", "-c", str(connections), "-m", str(streams),
             "-d", str(body),
             "-H", "content-type: application/grpc", "-H", "te: trailers", *more, f"--log-file={log}", contender.url],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        rate = re.search(r"finished in .*?, ([\d.]+) req/s", done)
        failed = re.search(r"(\d+) failed, (\d+) errored", done)
        if rate is None or failed is None or failed[1] != "0":
            sys.exit(f"{contender.name}: calls failed:\n{done}")
        took = sorted(int(line.rpartition("\t")[2]) / 1000 for line in log.read_text().splitlines())
        return float(rate[1]), took[len(took) // 2], took[len(took) * 99 // 100]

    return load


def wrk(script: Path, connections: int = 64, seconds: int = 4) -> Load:
    """Return a load of HTTP requests on keep-alive connections."""

    def load(contender: Contender) -> tuple[float, float, float]:
        done = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), contender.url],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        rate = re.search(r"Requests/sec:\s+([\d.]+)", done)
        if rate is None or "Non-2xx" in done:
            sys.exit(f"{contender.name}: requests failed:\n{done}")
        return float(rate[1]), _ms(done, "50%"), _ms(done, "99%")

    return load


def paced(rate: int, body: bytes, connections: int = 16, seconds: int = 4) -> Load:
    """Return a load of ``rate`` HTTP requests/s, the same for every contender."""
    SCRATCH.mkdir(exist_ok=True)
    data, log = SCRATCH / "request.json", SCRATCH / "paced.log"
    data.write_bytes(body)

    def load(contender: Contender) -> tuple[float, float, float]:
        log.unlink(missing_ok=True)
        subprocess.run(
            ["h2load", "--h1", "-D", str(seconds), "-c", str(connections), f"--rps={max(1, rate // connections)}",
             "-d", str(data), "-H", "content-type: application/json", f"--log-file={log}", contender.url],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        rows = [line.split("\t") for line in log.read_text().splitlines()]
        if not rows or any(row[1] != "200" for row in rows):
            sys.exit(f"{contender.name}: requests failed at {rate}/s")
        took = sorted(int(row[2]) / 1000 for row in rows)
        return len(rows) / seconds, took[len(took) // 2], took[len(took) * 99 // 100]

    return load


def _ms(text: str, percentile: str) -> float:
    found = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)", text)
    scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}
    return float(found[1]) * scale[found[2]] if found else float("nan")


def rounds(contenders: Sequence[Contender], load: Load, count: int) -> dict[str, Figures]:
    """Load each contender in turn, ``count`` times after a round that only warms up.

    Every other round runs in reverse, because the order of contenders makes a difference of some percent.
    """
    found = {contender.name: Figures() for contender in contenders}
    for turn in range(count + 1):
        for contender in contenders if turn % 2 else reversed(contenders):
            used, began = cpu_seconds(contender.pids), time.monotonic()
            rate, p50, p99 = load(contender)
            took = time.monotonic() - began
            cpu = (cpu_seconds(contender.pids) - used) / (rate * took) * 1e6
            if turn:
                found[contender.name].add(rate, p50, p99, cpu, memory(contender.pids))
            print(f"  round {turn}/{count}  {contender.name:46} {rate:9.0f}/s", file=sys.stderr, flush=True)
    return found


def table(found: Mapping[str, Figures], reference: str) -> str:
    """Return the medians as a Markdown table, with the ratio of ``reference``'s rate to each, pair by pair."""
    lines = [
        f"| contender | requests/s | p50 ms | p99 ms | CPU µs/request | memory MiB | {reference} is |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, figures in found.items():
        ratios = [ours / theirs for ours, theirs in zip(found[reference].rate, figures.rate, strict=True)]
        p50, p99 = statistics.median(figures.p50), statistics.median(figures.p99)
        lines.append(
            f"| {name} | {statistics.median(figures.rate):,.0f} | {_cell(p50)} | {_cell(p99)} "
            f"| {statistics.median(figures.cpu):.0f} | {statistics.median(figures.memory):.0f} "
            f"| {statistics.median(ratios):.2f}× |"
        )
    return "\n".join(lines)


def _cell(value: float) -> str:
    return "" if value != value else f"{value:.1f}"  # noqa: PLR0124 - NaN


def machine() -> str:
    """Return the machine that the figures were measured on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    name = model[1] if model else platform.machine()
    return f"{os.cpu_count()} cores of {name}, {platform.system()}, Python {platform.python_version()}"


def report(name: str, text: str) -> None:
    """Print a result and write it to benchmarks/results."""
    body = f"# {name}\n\n{time.strftime('%Y-%m-%d')}, {machine()}.\n\n{text}\n"
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / f"{name}.md").write_text(body)
    print(body)

"""Memory and CPU of the edge for 10,000 idle keep-alive connections, and its response time then.

    python -m benchmarks idle

Each connection has made one request and stays open. Needs Linux (/proc). The limit of open files is raised to its
maximum.
"""

from __future__ import annotations

import resource
import socket
import time
from pathlib import Path

from benchmarks import load

CONNECTIONS = 10_000
BODY = b'{"name":"alice","email":"alice@example.com"}'
REQUEST = (
    b"POST /v1/users HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


def run(_rounds: int) -> None:
    """Measure and report."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    count = min(CONNECTIONS, most - 200)
    with load.our_mesh("idle", {"OTEL_SDK_DISABLED": "true"}) as (_, edge, pids):
        host, _, port = edge.removeprefix("http://").rpartition(":")
        pid = next(pid for pid in pids if b"edge" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))
        _ask(socket.create_connection((host, int(port))))
        before = _memory(pid)
        opened = []
        for _ in range(count):
            opened.append(socket.create_connection((host, int(port))))
            _ask(opened[-1])
        time.sleep(2)
        held = _memory(pid) - before
        cpu = load.cpu_seconds([pid])
        time.sleep(5)
        cpu = (load.cpu_seconds([pid]) - cpu) / 5
        slowest = max(_ask(one) for one in opened[:: count // 100])
        for one in opened:
            one.close()
    text = (
        f"| connections | memory before | held for them | a connection | CPU while idle | slowest of 100 requests |\n"
        f"| ---: | ---: | ---: | ---: | ---: | ---: |\n"
        f"| {count:,} | {before / 2**20:.0f} MiB | {held / 2**20:.0f} MiB | {held / count / 1024:.1f} KiB "
        f"| {cpu * 100:.1f} % | {slowest * 1000:.1f} ms |"
    )
    load.report("idle", f"{__doc__.splitlines()[0]}\n\n{text}")


def _ask(opened: socket.socket) -> float:
    """Make a request on a connection, and return the seconds until its response."""
    began = time.perf_counter()
    opened.sendall(REQUEST)
    response = b""
    while b"\r\n\r\n" not in response or not response.endswith(b"}"):
        piece = opened.recv(65536)
        assert piece, response
        response += piece
    assert response.startswith(b"HTTP/1.1 200"), response
    return time.perf_counter() - began


def _memory(pid: int) -> int:
    """Return the resident memory of a process, bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()

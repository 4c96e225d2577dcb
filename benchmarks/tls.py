"""Cost of TLS between a caller and a service: calls, handshakes, resumption, and renewals under load.

    python -m benchmarks tls [--rounds 5]

The server is the mesh's listener in another process, once with plain text and once with TLS and client certificates.
The caller is the mesh's channel. The renewals are those of 30 days with leaves of 24 hours, 60 of each side, in
about a minute.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from pki import Pki  # noqa: E402 - after the path is set

from benchmarks import load  # noqa: E402
from mesh.address import split  # noqa: E402
from mesh.certificates import CredentialFiles, Credentials  # noqa: E402
from mesh.rpc.client.channel import Channel  # noqa: E402
from mesh.rpc.client.service_tls import ServiceTls  # noqa: E402
from mesh.rpc.client.target import Target  # noqa: E402
from mesh.rpc.server import listener  # noqa: E402
from mesh.rpc.server.listener import CertificateFiles, Listener  # noqa: E402

CONCURRENCY = 32
CALLS = 2000
HANDSHAKES = 200
RENEWALS = 60
RENEWAL_DELAY = 0.8
"""Seconds between two renewals: 30 days in about a minute."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PATH = "/bench.Echo/Unary"


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", scope["type"] == "http"
    while more:
        event = await receive()
        body, more = body + event.get("body", b""), event.get("more_body", False)
    headers = [(b"content-type", b"application/grpc")]
    await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})
    await send({"type": "http.response.body", "body": body})
    await send({"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]})


def _files(found: CredentialFiles) -> CertificateFiles:
    return CertificateFiles(found.certificate, found.private_key, found.roots)


async def serve(folder: Path) -> None:
    """Serve both listeners; present the files anew for each line of standard input."""
    files = _files(CredentialFiles.of(folder, "echo"))
    plain = Listener(_echo, "127.0.0.1:0", grpc=True, drain=1.0)
    secured = Listener(_echo, "127.0.0.1:0", grpc=True, drain=1.0, tls=files)
    print(await plain.start(), await secured.start(), flush=True)
    listener.RETIRE_DELAY = 0.0
    while await asyncio.to_thread(sys.stdin.readline):
        await secured.renew(files)
        print("renewed", flush=True)
    await asyncio.gather(plain.stop(), secured.stop())


async def _loaded(call: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
    """Return calls per second, and this process's CPU time for a call in µs."""
    left = iter(range(CALLS))

    async def work() -> None:
        for _ in left:
            await call()

    began, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*[work() for _ in range(CONCURRENCY)])
    return CALLS / (time.perf_counter() - began), (time.process_time() - used) / CALLS * 1e6


def _handshakes(address: str, context: ssl.SSLContext, *, resume: bool) -> tuple[float, int]:
    """Return handshakes per second, one after the other, and how many resumed a session."""
    session: ssl.SSLSession | None = None
    resumed, began = 0, time.perf_counter()
    for _ in range(HANDSHAKES):
        with (
            socket.create_connection(split(address)) as plain,
            context.wrap_socket(plain, session=session if resume else None) as secured,
        ):
            resumed += bool(secured.session_reused)
            secured.sendall(PREFACE)
            secured.recv(1)  # the server's SETTINGS; the session ticket came before
            session = secured.session
    return HANDSHAKES / (time.perf_counter() - began), resumed


async def _measure(folder: Path, rounds: int) -> str:
    pki = Pki(folder)
    pki.issue("echo")
    caller = Credentials(pki.mesh, "caller", pki.issue("caller"))
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.tls", str(folder), cwd=ROOT, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        plain_address, tls_address = (await server.stdout.readline()).decode().split()
        tls = ServiceTls(caller, "echo")
        targets = {"plain text": Target([plain_address]), "TLS 1.3, both certificates": Target([tls_address], tls=tls)}
        calls = {name: Channel(target).unary_unary(PATH) for name, target in targets.items()}
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in targets}
        for turn in range(rounds + 1):
            for name, stub in calls.items():
                found = await _loaded(lambda stub=stub: stub(b"x" * 64, timeout=10))  # type: ignore[misc]
                if turn:  # the first warms up
                    rows[name].append(found)
        lines = ["| connection | calls/s | CPU of the caller, µs/call |", "| --- | ---: | ---: |"]
        for name, found_rows in rows.items():
            rate, cpu = (statistics.median(column) for column in zip(*found_rows, strict=True))
            lines.append(f"| {name} | {rate:,.0f} | {cpu:.1f} |")
        lines += ["", "| handshake | per second | sessions resumed |", "| --- | ---: | ---: |"]
        for name, resume in (("full", False), ("with the last session", True)):
            rate, resumed = await asyncio.to_thread(_handshakes, tls_address, caller.client_context(), resume=resume)
            lines.append(f"| {name} | {rate:,.0f} | {resumed} of {HANDSHAKES} |")
        stub = calls["TLS 1.3, both certificates"]
        ok, failed, seconds = await _renewals(pki, caller, server, lambda: stub(b"x" * 64, timeout=10))
        lines += ["", f"{RENEWALS} renewals of both sides in {seconds:.0f} s: {ok:,} calls succeeded, {failed} failed."]
        await asyncio.gather(*(target.close() for target in targets.values()))
        server.stdin.close()
        await server.wait()
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()
    return "\n".join(lines)


async def _renewals(
    pki: Pki, caller: Credentials, server: asyncio.subprocess.Process, call: Callable[[], Awaitable[Any]]
) -> tuple[int, int, float]:
    """Return the calls that succeeded and failed while both sides renewed, and the seconds that it took."""
    assert server.stdin is not None
    assert server.stdout is not None
    ended, counts = asyncio.Event(), [0, 0]

    async def work() -> None:
        while not ended.is_set():
            try:
                await call()
            except Exception as error:  # noqa: BLE001 - counted
                counts[1] += 1
                print(error, file=sys.stderr)
                await asyncio.sleep(0.01)  # a call that fails at once would not let the loop turn
            else:
                counts[0] += 1

    workers = [asyncio.create_task(work()) for _ in range(CONCURRENCY)]
    began = time.perf_counter()
    for _ in range(RENEWALS):
        pki.issue("echo")
        pki.issue("caller")
        server.stdin.write(b"renew\n")
        caller.reload()
        await server.stdout.readline()
        await asyncio.sleep(RENEWAL_DELAY)
    ended.set()
    await asyncio.gather(*workers)
    return counts[0], counts[1], time.perf_counter() - began


def run(rounds: int) -> None:
    """Measure, print the tables, and write them to the results."""
    with tempfile.TemporaryDirectory() as folder:
        table = uvloop.run(_measure(Path(folder), rounds))
    load.report("tls", f"{(__doc__ or '').splitlines()[0]}\n\n{table}")


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))

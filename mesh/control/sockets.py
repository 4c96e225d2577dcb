"""The listening sockets of a mesh: ``mesh up`` owns them, so a component that is restarted keeps its address.

While nobody accepts, connections wait in the kernel's backlog instead of being refused.
"""

from __future__ import annotations

import errno
import os
import socket

from mesh.faults import Fault, Faults

__all__ = ["bind", "name_of", "reachable", "split"]

_BACKLOG = 1024
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - what others put in place of "any address"


def split(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port``; the brackets of an IPv6 address go."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def bind(place: str, address: str) -> socket.socket:
    """Return a socket that listens at ``address``; port 0 picks a free one.

    Args:
        place: Who wants it, for the fault: ``mesh.toml [services.login] listen``.
        address: ``host:port``.

    Raises:
        Faults: The address is taken, is not one of this machine, or may not be used.
    """
    host, port = split(address)
    try:
        family, kind, protocol, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise Faults([Fault(place, f"{address} cannot be used: {error.strerror or error}")]) from None
    try:
        # After a stop, connections of the last run linger for a minute (TIME_WAIT) and must not block the next.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise Faults([Fault(place, _why(address, error))]) from None
    return listener


def _why(address: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{address} is taken by another program; stop it or listen elsewhere (port 0 picks a free one)"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{address} is no address of this machine"
    if error.errno == errno.EACCES:
        return f"{address} may not be used by this user; ports below 1024 need privileges"
    return f"{address} cannot be used: {os.strerror(error.errno or 0)}"


def name_of(listener: socket.socket) -> str:
    """Return the ``host:port`` at which the socket listens."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(address: str) -> str:
    """Return the ``host:port`` at which others on this machine reach a listener."""
    host, _, port = address.rpartition(":")
    return f"{_EVERYWHERE.get(host, host)}:{port}"

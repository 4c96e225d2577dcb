"""Listening sockets of a mesh; ``mesh up`` owns them, so a component that is restarted keeps its address.

While no process accepts, connections wait in the kernel's backlog instead of being refused.
"""

from __future__ import annotations

import errno
import os
import socket

from mesh import address as addresses
from mesh.faults import Fault, Faults

__all__ = ["bind"]

_BACKLOG = 1024


def bind(place: str, address: str) -> socket.socket:
    """Return a socket that listens at ``address``; port 0 picks a free port.

    Args:
        place: Key of the address, for the fault: ``mesh.toml [services.login] listen``.
        address: ``host:port``.

    Raises:
        Faults: The address is taken, is not one of this machine, or may not be used.
    """
    try:
        return addresses.bind(address, _BACKLOG)
    except OSError as error:
        raise Faults([Fault(place, _reason(address, error))]) from None


def _reason(address: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{address} is taken by another program; stop it or listen elsewhere (port 0 picks a free one)"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{address} is no address of this machine"
    if error.errno == errno.EACCES:
        return f"{address} may not be used by this user; ports below 1024 need privileges"
    known = error.errno and error.errno > 0  # error numbers of the resolver are negative
    return f"{address} cannot be used: {os.strerror(error.errno or 0) if known else error.strerror or error}"

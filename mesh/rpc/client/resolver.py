"""Name resolution: ``host:port`` → the endpoints to connect to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mesh.address import join
from mesh.address import split as split_any

__all__ = ["Endpoint", "is_static", "resolve", "split"]


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """One resolved IP address and port.

    Attributes:
        host: IP address.
        port: Port.
        address: The ``host:port`` that it was resolved from.
    """

    host: str
    port: int
    address: str

    def __str__(self) -> str:
        resolved = join(self.host, self.port)
        return resolved if resolved == self.address else f"{self.address} ({resolved})"


def split(address: str) -> tuple[str, int]:
    """Return host and port of an address to connect to (``mesh.address.split``).

    Raises:
        ValueError: It is no ``host:port``, or the port is 0.
    """
    host, port = split_any(address)
    if not port:
        raise ValueError(f"port 0 of {address!r} is not within 1 … 65535")
    return host, port


def is_static(address: str) -> bool:
    """Whether the host is an IP address, which need not be resolved again."""
    try:
        ipaddress.ip_address(split(address)[0])
    except ValueError:
        return False
    return True


async def look_up(host: str, port: int) -> Sequence[tuple[Any, ...]]:
    """Return the result of ``getaddrinfo`` for a name; it runs in the loop's executor."""
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)


async def resolve(addresses: Sequence[str]) -> tuple[frozenset[Endpoint], str]:
    """Return the endpoints of the addresses, and the errors of those that cannot be resolved ("" if there is none).

    Raises:
        ValueError: An address is not ``host:port``.
    """
    found: set[Endpoint] = set()
    errors: list[str] = []
    for address in addresses:
        host, port = split(address)
        if is_static(address):
            found.add(Endpoint(host, port, address))
            continue
        try:
            results = await look_up(host, port)
        except (OSError, UnicodeError) as error:
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            errors.append(f"{address}: cannot be resolved ({reason})")
            continue
        found.update(Endpoint(_host(result[4]), port, address) for result in results)
    return frozenset(found), "; ".join(errors)


def _host(socket_address: tuple[Any, ...]) -> str:
    """Return the IP address of a socket address, with the zone of a link-local one."""
    host, _, *scope = socket_address
    return f"{host}%{scope[-1]}" if scope and scope[-1] and "%" not in host else str(host)

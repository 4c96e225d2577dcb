"""``host:port`` → the IP addresses to connect to."""

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
    """One place to connect to.

    Attributes:
        host: IP address.
        port: Port.
        address: The ``host:port`` that it was resolved from.
    """

    host: str
    port: int
    address: str

    def __str__(self) -> str:
        found = join(self.host, self.port)
        return found if found == self.address else f"{self.address} ({found})"


def split(address: str) -> tuple[str, int]:
    """Return host and port of an address to connect to (``mesh.address.split``).

    Raises:
        ValueError: It is none, or the port is 0.
    """
    host, port = split_any(address)
    if not port:
        raise ValueError(f"port 0 of {address!r} is not within 1 … 65535")
    return host, port


def is_static(address: str) -> bool:
    """Whether the host is an IP address, so that resolving it again finds nothing new."""
    try:
        ipaddress.ip_address(split(address)[0])
    except ValueError:
        return False
    return True


async def look_up(host: str, port: int) -> Sequence[tuple[Any, ...]]:
    """Return what the system's resolver says of a name (``getaddrinfo``), asked in the loop's executor."""
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)


async def resolve(addresses: Sequence[str]) -> tuple[frozenset[Endpoint], str]:
    """Return where the addresses lead, and what went wrong with those that lead nowhere ("" if nothing did).

    Raises:
        ValueError: An address is not ``host:port``.
    """
    found: set[Endpoint] = set()
    troubles: list[str] = []
    for address in addresses:
        host, port = split(address)
        if is_static(address):
            found.add(Endpoint(host, port, address))
            continue
        try:
            answers = await look_up(host, port)
        except (OSError, UnicodeError) as error:
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            troubles.append(f"{address}: cannot be resolved ({reason})")
            continue
        found.update(Endpoint(_host(answer[4]), port, address) for answer in answers)
    return frozenset(found), "; ".join(troubles)


def _host(found: tuple[Any, ...]) -> str:
    """Return the IP address of a socket address, with the zone of a link-local one."""
    host, _, *scope = found
    return f"{host}%{scope[-1]}" if scope and scope[-1] and "%" not in host else str(host)

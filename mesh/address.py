"""Addresses of the forms ``host:port`` and ``[IPv6]:port``: parser, formatter and listening sockets.

Sources: RFC 3986, 3.2.2 (brackets); RFC 4007, 11 (zones, ``fe80::1%eth0``); RFC 6874 (a zone means nothing to others).
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from ipaddress import IPv6Address, ip_address

__all__ = ["ANY", "authority", "bind", "bound_address", "is_loopback", "join", "reachable", "split"]

ANY = "*"
"""Host for all interfaces, of IPv4 and, if the system has it, of IPv6."""

_ADDRESS = re.compile(r"(?:\[(?P<six>[^\[\]\s]+)\]|(?P<host>[^:\[\]/\s]+)):(?P<port>[0-9]{1,5})\Z")
_MAX_PORT = 65535


def split(address: str) -> tuple[str, int]:
    """Return host and port of an address. The host has no brackets and keeps its zone.

    Raises:
        ValueError: The text is no address. The message has the correction.
    """
    match = _ADDRESS.match(address)
    if match is None:
        raise ValueError(f"expected host:port, got {address!r}{_hint(address)}")
    host, port = match["host"] or match["six"], int(match["port"])
    if match["six"] and not _is_ipv6(host):
        raise ValueError(f"expected host:port, got {address!r}; {host!r} is no IPv6 address")
    if not host.isascii():
        raise ValueError(f"expected host:port, got {address!r}; write the name in ASCII{_punycode(host)}")
    if port > _MAX_PORT:
        raise ValueError(f"expected host:port, got {address!r}; a port is at most {_MAX_PORT}")
    return host, port


def _hint(address: str) -> str:
    """Return the probable correction, as the end of a sentence."""
    host, _, port = address.rpartition(":")
    if not host and port.isdigit():
        return f'; for all interfaces write "{ANY}:{port}"'
    if _is_ipv6(host):
        return f'; write an IPv6 address in brackets: "[{host}]:{port}"'
    if _is_ipv6(address):
        return f'; write an IPv6 address in brackets, with a port: "[{address}]:8080"'
    return ""


def _is_ipv6(text: str) -> bool:
    try:
        return ip_address(text).version == 6  # noqa: PLR2004 - the protocol's number
    except ValueError:
        return False


def _punycode(host: str) -> str:
    try:
        return f": {host.encode('idna').decode()!r}"
    except UnicodeError:
        return ""


def join(host: str, port: int) -> str:
    """Return the address of host and port, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def authority(address: str) -> str:
    """Return the address as ``:authority`` of a request, without the zone, which only this machine knows."""
    return re.sub(r"%[^\]]*\]", "]", address)


def reachable(address: str) -> str:
    """Return the address for clients on this machine: loopback if the listener is on all interfaces."""
    host, port = split(address)
    if host in (ANY, "0.0.0.0") or (_is_any(host) and socket.has_dualstack_ipv6()):  # noqa: S104 - compared
        return join("127.0.0.1", port)  # a system may have IPv6 sockets and no ::1
    return join("::1", port) if _is_any(host) else address


def _is_any(host: str) -> bool:
    return ":" in host and ip_address(host).is_unspecified


def _is_mapped(host: str) -> bool:
    """Whether a host is an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2), which needs a dual-stack socket."""
    return ":" in host and IPv6Address(host).ipv4_mapped is not None


def bind(address: str, backlog: int) -> socket.socket:
    """Return a socket that listens at ``address``. Port 0 selects a free port.

    ``*`` and ``[::]`` stand for all interfaces, also of IPv4.

    Raises:
        ValueError: The text is no address.
        OSError: The address is in use, belongs to another machine, or is not permitted.
    """
    host, port = split(address)
    if host == ANY:
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - the user asked for it
    family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    dual = family == socket.AF_INET6 and (_is_any(host) or _is_mapped(host)) and socket.has_dualstack_ipv6()
    # create_server sets SO_REUSEADDR, because connections of the last run linger for a minute in TIME_WAIT.
    return socket.create_server(found, family=family, backlog=backlog, dualstack_ipv6=dual)


def bound_address(listener: socket.socket) -> str:
    """Return the address of a listening socket."""
    host, port, *scope = listener.getsockname()
    zone = scope[-1] if scope else 0
    if zone and "%" not in host:
        with suppress(OSError):
            zone = socket.if_indextoname(zone)
        host = f"{host}%{zone}"
    return join(host, port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's loopback interface. Of names only ``localhost`` is (RFC 6761, 6.3)."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        found = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback

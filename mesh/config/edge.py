"""Tables of ``[edge]``: CORS, rate limits and TLS, and the checks of headers and proxies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import collapse_addresses, ip_network
from typing import Any, Protocol

import msgspec

from mesh.config.values import Duration, Rate, Size
from mesh.faults import Fault
from mesh.headers import CLIENT_ONLY, MESH_PREFIXES, PROPAGATED

__all__ = [
    "CorsConfig",
    "EdgeTlsConfig",
    "RateLimitConfig",
    "client_faults",
    "cors_faults",
    "metadata_faults",
    "proxy_faults",
]

_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.\-]*)://(?:\[[0-9a-f:.]+\]|[a-z0-9_.\-]+)(?::(?P<port>\d{1,5}))?\Z")
_TOKEN = re.compile(r"[0-9a-z!#$%&'*+\-.^_`|~]+\Z")
_PAGELESS = frozenset({"about", "blob", "data", "file", "ftp", "javascript", "mailto", "ws", "wss"})
"""Schemes that no page with an origin of its own has. Apps and browser extensions have schemes of their own."""
MIN_STALL_SECONDS = 1.0
"""Shortest ``stall``. A lost packet delays a connection by as much."""
_DEFAULT_PORTS = {("http", "80"), ("https", "443")}


class CorsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[edge.cors]``: web pages that may read responses of the edge.

    Attributes:
        origins: Exact origins (``https://app.example``), or ``["*"]`` for every page.
        credentials: Whether browsers may send credentials, such as cookies.
        expose: Further response headers that a page may read.
        max_age: Time for which a browser may cache a preflight response.
    """

    origins: tuple[str, ...]
    credentials: bool = False
    expose: tuple[str, ...] = ()
    max_age: Duration = Duration(600)


class RateLimitConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[edge.rate_limit]``: rate limits of one client; 429 beyond them.

    Attributes:
        per_client: Rate limit for each client address.
        per_identity: Rate limit for each verified user.
    """

    per_client: Rate | None = None
    per_identity: Rate | None = None


class EdgeTlsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[edge.tls]``: HTTPS. The files are read again when they change.

    Attributes:
        certificate: Certificate and intermediate certificates (PEM), relative to mesh.toml.
        private_key: Its key (PEM), without a password.
        client_ca: Authorities (PEM) of the certificates that every client must have; ``""``: clients need none. Such a
            certificate opens the connection and names no user.
        hsts: Time for which browsers use HTTPS only (``Strict-Transport-Security``); ``"0s"`` makes them forget it.
        redirect: ``host:port`` of a plain listener that redirects to HTTPS; ``""``: none.
    """

    certificate: str
    private_key: str
    client_ca: str = ""
    hsts: Duration = Duration(30 * 86400)
    redirect: str = ""


def cors_faults(cors: CorsConfig, place: str) -> Iterator[Fault]:
    """Check the origins (Fetch standard: an origin is scheme, host and port, in lower case) and the header names."""
    for origin in cors.origins:
        if origin == "*":
            if len(cors.origins) > 1:
                yield Fault(place, '"*" means every origin; name it alone, or name origins without it')
            if cors.credentials:
                yield Fault(place, 'credentials with "*" would let every page act as its visitor; name the origins')
            continue
        match = _ORIGIN.match(origin)
        if match is None:
            yield Fault(place, f'expected an origin such as "https://app.example", without a path, got {origin!r}')
        elif match["scheme"] in _PAGELESS:
            yield Fault(place, f"no page has an origin with the scheme {match['scheme']!r}; expected https or http")
        elif (match["scheme"], match["port"]) in _DEFAULT_PORTS:
            yield Fault(place, f"browsers leave the default port out of an origin: write {origin.rpartition(':')[0]!r}")
    for name in cors.expose:
        if not _TOKEN.match(name):
            yield Fault(f"{place} expose", f"expected the name of a header in lower case, got {name!r}")


class _ClientLimits(Protocol):
    """Keys of ``[edge]`` that limit clients."""

    @property
    def max_body(self) -> Size: ...

    @property
    def buffers(self) -> Size: ...

    @property
    def stall(self) -> Duration: ...


def client_faults(edge: _ClientLimits, place: str) -> Iterator[Fault]:
    """Check the limits on clients."""
    if edge.buffers < edge.max_body:
        yield Fault(f"{place} buffers", f"must be at least max_body, {int(edge.max_body)} bytes")
    if edge.stall < MIN_STALL_SECONDS:
        yield Fault(f"{place} stall", f"must be at least {MIN_STALL_SECONDS:g} s: shorter pauses are usual in networks")


def metadata_faults(names: Iterable[str], place: str) -> Iterator[Fault]:
    """Check that each header may become metadata of a call."""
    for name in names:
        if not re.fullmatch(r"[0-9a-z_.\-]+", name):
            yield Fault(place, f"expected the name of a header in lower case, got {name!r}")
        elif name.encode() in CLIENT_ONLY:
            yield Fault(place, f"{name!r} belongs to the connection and cannot be forwarded")
        elif name.encode() in PROPAGATED:
            yield Fault(place, f"{name!r} is forwarded by the mesh itself; leave it out")
        elif name.encode().startswith(MESH_PREFIXES):
            yield Fault(place, f"{name!r} is reserved for the mesh and cannot be forwarded from clients")


def proxy_faults(networks: Iterable[str], place: str) -> Iterator[Fault]:
    """Check that each text is an address or a network, and that not every client is a trusted proxy."""
    found: dict[int, list[Any]] = {4: [], 6: []}
    for network in networks:
        try:
            one = ip_network(network)
        except ValueError as error:
            yield Fault(place, f'expected an address or a network such as "10.0.0.0/8": {error}')
        else:
            found[one.version].append(one)
    for version, trusted in found.items():
        if any(not network.prefixlen for network in collapse_addresses(trusted)):
            text = f"every IPv{version} address would be trusted, so clients could write any address; name your proxies"
            yield Fault(place, text)

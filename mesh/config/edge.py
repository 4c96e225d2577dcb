"""Table ``[edge]`` of mesh.toml, with its tables of CORS, rate limits and TLS."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import collapse_addresses, ip_network
from typing import Any, Literal

import msgspec

from mesh.config.checks import address_faults, bound_faults, buffer_bytes, path_faults, stall_faults
from mesh.config.values import Duration, Rate, Size, TimeLimit
from mesh.faults import Fault
from mesh.headers import CLIENT_ONLY, MESH_PREFIXES, PROPAGATED

__all__ = ["TLS_FILES", "CorsConfig", "EdgeConfig", "EdgeTlsConfig", "RateLimitConfig", "edge_faults"]

_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.\-]*)://(?:\[[0-9a-f:.]+\]|[a-z0-9_.\-]+)(?::(?P<port>\d{1,5}))?\Z")
_TOKEN = re.compile(r"[0-9a-z!#$%&'*+\-.^_`|~]+\Z")
_PAGELESS = frozenset({"about", "blob", "data", "file", "ftp", "javascript", "mailto", "ws", "wss"})
"""Schemes that no page with an origin of its own has. Apps and browser extensions have schemes of their own."""
TLS_FILES = ("certificate", "private_key", "client_ca")
"""Keys of ``[edge.tls]`` whose values are paths of files."""
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
        per_identity: Rate limit for each verified user and API key.
        per_key: Rate limit for each API key, instead of ``per_identity``. A key may have one of its own.
    """

    per_client: Rate | None = None
    per_identity: Rate | None = None
    per_key: Rate | None = None


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


class EdgeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[edge]``: the HTTP listener. Without the table the mesh has no edge.

    Attributes:
        listen: ``host:port``; port 0 selects a free port.
        max_body: Size limit of a request body.
        timeout: Timeout of a unary call whose method declares none, and of the body of every request.
        concurrency: Unary calls to the services in progress at most.
        queue: Calls that may wait for a permit; 429 beyond that.
        adaptive: Limit a method below ``concurrency``, and the time in the queue, while its queues are too long.
        streams: Open streams at most: streaming methods over HTTP, WebSocket and gRPC; 429 beyond that.
        streams_per_connection: Requests in progress on one connection of HTTP/2.
        connections: Connections at most. Near the limit, those of the clients that have most are closed, but none of a
            trusted proxy.
        uploads: Requests whose bodies are still coming in, at most; 429 beyond that.
        buffers: Size limit of the request bodies and responses that are held for all clients; 429 beyond that. None:
            24 MiB, or twice ``max_body`` if that is more.
        stall: Time for which a client may send nothing of a request, or read nothing of a response; then it is dropped.
        drain: Time that a shutdown waits for requests in progress.
        max_uri: Size limit of the path with its query; 414 beyond that.
        max_headers: Size limit of the header section; 431 beyond that.
        cors: Origins whose pages may read responses, or the table with all options; empty: none.
        metadata: Request headers, in lower case, that functions get as metadata.
        trusted_proxies: Addresses and networks of trusted proxies, whose ``Forwarded`` and ``X-Forwarded-*`` count.
        ignore_unknown_fields: Ignore unknown JSON fields instead of refusing them with 400.
        rate_limit: Rate limits of one client.
        tls: HTTPS; None: plain HTTP.
        client_trace: Meaning of a client's ``traceparent``: ``"link"`` begins a trace with a link to the client's,
            ``"trust"`` continues it with its sampled flag, ``"restart"`` ignores it.
        docs: Serve ``/docs`` and ``/openapi.json``.
        reflection: Serve gRPC reflection.
        health: Serve ``grpc.health.v1``. ``/healthz`` and ``/livez`` are served in any case.
    """

    listen: str = "127.0.0.1:8080"
    max_body: Size = Size(4 * 2**20)
    timeout: TimeLimit = TimeLimit(30)
    concurrency: int = 1000
    queue: int = 1000
    adaptive: bool = True
    streams: int = 1000
    streams_per_connection: int = 128
    connections: int = 10_000
    uploads: int = 1000
    buffers: Size | None = None
    stall: Duration = Duration(10)
    drain: Duration = Duration(10)
    max_uri: Size = Size(8 * 2**10)
    max_headers: Size = Size(32 * 2**10)
    cors: tuple[str, ...] | CorsConfig = ()
    metadata: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    ignore_unknown_fields: bool = False
    rate_limit: RateLimitConfig = RateLimitConfig()
    tls: EdgeTlsConfig | None = None
    client_trace: Literal["link", "trust", "restart"] = "link"
    docs: bool = True
    reflection: bool = True
    health: bool = True

    @property
    def buffer_bytes(self) -> int:
        """``buffers``, or what it is by default."""
        return buffer_bytes(self.buffers, self.max_body)

    @property
    def cors_rules(self) -> CorsConfig:
        """``cors`` as a table."""
        return self.cors if isinstance(self.cors, CorsConfig) else CorsConfig(origins=self.cors)


def edge_faults(edge: EdgeConfig, place: str) -> Iterator[Fault]:
    """Check the values of ``[edge]`` and of its tables."""
    yield from address_faults(f"{place} listen", edge.listen)
    yield from bound_faults(
        edge, place, "max_body", "max_uri", "max_headers", "streams", "uploads", "connections", "streams_per_connection"
    )
    yield from _client_faults(edge, place)
    yield from _cors_faults(edge.cors_rules, f"{place} cors")
    yield from _metadata_faults(edge.metadata, f"{place} metadata")
    yield from _proxy_faults(edge.trusted_proxies, f"{place} trusted_proxies")
    yield from _tls_faults(edge.tls, f"{place[:-1]}.tls]")


def _cors_faults(cors: CorsConfig, place: str) -> Iterator[Fault]:
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


def _client_faults(edge: EdgeConfig, place: str) -> Iterator[Fault]:
    """Check the limits on clients."""
    if edge.buffer_bytes < edge.max_body:
        yield Fault(f"{place} buffers", f"must be at least max_body, {int(edge.max_body)} bytes")
    yield from stall_faults(edge.stall, place)


def _metadata_faults(names: Iterable[str], place: str) -> Iterator[Fault]:
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


def _proxy_faults(networks: Iterable[str], place: str) -> Iterator[Fault]:
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


def _tls_faults(tls: EdgeTlsConfig | None, place: str) -> Iterator[Fault]:
    if tls is None:
        return
    for key in TLS_FILES:
        if not getattr(tls, key) and key != "client_ca":
            yield Fault(f"{place} {key}", "name a PEM file")
        yield from path_faults(f"{place} {key}", getattr(tls, key))
    if tls.redirect:
        yield from address_faults(f"{place} redirect", tls.redirect)

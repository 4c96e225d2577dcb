"""Origin of requests that came through trusted proxies: ``Forwarded`` (RFC 7239) and ``X-Forwarded-*``.

The list of addresses is read from the right, because each proxy appends the address that it was reached from. The first
address that is no trusted proxy is the client. Everything left of it was written by the client and is ignored. Scheme
and host are those that the same proxy appended. A malformed element ends the reading at the proxy that sent it. A proxy
writes one of the two headers and may pass on the other as the client wrote it. If both are present and differ, neither
is trusted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, cast

from mesh.edge.calls import Origin

if TYPE_CHECKING:
    from mesh.call import Call, Handler, Layer, Metadata
    from mesh.edge.calls import HttpCall

__all__ = ["forwarded", "host_of", "origin_of"]

Networks = Sequence[IPv4Network | IPv6Network]

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PAIR = re.compile(rf"\s*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)=({_QUOTED}|[!#$%&'*+\-.^_`|~0-9A-Za-z:\[\]]+)\s*\Z")
_ELEMENTS = re.compile(rf"(?:{_QUOTED}|[^,\"])+")
_PAIRS = re.compile(rf"(?:{_QUOTED}|[^;\"])+")
_HOST = re.compile(r"[0-9A-Za-z._~\-\[\]:%]+\Z")
_SCHEMES = frozenset({"http", "https"})
_MAX_ELEMENTS = 64
"""Elements that are read."""


def host_of(node: str) -> IPv4Address | IPv6Address | None:
    """Return the address of ``1.2.3.4``, ``1.2.3.4:80``, ``::1``, ``[::1]`` or ``[::1]:80``; None for other text.

    An IPv4 address mapped into IPv6 is the IPv4 address.
    """
    text = node.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def origin_of(peer: str, metadata: Metadata, trusted: Networks) -> Origin | None:
    """Return the origin of a request, or None if its peer is no trusted proxy.

    Args:
        peer: The address of the connection's other end.
        metadata: The request headers.
        trusted: The trusted proxies.
    """
    address = host_of(peer)
    if address is None or not _in(address, trusted):
        return None
    found = [
        _walk(str(address), elements, trusted)
        for elements in (_rfc7239(_joined(metadata, "forwarded")), _x_forwarded(metadata))
        if elements is not None
    ]
    if len({one.client for one in found}) != 1:
        return Origin(str(address))
    return found[0]


def _in(address: IPv4Address | IPv6Address, networks: Networks) -> bool:
    return any(address in network for network in networks)


def _walk(peer: str, elements: Sequence[dict[str, str]], trusted: Networks) -> Origin:
    """Go from the nearest proxy outwards to the first address that is not trusted."""
    origin = Origin(peer)
    for element in reversed(elements[-_MAX_ELEMENTS:]):
        address = host_of(element.get("for", ""))
        if address is None:
            return origin
        scheme, host = element.get("proto", "").lower(), element.get("host", "")
        origin = Origin(
            str(address),
            scheme if scheme in _SCHEMES else origin.scheme,
            host if _HOST.match(host) else origin.host,
        )
        if not _in(address, trusted):
            return origin
    return origin


def _joined(metadata: Metadata, name: str) -> str | None:
    """Return all values of a header as one list, or None if it is absent."""
    values = metadata.getall(name)
    return ",".join(map(str, values)) if values else None


def _rfc7239(text: str | None) -> list[dict[str, str]] | None:
    if text is None:
        return None
    elements = []
    for element in _ELEMENTS.findall(text):
        pairs: dict[str, str] = {}
        for part in _PAIRS.findall(element):
            match = _PAIR.match(part)
            if match is None:
                pairs = {}
                break
            value = match[2]
            pairs[match[1].lower()] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
        elements.append(pairs)
    return elements


def _x_forwarded(metadata: Metadata) -> list[dict[str, str]] | None:
    clients = _joined(metadata, "x-forwarded-for")
    if clients is None:
        return None
    elements = [{"for": client} for client in clients.split(",")]
    for key, name in (("proto", "x-forwarded-proto"), ("host", "x-forwarded-host")):
        text = _joined(metadata, name)
        if text is None:
            continue
        values = [value.strip() for value in text.split(",")]
        if len(values) == len(elements):
            for element, value in zip(elements, values, strict=True):
                element[key] = value
        else:  # each proxy overwrites it: the value of the nearest proxy, whatever the client is
            for element in elements:
                element[key] = values[-1]
    return elements


def forwarded(proxies: Iterable[str]) -> Layer:
    """Return the outermost layer: it sets the ``origin`` of calls that came through a trusted proxy.

    Args:
        proxies: Addresses and networks of trusted proxies.
    """
    trusted = [ip_network(proxy) for proxy in proxies]

    async def layer(call: Call, next: Handler) -> None:
        request = cast("HttpCall", call)
        request.origin = origin_of(request.peer_address, call.metadata, trusted)
        await next(call)

    return layer

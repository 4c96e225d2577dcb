"""Paths of a mesh that attackers and the honest client use, found in its contract."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mesh.address import split
from mesh.chaos import requests
from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.honest_client import HonestRequest
from mesh.contract.model import Access

if TYPE_CHECKING:
    from mesh.chaos.requests import Workload
    from mesh.contract.model import Contract, Method

__all__ = ["edge_target", "honest_request", "sidecar_targets"]

OPENAPI = "/openapi.json"
HEALTH = "/healthz"


def edge_target(url: str, contract: Contract, workload: Workload) -> AttackTarget:
    """Return the edge as a target.

    Args:
        url: Its URL.
        contract: The contract.
        workload: The calls of the experiment; their method is the costly one.
    """
    parts = urlsplit(url)
    verb, path, _ = requests.request(workload, requests.PLACEHOLDER)
    post = path if verb == "POST" and requests.PLACEHOLDER not in path else ""
    stream = next(_plain_gets(contract, "unary_stream"), "")
    return AttackTarget(
        host=parts.hostname or "", port=parts.port or 0, get=_cheap_get(contract), post=post, large=OPENAPI,
        stream=stream, costly=post,
    )  # fmt: skip


def sidecar_targets(
    addresses: Mapping[str, str], contract: Contract, served: Mapping[str, Iterable[str]]
) -> list[AttackTarget]:
    """Return the sidecars as targets.

    Args:
        addresses: Service of mesh.toml → ``host:port``.
        contract: The contract.
        served: Service of mesh.toml → the gRPC services that it serves.
    """
    found = []
    for name, services in served.items():
        host, port = split(addresses[name])
        methods = [one for service in services for one in contract.services[service].methods.values()]
        unary = sorted(
            (one for one in methods if one.kind == "unary_unary"), key=lambda one: one.access is not Access.PUBLIC
        )
        stream = next((one.path for one in methods if one.kind == "unary_stream"), "")
        first = unary[0].path if unary else ""
        found.append(AttackTarget(host=host, port=port, grpc=True, get=first, post=first, stream=stream))
    return found


def honest_request(contract: Contract) -> HonestRequest:
    """Return a request that may be sent again: the first GET that everybody may call, else the health check."""
    return HonestRequest("GET", _cheap_get(contract))


def _cheap_get(contract: Contract) -> str:
    return next(_plain_gets(contract, "unary_unary"), HEALTH)


def _plain_gets(contract: Contract, kind: str) -> Iterator[str]:
    """Yield the paths without variables of PUBLIC methods of a kind that a GET calls."""
    for method in contract.methods.values():
        if method.kind == kind and method.access is Access.PUBLIC:
            yield from _paths(method)


def _paths(method: Method) -> Iterator[str]:
    for route in method.routes:
        if route.verb == "GET" and "{" not in route.template.text:
            yield route.template.text

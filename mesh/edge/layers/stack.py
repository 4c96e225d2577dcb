"""Optional layers of the edge, enabled by ``[edge]`` of mesh.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.edge.layers.cors import cors
from mesh.edge.layers.forwarded import forwarded
from mesh.edge.layers.header_forwarding import forward_headers
from mesh.edge.layers.rate_limit import client_rate_limit, identity_rate_limit
from mesh.edge.layers.size_limits import size_limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.call import Layer
    from mesh.config.manifest import EdgeConfig
    from mesh.config.values import Rate

__all__ = ["NO_LAYERS", "OptionalLayers"]


@dataclass(frozen=True, slots=True)
class OptionalLayers:
    """Optional layers of the edge; None for each that is not enabled.

    Attributes:
        forwarded: Sets the origin of a request that came through trusted proxies.
        cors: Lets pages of other origins read responses.
        size_limits: Limits URI and headers.
        client_rate_limit: Limits the requests of each client address.
        identity_rate_limit: Limits the requests of each verified user and API key.
        header_forwarding: Forwards request headers as metadata of outbound calls.
        ignore_unknown_fields: Whether JSON fields that a message does not have are ignored.
        docs: Whether ``/docs`` and ``/openapi.json`` are served.
        builtin: Built-in gRPC services that are served.
    """

    forwarded: Layer | None = None
    cors: Layer | None = None
    size_limits: Layer | None = None
    client_rate_limit: Layer | None = None
    identity_rate_limit: Layer | None = None
    header_forwarding: Layer | None = None
    ignore_unknown_fields: bool = False
    docs: bool = True
    builtin: frozenset[str] = frozenset({"health", "reflection"})

    @classmethod
    def of(cls, config: EdgeConfig, rate_of_key: Callable[[str], Rate | None] | None = None) -> OptionalLayers:
        """Return the layers that the configuration enables.

        Args:
            config: The configuration.
            rate_of_key: Returns the rate limit of an API key by its subject, or None if it has none of its own. None:
                no API key is accepted.
        """
        rules, limit = config.cors_rules, config.rate_limit
        client = limit.per_client
        identity = None
        if limit.per_identity or rate_of_key is not None:
            identity = identity_rate_limit(limit.per_identity, limit.per_key, rate_of_key or _no_rate)
        return cls(
            forwarded=forwarded(config.trusted_proxies) if config.trusted_proxies else None,
            cors=cors(rules.origins, credentials=rules.credentials, expose=rules.expose, max_age=float(rules.max_age))
            if rules.origins
            else None,
            size_limits=size_limits(int(config.max_uri), int(config.max_headers)),
            client_rate_limit=client_rate_limit(float(client), client.burst) if client else None,
            identity_rate_limit=identity,
            header_forwarding=forward_headers(config.metadata) if config.metadata else None,
            ignore_unknown_fields=config.ignore_unknown_fields,
            docs=config.docs,
            builtin=frozenset(name for name in ("health", "reflection") if getattr(config, name)),
        )


def _no_rate(_: str) -> None:
    """Return the rate limit of a key where there are no keys."""


NO_LAYERS = OptionalLayers()
"""No optional layer is enabled."""

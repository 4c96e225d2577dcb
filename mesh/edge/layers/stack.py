"""Optional layers of the edge, enabled by ``[edge]`` of mesh.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.edge.layers.cors import cors
from mesh.edge.layers.forwarded import forwarded
from mesh.edge.layers.header_forwarding import forward_headers
from mesh.edge.layers.rate_limit import client_rate_limit, user_rate_limit
from mesh.edge.layers.size_limits import size_limits

if TYPE_CHECKING:
    from mesh.call import Layer
    from mesh.config.manifest import EdgeConfig

__all__ = ["NO_LAYERS", "OptionalLayers"]


@dataclass(frozen=True, slots=True)
class OptionalLayers:
    """Optional layers of the edge; None for each that is not enabled.

    Attributes:
        forwarded: Sets the origin of a request that came through trusted proxies.
        cors: Lets pages of other origins read responses.
        size_limits: Limits URI and headers.
        client_rate_limit: Limits the requests of each client address.
        user_rate_limit: Limits the requests of each verified user.
        header_forwarding: Forwards request headers as metadata of outbound calls.
        ignore_unknown_fields: Whether JSON fields that a message does not have are ignored.
        docs: Whether ``/docs`` and ``/openapi.json`` are served.
        builtin: Built-in gRPC services that are served.
    """

    forwarded: Layer | None = None
    cors: Layer | None = None
    size_limits: Layer | None = None
    client_rate_limit: Layer | None = None
    user_rate_limit: Layer | None = None
    header_forwarding: Layer | None = None
    ignore_unknown_fields: bool = False
    docs: bool = True
    builtin: frozenset[str] = frozenset({"health", "reflection"})

    @classmethod
    def of(cls, config: EdgeConfig) -> OptionalLayers:
        """Return the layers that the configuration enables."""
        rules, limit = config.cors_rules, config.rate_limit
        client, user = limit.per_client, limit.per_identity
        return cls(
            forwarded=forwarded(config.trusted_proxies) if config.trusted_proxies else None,
            cors=cors(rules.origins, credentials=rules.credentials, expose=rules.expose, max_age=float(rules.max_age))
            if rules.origins
            else None,
            size_limits=size_limits(int(config.max_uri), int(config.max_headers)),
            client_rate_limit=client_rate_limit(float(client), client.burst) if client else None,
            user_rate_limit=user_rate_limit(float(user), user.burst) if user else None,
            header_forwarding=forward_headers(config.metadata) if config.metadata else None,
            ignore_unknown_fields=config.ignore_unknown_fields,
            docs=config.docs,
            builtin=frozenset(name for name in ("health", "reflection") if getattr(config, name)),
        )


NO_LAYERS = OptionalLayers()
"""No optional layer is enabled."""

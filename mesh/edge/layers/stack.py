"""The layers that ``[edge]`` of mesh.toml asks for, each absent when it asks for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.edge.layers.cors import cors
from mesh.edge.layers.forwarded import forwarded
from mesh.edge.layers.header_forwarding import passing
from mesh.edge.layers.rate_limit import client_limit, identity_limit
from mesh.edge.layers.size_limits import bounds

if TYPE_CHECKING:
    from mesh.call import Layer
    from mesh.config.manifest import EdgeConfig

__all__ = ["OPEN", "Door"]


@dataclass(frozen=True, slots=True)
class Door:
    """What stands in the edge's chains besides what always does.

    Attributes:
        forwarded: Learns from trusted proxies who the client is.
        cors: Lets pages of other origins read the answers.
        bounds: Refuses paths and headers that are too large.
        per_client: Limits how often one address asks.
        per_identity: Limits how often one user asks.
        passing: Gives request headers to the onward call.
        ignore_unknown_fields: JSON fields that a message does not have are passed over.
    """

    forwarded: Layer | None = None
    cors: Layer | None = None
    bounds: Layer | None = None
    per_client: Layer | None = None
    per_identity: Layer | None = None
    passing: Layer | None = None
    ignore_unknown_fields: bool = False

    @classmethod
    def of(cls, table: EdgeConfig) -> Door:
        """Return what the table asks for."""
        rules, limit = table.cors_rules, table.rate_limit
        return cls(
            forwarded=forwarded(table.trusted_proxies) if table.trusted_proxies else None,
            cors=cors(rules.origins, credentials=rules.credentials, expose=rules.expose, max_age=float(rules.max_age))
            if rules.origins
            else None,
            bounds=bounds(int(table.max_uri), int(table.max_headers)),
            per_client=client_limit(float(limit.per_client), limit.per_client.burst) if limit.per_client else None,
            per_identity=identity_limit(float(limit.per_identity), limit.per_identity.burst)
            if limit.per_identity
            else None,
            passing=passing(table.metadata) if table.metadata else None,
            ignore_unknown_fields=table.ignore_unknown_fields,
        )


OPEN = Door()
"""Nothing is asked for."""

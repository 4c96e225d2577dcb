"""TLS of a service for grpcio's channels.

grpcio compares DNS names and not URIs. So a channel checks the name of the service (``grpc.ssl_target_name_override``).
The mesh's authority puts it into the leaf of that service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from mesh.rpc.client.service_tls import ServiceTls

__all__ = ["grpcio_credentials", "name_option"]


def grpcio_credentials(tls: ServiceTls) -> grpc.ChannelCredentials:
    """Return the current credentials for a channel, which keeps them."""
    pair = tls.credentials.pair
    return grpc.ssl_channel_credentials(tls.credentials.roots.encode(), private_key=pair, certificate_chain=pair)


def name_option(tls: ServiceTls) -> tuple[str, Any]:
    """Return the channel option by which the channel checks the name of the service."""
    return "grpc.ssl_target_name_override", tls.service

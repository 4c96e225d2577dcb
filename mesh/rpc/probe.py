"""Asks a server whether it is serving, by the gRPC health protocol (grpc/health/v1/health.proto)."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2

__all__ = ["check"]


def check(address: str, timeout: float) -> str:
    """Return ``"SERVING"``, or what else the server at ``host:port`` is: a health status or why it does not answer."""
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        call = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = call(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

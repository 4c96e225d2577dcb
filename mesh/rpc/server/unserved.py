"""Calls to paths that are not served: their method, their status, and the handler that refuses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.empty_pb2 import Empty

from mesh.call import Call, Handler, Layer, chain
from mesh.contract.model import Method
from mesh.errors import StatusError, Unimplemented

__all__ = ["UNKNOWN_METHOD", "refusing", "unimplemented"]

UNKNOWN_METHOD = Method("_OTHER", "", "/_OTHER", Empty, Empty, client_streaming=False, server_streaming=False)
"""Method of every call to a path that is not served. Traces and metrics show OpenTelemetry's name ``_OTHER``, because
callers can make up any number of paths."""


def unimplemented(path: str, methods: Mapping[str, Any]) -> StatusError:
    """Return the status of a call to a path that is none of ``methods``."""
    service, _, method = path.strip("/").rpartition("/")
    if any(known.startswith(f"/{service}/") for known in methods):
        return Unimplemented(f"service {service} has no method {method}")
    return Unimplemented(f"service {service or path} is not served here")


def refusing(refusal: StatusError, trace: Layer | None) -> Handler:
    """Return a handler that raises the refusal, which ``trace`` records; None: it is not recorded."""

    async def refuse(_: Call) -> None:
        raise refusal

    return refuse if trace is None else chain(trace, refuse)

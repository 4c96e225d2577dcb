"""Asks a server whether it is serving, by the gRPC health protocol (grpc/health/v1/health.proto).

One blocking request on libnghttp2: the health check of a container starts an interpreter every few seconds, and grpcio,
protobuf and asyncio would be most of what it costs. It does nothing else.
"""

from __future__ import annotations

import socket
import time

import ngh2

from mesh.address import authority, split

__all__ = ["check"]

_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_REQUEST = bytes(5)
"""An empty message, framed: the server as a whole."""


def check(address: str, timeout: float) -> str:
    """Return ``"SERVING"``, or what else the server at ``host:port`` is: a health status or why it does not answer."""
    try:
        headers, body = _ask(address, timeout)
    except TimeoutError:
        return f"DEADLINE_EXCEEDED: no answer within {timeout:g} s"
    except OSError as error:
        return f"UNAVAILABLE: {error.strerror or error}"
    except (ngh2.NGH2Error, ValueError) as error:
        return f"UNAVAILABLE: it does not speak gRPC ({error})"
    code = headers.get(b"grpc-status", b"")
    if code != b"0":
        return _refusal(code, headers)
    status = body[6] if body[5:6] == b"\x08" else 0  # field 1, a varint; a message without it is UNKNOWN
    return _STATUSES[status] if status < len(_STATUSES) else str(status)


def _ask(address: str, timeout: float) -> tuple[dict[bytes, bytes], bytes]:
    """Return headers and trailers, and the body.

    Raises:
        OSError: No connection, or no answer in time.
        ngh2.NGH2Error: What comes is no HTTP/2.
        ValueError: The same, seen otherwise.
    """
    end = time.monotonic() + timeout
    host, port = split(address)
    h2 = ngh2.Connection(ngh2.Role.CLIENT)
    h2.initiate_connection({ngh2.Setting.ENABLE_PUSH: 0})
    stream = h2.send_request([
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/grpc.health.v1.Health/Check"),
        (b":authority", authority(address).encode()), (b"te", b"trailers"), (b"content-type", b"application/grpc"),
    ])  # fmt: skip
    h2.send_data(stream, _REQUEST, end_stream=True)
    headers: dict[bytes, bytes] = {}
    body = b""
    with socket.create_connection((host, port), timeout) as link:
        while True:
            link.sendall(h2.data_to_send())
            link.settimeout(max(0.001, end - time.monotonic()))
            data = link.recv(65536)
            h2.receive_data(data)
            for event in h2.events():
                if isinstance(event, ngh2.ResponseReceived | ngh2.TrailersReceived):
                    headers.update((bytes(name), bytes(value)) for name, value, *_ in event.headers)
                elif isinstance(event, ngh2.DataReceived):
                    body += event.data
                elif isinstance(event, ngh2.StreamClosed):
                    return headers, body
            if not data:
                raise ConnectionError("the connection was closed without an answer")


def _refusal(code: bytes, headers: dict[bytes, bytes]) -> str:
    from mesh.errors import Code  # noqa: PLC0415 - protobuf comes with it, and only a refusal needs the names

    said = headers.get(b"grpc-message", b"").decode("ascii", "replace")
    if not code.isdigit():
        return f"UNAVAILABLE: it does not speak gRPC (HTTP {headers.get(b':status', b'?').decode('ascii', 'replace')})"
    number = int(code)
    return f"{Code(number).name if number <= max(Code) else number}: {said}"

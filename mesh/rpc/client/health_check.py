"""Health check of a server by the gRPC health protocol (grpc/health/v1/health.proto): one blocking request.

It uses libnghttp2 alone. The health check of a container starts an interpreter every few seconds, and importing grpcio,
protobuf and asyncio would be most of its cost.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ngh2

from mesh.address import authority, split
from mesh.rpc.client.tls_errors import SpeaksTlsError, is_tls_alert, reason_of

if TYPE_CHECKING:
    from mesh.rpc.client.service_tls import ServiceTls

__all__ = ["check"]

_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_READ_SIZE = 65536


def check(
    address: str,
    timeout: float,
    service: str = "",
    tls: ServiceTls | None = None,
    *,
    find_tls: Callable[[], ServiceTls | None] | None = None,
) -> str:
    """Return ``"SERVING"``, another health status, or the error as ``CODE: message``.

    Args:
        address: ``host:port``.
        timeout: Seconds for the whole check.
        service: The service to ask for; ``""``: the server as a whole.
        tls: TLS to the server, or None for plain text.
        find_tls: Returns TLS to a server that turns out to speak it, or None; then the check is repeated with it.
    """
    try:
        headers, body = _request(address, timeout, service.encode(), tls)
    except SpeaksTlsError as error:
        found = None if find_tls is None else find_tls()
        return f"UNAVAILABLE: {error}" if found is None else check(address, timeout, service, found)
    except TimeoutError:
        return f"DEADLINE_EXCEEDED: no response within {timeout:g} s"
    except ssl.SSLError as error:
        return f"UNAVAILABLE: {reason_of(error)}"
    except OSError as error:
        return f"UNAVAILABLE: {error.strerror or error}"
    except (ngh2.NGH2Error, ValueError) as error:
        return f"UNAVAILABLE: it does not speak gRPC ({error})"
    return _status(headers, body)


def _status(headers: dict[bytes, bytes], body: bytes) -> str:
    """Return the health status in a response, or its error."""
    code = headers.get(b"grpc-status", b"")
    if not code or code.strip(b"0"):  # "00" is OK too, as for grpcio and grpc-go
        return _error(headers)
    status = body[6] if body[5:6] == b"\x08" else 0  # field 1, a varint; a message without it is UNKNOWN
    return _STATUSES[status] if status < len(_STATUSES) else str(status)


def _request(address: str, timeout: float, service: bytes, tls: ServiceTls | None) -> tuple[dict[bytes, bytes], bytes]:
    """Return headers and trailers, and the body.

    Raises:
        OSError: There is no connection, TLS fails, or no response in time.
        ngh2.NGH2Error: The server does not speak HTTP/2.
        ValueError: The same, detected by the binding.
    """
    deadline = time.monotonic() + timeout
    host, port = split(address)
    h2 = ngh2.Connection(ngh2.Role.CLIENT)
    h2.initiate_connection({ngh2.Setting.ENABLE_PUSH: 0})
    stream = h2.send_request([
        (b":method", b"POST"), (b":scheme", b"https" if tls else b"http"), (b":path", b"/grpc.health.v1.Health/Check"),
        (b":authority", authority(address).encode()), (b"te", b"trailers"), (b"content-type", b"application/grpc"),
    ])  # fmt: skip
    message = bytes([0x0A, len(service)]) + service if service else b""  # field 1, a string
    h2.send_data(stream, len(message).to_bytes(5, "big") + message, end_stream=True)
    headers: dict[bytes, bytes] = {}
    body = b""
    with socket.create_connection((host, port), timeout) as plain, _secured(plain, tls) as connection:
        while True:
            connection.sendall(h2.data_to_send())
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            data = connection.recv(_READ_SIZE)
            if tls is None and is_tls_alert(data):
                raise SpeaksTlsError
            h2.receive_data(data)
            for event in h2.events():
                if isinstance(event, ngh2.ResponseReceived | ngh2.TrailersReceived):
                    headers.update((bytes(name), bytes(value)) for name, value, *_ in event.headers)
                elif isinstance(event, ngh2.DataReceived):
                    body += event.data
                elif isinstance(event, ngh2.StreamClosed):
                    return headers, body
            if not data:
                raise ConnectionError("the connection was closed without a response")


@contextmanager
def _secured(connection: socket.socket, tls: ServiceTls | None) -> Iterator[socket.socket]:
    if tls is None:
        yield connection
        return
    with tls.context().wrap_socket(connection) as secured:
        tls.check(secured)
        yield secured


def _error(headers: dict[bytes, bytes]) -> str:
    if not headers.get(b"grpc-status", b"").isdigit():
        return f"UNAVAILABLE: it does not speak gRPC (HTTP {headers.get(b':status', b'?').decode('ascii', 'replace')})"
    from mesh.rpc.status import read_status  # noqa: PLC0415 - it imports protobuf, which only an error needs

    error, _ = read_status(list(headers.items()))
    return str(error)

"""TLS to one service of the mesh: contexts that follow renewals, and the check of the server's name.

Python cannot compare the URI of a certificate, so the name is checked after the handshake and before the first call.
Nobody closes a connection when a certificate on it expires, so each connection has an end.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from mesh.certificates import CertificateError

if TYPE_CHECKING:
    from mesh.certificates import Credentials

__all__ = ["ServiceTls"]


class ServiceTls:
    """TLS of the connections to one service.

    Args:
        credentials: Credentials of the calling component.
        service: Name of the called service in mesh.toml.
    """

    def __init__(self, credentials: Credentials, service: str) -> None:
        self.credentials = credentials
        self.service = service
        self._context: ssl.SSLContext | None = None
        credentials.subscribe(self._forget_context)

    def _forget_context(self) -> None:
        self._context = None

    def context(self) -> ssl.SSLContext:
        """Return the context for new connections."""
        context = self._context
        if context is None:
            context = self._context = self.credentials.client_context()
        return context

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the loop after each renewal: connections should be made anew."""
        self.credentials.subscribe(callback)

    def check(self, connection: ssl.SSLObject | ssl.SSLSocket) -> float:
        """Check that the server is the service, and return the seconds until a certificate of the connection expires.

        Raises:
            ConnectionError: It is another service, or of another mesh.
        """
        try:
            self.credentials.check_server(connection, self.service)
        except CertificateError as error:
            raise ConnectionError(f"it is not {self.service}: {error}") from None
        left = self.credentials.seconds_to_expiry()
        certificate = connection.getpeercert() or {}
        ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
        return min(left, ends - (self.credentials.expires.timestamp() - left))

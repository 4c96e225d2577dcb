"""TLS to one service of the mesh: contexts that follow renewals, the check of the server's name, and error texts.

Python cannot compare the URI of a certificate, so the name is checked after the handshake and before the first call.
Nobody closes a connection when a certificate on it expires, so each connection has an end.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from mesh.certificates import CertificateError

if TYPE_CHECKING:
    from mesh.certificates import Credentials

__all__ = ["ServiceTls", "SpeaksTlsError", "is_tls_alert", "reason_of"]

_ALERT = b"\x15\x03"
"""First bytes of a TLS alert (RFC 8446, 5.1: content type 21, version 3.x), a TLS server's answer to plain text."""
_NO_TLS = frozenset({
    "WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST", "UNEXPECTED_MESSAGE",
})  # fmt: skip
"""OpenSSL's reasons for an answer that is no TLS."""
_REFUSED = re.compile(r"_ALERT_(CERTIFICATE_\w+|BAD_CERTIFICATE|UNKNOWN_CA|UNSUPPORTED_CERTIFICATE|DECRYPT_ERROR)\Z")
"""Matches OpenSSL's reasons for the alert of a server that refuses the client's certificate."""


class SpeaksTlsError(ConnectionError):
    """The server answered plain text with a TLS alert."""

    def __init__(self) -> None:
        super().__init__(
            "it speaks TLS and this side plain text; `tls` and `address` of mesh.toml must be the same here"
        )


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

    def check(self, connection: ssl.SSLObject) -> float:
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


def is_tls_alert(data: bytes) -> bool:
    """Whether bytes are the beginning of a TLS alert."""
    return data[:2] == _ALERT


def reason_of(error: ssl.SSLError) -> str:
    """Return what failed in TLS, as the end of a sentence about the server."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message.rstrip('.')}"
    reason = error.reason or ""
    refused = _REFUSED.search(reason)
    if refused is not None:
        return f"it refuses the certificate of this side: {refused[1].lower().replace('_', ' ')}"
    if reason in _NO_TLS:
        return "it does not speak TLS and this side does; `tls` and `address` of mesh.toml must be the same there"
    return f"TLS failed: {reason.lower().replace('_', ' ') or error}"

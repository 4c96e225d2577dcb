"""TLS failures of a client in words: what the server refuses, and which side speaks plain text. Pure."""

from __future__ import annotations

import re
import ssl

__all__ = ["HANDSHAKE_ENDED", "SpeaksTlsError", "is_tls_alert", "reason_of"]

_ALERT = b"\x15\x03"
"""First bytes of a TLS alert (RFC 8446, 5.1: content type 21, version 3.x), of a server that gets plain text."""
_SIDES = "it does not speak TLS and this side does; `tls` and `address` of mesh.toml must be the same there"
HANDSHAKE_ENDED = f"it closed the connection during the TLS handshake: it stops, or {_SIDES}"
"""Reason of a connection that ended without an alert. A listener that takes the first bytes of TLS for the head of a
request over HTTP/1.1 closes it after a timeout."""
_NO_TLS = frozenset({
    "WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST", "UNEXPECTED_MESSAGE",
})  # fmt: skip
"""OpenSSL's reasons for bytes that are no TLS."""
_REFUSED = re.compile(r"_ALERT_(CERTIFICATE_\w+|BAD_CERTIFICATE|UNKNOWN_CA|UNSUPPORTED_CERTIFICATE|DECRYPT_ERROR)\Z")
"""Matches OpenSSL's reasons for the alert of a server that refuses the client's certificate."""


class SpeaksTlsError(ConnectionError):
    """The server answered plain text with a TLS alert."""

    def __init__(self) -> None:
        super().__init__(
            "it speaks TLS and this side plain text; `tls` and `address` of mesh.toml must be the same here"
        )


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
        return _SIDES
    if isinstance(error, ssl.SSLEOFError):
        return HANDSHAKE_ENDED
    return f"TLS failed: {reason.lower().replace('_', ' ') or error}"

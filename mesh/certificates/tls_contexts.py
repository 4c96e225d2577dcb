"""TLS contexts between the services of a mesh: TLS 1.3, both sides with a certificate, strict verification.

Python 3.13 made strict verification (RFC 5280) the default of ``ssl.create_default_context``, and of that only. The
contexts here set it on each version.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["client_context", "server_context"]

ALPN = ("h2",)
"""Protocols that are offered and selected (RFC 7301): gRPC is HTTP/2."""


def client_context(pair: bytes, roots: str, alpn: tuple[str, ...] = ALPN) -> ssl.SSLContext:
    """Return the context of a client that calls services of the mesh.

    Python cannot compare the URI of a certificate, so ``check_hostname`` is off. **The caller must check the server's
    name after the handshake** with ``Credentials.check_server`` or ``peer_service``.

    Args:
        pair: The leaf with its chain, and its key, PEM.
        roots: The trusted roots, PEM.
        alpn: Protocols to offer.

    Raises:
        ssl.SSLError: A PEM text is malformed, or the key is not that of the certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return _complete(context, pair, roots, alpn)


def server_context(pair: bytes, roots: str, alpn: tuple[str, ...] = ALPN) -> ssl.SSLContext:
    """Return the context of a server that requires the certificate of a client. Arguments as for ``client_context``.

    Raises:
        ssl.SSLError: A PEM text is malformed, or the key is not that of the certificate.
    """
    return _complete(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair, roots, alpn)


def _complete(context: ssl.SSLContext, pair: bytes, roots: str, alpn: tuple[str, ...]) -> ssl.SSLContext:
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=roots)
    with _file(pair) as path:  # ``load_cert_chain`` takes paths only
        context.load_cert_chain(path)
    context.set_alpn_protocols(list(alpn))
    return context


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """Return the path of a file with this content: in memory where the system can, else temporary, mode 0600."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):  # noqa: PTH112 - no file is handled
        descriptor = os.memfd_create("credentials", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name

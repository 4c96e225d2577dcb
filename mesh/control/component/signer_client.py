"""Client of the signer (``mesh keys serve``): requests a leaf over TLS that the roots of the identity folder verify."""

from __future__ import annotations

import fcntl
import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from mesh import private_files
from mesh.address import reachable, split
from mesh.auth import key_files
from mesh.certificates import leaf_files
from mesh.certificates.signing import PendingRequest, SigningResponse
from mesh.certificates.spiffe import SIGNER, CertificateError, peer_service
from mesh.config.manifest import Manifest
from mesh.control import mesh_certificates
from mesh.faults import Fault, Faults

__all__ = ["AUTHORITY_PATH", "CERTIFICATES_PATH", "SignerClient", "SignerConnection"]

CERTIFICATES_PATH = "/v1/certificates"
"""Path of requests for a leaf (POST)."""
AUTHORITY_PATH = "/v1/authority"
"""Path of the round of the authority (GET)."""
REQUEST_TIMEOUT = 5.0
"""Seconds that connecting, and each read, may take."""
MAX_RESPONSE_SIZE = 2**20


class SignerConnection:
    """Requests to the signer, each on a connection of its own. The methods block.

    Args:
        manifest: The manifest. ``[keys] address`` names the signer; without it, ``[keys] listen`` on this machine.
        timeout: Seconds that connecting, and each read, may take.
    """

    def __init__(self, manifest: Manifest, timeout: float = REQUEST_TIMEOUT) -> None:
        self._mesh = manifest.name
        self._address = manifest.keys.address or reachable(manifest.keys.listen)
        self._roots = mesh_certificates.identity_files(manifest, SIGNER).roots
        self._timeout = timeout

    def round(self) -> int:
        """Return the authority's round.

        Raises:
            CertificateError: The signer cannot be reached, or is not that of this mesh.
        """
        body = self.request("GET", AUTHORITY_PATH)
        try:
            return int(json.loads(body)["round"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise CertificateError(f"{self._address}: the signer sent a malformed response") from None

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Return the body of the response.

        Raises:
            CertificateError: The signer cannot be reached, is not that of this mesh, or refuses the request.
        """
        host, port = split(self._address)
        connection = http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._context())
        try:
            connection.connect()
            assert isinstance(connection.sock, ssl.SSLSocket)  # noqa: S101 - HTTPSConnection makes it
            peer_service(connection.sock.getpeercert(binary_form=True) or b"", self._mesh, expected=SIGNER)
            connection.request(method, path, body, {"content-type": "application/json"} if body else {})
            response = connection.getresponse()
            content = response.read(MAX_RESPONSE_SIZE)
        except ssl.SSLCertVerificationError as error:
            text = f"{self._address}: the signer's certificate is not trusted: {error.verify_message}"
            raise CertificateError(f"{text}; make roots.pem of this component current: mesh keys --each") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise CertificateError(f"{self._address}: the signer cannot be reached: {reason}") from None
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise CertificateError(f"{self._address}: the signer refused: {_message(content) or response.status}")
        return content

    def _context(self) -> ssl.SSLContext:
        """Return a context that trusts the roots of the identity folder. The name is checked after the handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(cadata=self._roots.read_text("ascii"))
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "strerror", None) or str(error)
            text = f"{self._roots}: the trusted roots cannot be read: {reason}; `mesh keys --each` makes them"
            raise CertificateError(text) from None
        return context


class SignerClient(SignerConnection):
    """Client of one component.

    Args:
        manifest: The manifest.
        name: Name of the component.

    Raises:
        Faults: The component's identity key cannot be read.
    """

    def __init__(self, manifest: Manifest, name: str) -> None:
        super().__init__(manifest)
        self._name = name
        self._folder = manifest.state / "identity"
        key_files.load(self._folder, name)

    def renew(self) -> int:
        """Get a new leaf, and write it with the trusted roots; return the authority's round.

        Raises:
            CertificateError: The signer cannot be reached, is not that of this mesh, or refuses the request.
            Faults: The identity folder cannot be read or written.
        """
        with self._lock():
            return self._renew(datetime.now(UTC))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold a lock of the folder, which replicas may share: each new leaf must name the one that it replaces."""
        try:
            with open(self._folder / f".{self._name}.lock", "a", opener=private_files.opener) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            text = f"the certificate cannot be written: {(error.strerror or str(error)).lower()}"
            raise Faults([Fault(str(self._folder), text)]) from None

    def _renew(self, now: datetime) -> int:
        held = leaf_files.current_leaf(self._folder, self._name, self._mesh)
        identity = key_files.load(self._folder, self._name)  # it may have been replaced
        pending = PendingRequest(self._mesh, self._name, identity, now, None if held is None else held.serial_number)
        response = SigningResponse.from_json(self.request("POST", CERTIFICATES_PATH, pending.body))
        pair = pending.accept(response, now)
        leaf_files.write_roots(self._folder, response.roots)
        leaf_files.write(self._folder, self._name, pair)
        return response.round


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        return body[:200].decode("utf-8", "replace")

"""Credentials of one component: its current leaf certificate, key and trusted roots, read again when the files change.

Another process may write the files: the supervisor of ``mesh up``, an operator with ``mesh keys``, cert-manager. The
component that renews its own leaf writes them too. A change is noticed, checked, and taken as a whole. Files that are
not valid change nothing: the last valid ones stay in use.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from mesh.certificates import authority, spiffe, tls_contexts
from mesh.certificates.spiffe import CertificateError
from mesh.faults import Fault, Faults

__all__ = ["CHECK_INTERVAL", "CredentialFiles", "Credentials"]

log = logging.getLogger("mesh.certificates")

CHECK_INTERVAL = 1.0
"""Seconds between two looks at the files. One look is a system call for each file."""
WARNING_INTERVAL = 60.0
"""Seconds between two warnings of the same kind."""


@dataclass(frozen=True, slots=True)
class CredentialFiles:
    """Files of one component's credentials, PEM.

    Attributes:
        certificate: The leaf, and intermediate certificates if an authority outside the mesh issues with them.
        private_key: Its key; may be the same file as ``certificate``.
        roots: The trusted roots.
    """

    certificate: Path
    private_key: Path
    roots: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> CredentialFiles:
        """Return the files of a component in the identity folder: ``NAME.pem`` with leaf and key, and ``roots.pem``."""
        leaf = folder / f"{name}.pem"
        return cls(leaf, leaf, folder / "roots.pem")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Checked content of the files."""

    version: tuple[object, ...]
    leaf: x509.Certificate
    pair: bytes
    roots: str


class Credentials:
    """Current credentials of one component of a mesh.

    ``client_context`` and ``server_context`` return a new context each time. Open connections keep the credentials with
    which they were made. After a renewal the subscribers are called; they make new contexts for new connections.

    Args:
        mesh: Name of the mesh.
        name: Name of the component: a service of mesh.toml, ``edge``, ``operator`` or ``keys``.
        files: The files.
        clock: Returns the time.

    Raises:
        Faults: A file is missing, malformed or of another name.
    """

    def __init__(
        self,
        mesh: str,
        name: str,
        files: CredentialFiles,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.mesh = mesh
        self.name = name
        self.files = files
        self._clock = clock
        self._subscribers: list[Callable[[], None]] = []
        self._refused: tuple[object, ...] | None = None
        self._warned_at: dict[str, datetime] = {}
        try:
            self._loaded = self._read()
        except CertificateError as error:
            raise Faults([Fault(str(files.certificate), str(error))]) from None

    # -- contexts --

    def client_context(self) -> ssl.SSLContext:
        """Return a new context for calls of services. Check the server with ``check_server`` after the handshake."""
        return tls_contexts.client_context(self._loaded.pair, self._loaded.roots)

    def server_context(self) -> ssl.SSLContext:
        """Return a new context for a listener that requires client certificates of the mesh."""
        return tls_contexts.server_context(self._loaded.pair, self._loaded.roots)

    # -- names and times --

    def spiffe_id(self, service: str) -> str:
        """Return the SPIFFE id of a service of this mesh."""
        return spiffe.spiffe_id(self.mesh, service)

    def peer(self, certificate: bytes | str, expected: str | None = None) -> str:
        """Return the name of the service of this mesh that a verified leaf (DER, or PEM text) identifies.

        Args:
            certificate: The leaf. The TLS handshake has verified its chain.
            expected: The only name that is accepted; None: any.

        Raises:
            CertificateError: It is malformed, expired, or of another mesh or service.
        """
        return spiffe.peer_service(certificate, self.mesh, expected=expected, now=self._clock())

    def check_server(self, connection: ssl.SSLObject | ssl.SSLSocket, service: str) -> None:
        """Check after a client's handshake that the server is the service that was to be called.

        Raises:
            CertificateError: It is another one.
        """
        certificate = connection.getpeercert(binary_form=True)
        if certificate is None:
            raise CertificateError(f"{service} presented no certificate")
        self.peer(certificate, service)

    @property
    def pair(self) -> bytes:
        """The leaf with its chain, and its key, PEM."""
        return self._loaded.pair

    @property
    def roots(self) -> str:
        """The trusted roots, PEM."""
        return self._loaded.roots

    @property
    def serial(self) -> int:
        """Serial number of the leaf."""
        return self._loaded.leaf.serial_number

    @property
    def root_id(self) -> str:
        """Identifier of the root that signed the leaf."""
        return authority.issuer_id(self._loaded.leaf)

    @property
    def expires(self) -> datetime:
        """End of the leaf's validity (UTC)."""
        return self._loaded.leaf.not_valid_after_utc

    @property
    def renew_at(self) -> datetime:
        """Half of the leaf's life (UTC), when it should be renewed."""
        return authority.half_life(self._loaded.leaf)

    @property
    def life(self) -> timedelta:
        """The whole life of the leaf."""
        return self._loaded.leaf.not_valid_after_utc - self._loaded.leaf.not_valid_before_utc

    def seconds_to_expiry(self) -> float:
        """Return the seconds until the leaf expires; negative after that."""
        return (self.expires - self._clock()).total_seconds()

    # -- renewal --

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` on the loop after each renewal of the leaf or the roots; return a function that ends that.

        An exception of the callback is logged. It does not keep other subscribers from being called.
        """
        self._subscribers.append(callback)

        def end() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return end

    def reload(self) -> bool:
        """Read the files if they have changed; return whether new credentials are in use.

        Files that are not valid are logged, and change nothing.
        """
        version = self._version()
        if version in (self._loaded.version, self._refused):
            return False
        try:
            loaded = self._read()
        except CertificateError as error:
            self._refused = version
            self._warn("refused", f"the new certificate of {self.name} is refused, the last one stays in use: {error}")
            return False
        changed = (loaded.leaf, loaded.roots) != (self._loaded.leaf, self._loaded.roots)
        self._loaded, self._refused = loaded, None
        if changed:
            log.info(
                "new certificate of %s: valid until %s UTC, signed by the root %s",
                self.name, f"{self.expires:%Y-%m-%d %H:%M:%S}", self.root_id,
            )  # fmt: skip
            for callback in tuple(self._subscribers):
                try:
                    callback()
                except Exception:
                    log.exception("a user of the certificate of %s did not take the new one", self.name)
        return changed

    async def watch(self) -> None:
        """Take new files for as long as the component runs, and warn while the leaf is about to expire.

        It ends by being cancelled.
        """
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            self.check()

    def check(self) -> None:
        """Take new files, and warn while the leaf is about to expire."""
        self.reload()
        self.warn_before_expiry()

    def warn_before_expiry(self) -> None:
        """Log a warning when less than a quarter of the leaf's life is left, once in ``WARNING_INTERVAL``."""
        left = self.seconds_to_expiry()
        if left <= 0:
            self._warn("expired", f"the certificate of {self.name} has expired; other services refuse its calls")
        elif left < self.life.total_seconds() / 4:
            self._warn("expiry", f"the certificate of {self.name} expires in {_duration(left)} and was not renewed")

    def _warn(self, kind: str, text: str) -> None:
        """Log a warning, but not the same kind again within ``WARNING_INTERVAL``."""
        now = self._clock()
        last = self._warned_at.get(kind)
        if last is None or abs(now - last) >= timedelta(seconds=WARNING_INTERVAL):
            self._warned_at[kind] = now
            log.warning("%s", text)

    def _version(self) -> tuple[object, ...]:
        """Return a value that differs after a file was replaced or written."""
        found: list[object] = []
        for path in (self.files.certificate, self.files.private_key, self.files.roots):
            try:
                status = path.stat()
            except OSError as error:
                found.append(error.errno)
            else:
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)

    def _read(self) -> _Loaded:
        """Return the content of the files, checked.

        Raises:
            CertificateError: A file is missing or malformed, the key is not the leaf's, or the leaf is not this
                component's.
        """
        version = self._version()
        chain = _content(self.files.certificate)
        key = _content(self.files.private_key)
        roots = _content(self.files.roots)
        try:
            leaf = x509.load_pem_x509_certificate(chain)
            fits = serialization.load_pem_private_key(key, password=None).public_key() == leaf.public_key()
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            text = f"{self.files.certificate}: expected a certificate and its key in PEM, without a password: {error}"
            raise CertificateError(text) from None
        if not fits:
            raise CertificateError(f"{self.files.private_key}: the key is not that of the certificate")
        name = spiffe.leaf_service(leaf, self.mesh)
        if name != self.name:
            raise CertificateError(f"{self.files.certificate}: the certificate is for {name}, not for {self.name}")
        pair = chain if self.files.private_key == self.files.certificate else chain + b"\n" + key
        try:
            authority.parse_bundle(roots)
            trusted = roots.decode("ascii")
            tls_contexts.server_context(pair, trusted)
        except (CertificateError, UnicodeDecodeError) as error:
            raise CertificateError(f"{self.files.roots}: {error}") from None
        except ssl.SSLError as error:
            raise CertificateError(f"{self.files.certificate}: {error}") from None
        return _Loaded(version, leaf, pair, trusted)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"  # noqa: PLR2004 - an hour

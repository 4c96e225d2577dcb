"""Certificates of the edge's public listener: files of the operator, read again when they change.

ACME clients and Kubernetes replace the files while the edge runs. A pair that does not fit changes nothing, because one
file may have been replaced before the other. The next change is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from mesh.config.edge import EdgeTlsConfig
from mesh.rpc.server.listener import CertificateFiles, ListenError

__all__ = ["EdgeCertificates"]

log = logging.getLogger("mesh.control")

CHECK_INTERVAL = 1.0
"""Seconds between two looks at the files."""


class EdgeCertificates:
    """Certificates of ``[edge] tls``.

    Args:
        table: The table, with absolute paths.

    Attributes:
        files: The files, for the listener.
    """

    def __init__(self, table: EdgeTlsConfig) -> None:
        authorities = Path(table.client_ca) if table.client_ca else None
        self.files = CertificateFiles(Path(table.certificate), Path(table.private_key), authorities)
        self._version = self._look()

    async def watch(self, renew: Callable[[CertificateFiles], Awaitable[None]]) -> None:
        """Give the listener new files by ``renew`` until the task is cancelled."""
        self._warn()
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            await self.check(renew)

    async def check(self, renew: Callable[[CertificateFiles], Awaitable[None]]) -> bool:
        """Give the listener the files if they have changed; return whether it took them."""
        version = self._look()
        if version == self._version:
            return False
        self._version = version
        try:
            await renew(self.files)
        except ListenError as error:
            log.error("[edge] tls: the new files are refused, the last ones stay in use: %s", error)  # noqa: TRY400
            return False
        log.info("[edge] tls: new certificate from %s", self.files.certificate)
        self._warn()
        return True

    def _look(self) -> tuple[object, ...]:
        """Return a value that differs after a file was replaced or written."""
        found: list[object] = []
        for path in (self.files.certificate, self.files.private_key, self.files.client_ca):
            try:
                status = path.stat() if path is not None else None
            except OSError as error:
                found.append(error.errno)
            else:
                found.append(status and (status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)

    def _warn(self) -> None:
        """Warn of a certificate that is not valid now; the server library presents it without a word."""
        try:
            leaf = x509.load_pem_x509_certificate(self.files.certificate.read_bytes())
        except (OSError, ValueError):
            return
        now = datetime.now(UTC)
        if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
            log.warning(
                "[edge] tls: the certificate is valid from %s to %s UTC, and clients refuse it now",
                f"{leaf.not_valid_before_utc:%Y-%m-%d %H:%M:%S}", f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%S}",
            )  # fmt: skip

"""TLS of one component: of the calls that it makes, and of its gRPC listener.

After a renewal of the credentials, calls use new connections, and the listener presents the new certificate to new
connections.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mesh.auth import EDGE, ClientCertificates
from mesh.certificates import Credentials
from mesh.config.manifest import Manifest
from mesh.rpc.client.service_tls import ServiceTls
from mesh.rpc.server.listener import CertificateFiles, ListenError

__all__ = ["ComponentTls"]

log = logging.getLogger("mesh.control")


class ComponentTls:
    """TLS by the credentials of a component.

    Args:
        manifest: The manifest: it says which services are reached by TLS.
        name: The component: a service, or ``edge``.
        credentials: Its credentials; None if no service is reached by TLS.
    """

    def __init__(self, manifest: Manifest, name: str, credentials: Credentials | None) -> None:
        self._secured = frozenset(filter(manifest.secures, manifest.services))
        self._mesh = manifest.name
        self._listens = name != EDGE and name in self._secured
        self._credentials = credentials
        self._tasks: set[asyncio.Task[None]] = set()

    def to(self, service: str) -> ServiceTls | None:
        """Return TLS for calls to a service, or None for plain text."""
        if self._credentials is None or service not in self._secured:
            return None
        return ServiceTls(self._credentials, service)

    @property
    def listener(self) -> CertificateFiles | None:
        """Certificates of the component's gRPC listener; None: plain text."""
        if self._credentials is None or not self._listens:
            return None
        files = self._credentials.files
        return CertificateFiles(files.certificate, files.private_key, files.roots)

    @property
    def callers(self) -> ClientCertificates | None:
        """Verifier of the certificates of callers; None: the listener speaks plain text."""
        return ClientCertificates(self._mesh) if self.listener is not None else None

    def on_renewal(self, renew: Callable[[CertificateFiles], Awaitable[None]]) -> None:
        """Give the listener new certificates by ``renew`` after each renewal."""
        files = self.listener
        if self._credentials is None or files is None:
            return

        def renewed() -> None:
            task = asyncio.get_running_loop().create_task(_renew(renew, files))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._credentials.subscribe(renewed)


async def _renew(renew: Callable[[CertificateFiles], Awaitable[None]], files: CertificateFiles) -> None:
    try:
        await renew(files)
    except ListenError as error:
        log.error("the listener keeps its certificate: %s", error)  # noqa: TRY400 - the text says all

"""TLS of one component: its credentials, the calls that it makes, and the certificates of its listener.

The credentials are read again each second. After a renewal, calls use new connections, and the listener presents the
new certificate to new connections.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mesh.auth import EDGE, ClientCertificates
from mesh.boundary import cancel_task
from mesh.certificates import Credentials
from mesh.config.manifest import Manifest
from mesh.control.mesh_certificates import credential_files
from mesh.rpc.client.service_tls import ServiceTls
from mesh.rpc.server.listener import CertificateFiles, ListenError

__all__ = ["ComponentTls"]

log = logging.getLogger("mesh.control")


class ComponentTls:
    """Certificates of a component in use.

    Args:
        manifest: The manifest: it says which services are reached by TLS.
        name: The component: a service, or ``edge``.

    Raises:
        Faults: A service is reached by TLS, and the files of the component's certificate are missing or not valid.
    """

    def __init__(self, manifest: Manifest, name: str) -> None:
        self._secured = frozenset(filter(manifest.secures, manifest.services))
        self._mesh = manifest.name
        self._listens = name != EDGE and name in self._secured
        self._credentials = (
            Credentials(manifest.name, name, credential_files(manifest, name)) if self._secured else None
        )
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

    def start(self, renew: Callable[[CertificateFiles], Awaitable[None]] | None = None) -> None:
        """Follow renewals from now on.

        Args:
            renew: Gives the listener other certificates.
        """
        if self._credentials is None:
            return
        self._run(self._credentials.watch())
        files = self.listener
        if renew is not None and files is not None:
            self._credentials.subscribe(lambda: self._run(_renew(renew, files)))

    def stop(self) -> None:
        """Follow renewals no more."""
        for task in self._tasks:
            cancel_task(task)

    def _run(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)  # noqa: S101 - of a coroutine
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _renew(renew: Callable[[CertificateFiles], Awaitable[None]], files: CertificateFiles) -> None:
    try:
        await renew(files)
    except ListenError as error:
        log.error("the listener keeps its certificate: %s", error)  # noqa: TRY400 - the text says all

"""Signer (``mesh keys serve``): the only process that holds the authority where ``mesh up`` does not run the mesh."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from mesh.auth import key_files
from mesh.certificates import Credentials
from mesh.certificates.spiffe import SIGNER
from mesh.config.manifest import Manifest
from mesh.control import mesh_certificates
from mesh.control.component.certificate_keeper import CertificateKeeper
from mesh.control.component.signer_app import MAX_BODY_SIZE, SignerApp
from mesh.faults import Fault, Faults
from mesh.rpc.server.listener import CertificateFiles, Listener, ListenError
from mesh.telemetry import logs

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    from mesh.certificates.authority_store import IssuedCredentials

__all__ = ["DRAIN_SECONDS", "SignerComponent"]

log = logging.getLogger("mesh.certificates")

DRAIN_SECONDS = 5.0
"""Seconds that a shutdown waits for requests in progress."""


class SignerComponent:
    """The signer with its listener.

    It renews its own certificate. Clients have none yet when they ask, so the listener requests no client certificate.

    Args:
        manifest: The manifest.

    Raises:
        Faults: There is no authority, or its folder or the identity folder cannot be used.
    """

    def __init__(self, manifest: Manifest) -> None:
        logs.install(SIGNER)
        self._place = f"{manifest.file.name} [keys] listen"
        self._manifest = manifest
        store = self._store = mesh_certificates.authority(manifest)
        if not store.exists:
            text = "there is no authority of the mesh; make it, and the keys of all components: mesh keys --each FOLDER"
            raise Faults([Fault(str(store.folder), text)])
        self._keeper = CertificateKeeper(manifest, [SIGNER])
        self._credentials = Credentials(manifest.name, SIGNER, mesh_certificates.identity_files(manifest, SIGNER))
        self._credentials.subscribe(self._on_renewal)
        keys = partial(key_files.load_public, manifest.state / "identity")
        keys()  # a folder that cannot be read ends the start
        names = [name for name in mesh_certificates.names(manifest) if name != SIGNER]
        app = SignerApp(store, names, keys, self._issue)
        self._listener = Listener(
            app, manifest.keys.listen, grpc=False, drain=DRAIN_SECONDS, max_body=MAX_BODY_SIZE, tls=self._files()
        )
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Serve; return the bound ``host:port``.

        Raises:
            Faults: The address cannot be listened on.
        """
        try:
            address = await self._listener.start()
        except ListenError as error:
            raise Faults([Fault(self._place, str(error))]) from None
        self._run(self._keeper.run(lambda text: log.warning("%s", text)))
        self._run(self._credentials.watch())
        return address

    def reload(self) -> None:
        """Read the certificate again (SIGHUP)."""
        self._credentials.reload()

    async def stop(self) -> None:
        """Finish the requests in progress, and stop."""
        for task in self._tasks:
            task.cancel()
        await self._listener.stop()

    def _issue(self, name: str, public_key: EllipticCurvePublicKey, replaced: int | None) -> IssuedCredentials:
        manifest = self._manifest
        return self._store.issue(
            name,
            public_key,
            now=datetime.now(UTC),
            hosts=mesh_certificates.hosts(manifest, name),
            lifetime=mesh_certificates.lifetime(manifest),
            replaced=replaced,
        )

    def _files(self) -> CertificateFiles:
        return CertificateFiles(self._credentials.files.certificate, self._credentials.files.private_key)

    def _on_renewal(self) -> None:
        self._run(self._renew_listener())

    async def _renew_listener(self) -> None:
        try:
            await self._listener.renew(self._files())
        except ListenError as error:
            log.error("%s", error)  # noqa: TRY400 - the text says all

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

"""Signer (``mesh keys serve``): the only process that holds the authority where ``mesh up`` does not run the mesh."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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

    It renews its own certificate, and those of broker and operator, which do not ask. Clients have none yet when they
    ask, so the listener requests no client certificate.

    Args:
        manifest: The manifest.
        each: Folder with the folders of broker and operator; None: they are on other machines.

    Raises:
        Faults: There is no authority, or its folder or the identity folder cannot be used.
    """

    def __init__(self, manifest: Manifest, each: Path | None = None) -> None:
        logs.install(SIGNER)
        self._place = f"{manifest.file.name} [keys] listen"
        self._manifest = manifest
        store = self._store = mesh_certificates.authority(manifest)
        if not store.exists:
            text = "there is no authority of the mesh; make it, and the keys of all components: mesh keys --each FOLDER"
            raise Faults([Fault(str(store.folder), text)])
        passive = {} if each is None else {name: each / name for name in mesh_certificates.PASSIVE}
        self._keeper = CertificateKeeper(manifest, {SIGNER: manifest.state / "identity", **passive})
        self._credentials = Credentials(manifest.name, SIGNER, mesh_certificates.identity_files(manifest, SIGNER))
        self._credentials.subscribe(self._on_renewal)
        keys = partial(key_files.load_public, manifest.state / "identity")
        keys()  # a folder that cannot be read ends the start
        names = [name for name in mesh_certificates.names(manifest) if name != SIGNER]
        app = SignerApp(store, names, keys, self._issue)
        self._listener = Listener(
            app, manifest.keys.listen, grpc=False, drain=DRAIN_SECONDS, max_body=4 * MAX_BODY_SIZE, tls=self._files()
        )
        self._background: list[asyncio.Future[None]] = []
        self._renewing: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Serve; return the bound ``host:port``.

        Raises:
            Faults: The address cannot be listened on.
        """
        try:
            address = await self._listener.start()
        except ListenError as error:
            raise Faults([Fault(self._place, str(error))]) from None
        self._background = [
            asyncio.ensure_future(self._keeper.run(lambda text: log.warning("%s", text))),
            asyncio.ensure_future(self._credentials.watch()),
        ]
        return address

    def reload(self) -> None:
        """Read the certificate again (SIGHUP)."""
        self._credentials.reload()

    async def stop(self) -> None:
        """Finish the requests in progress, and stop."""
        for task in self._background:
            task.cancel()
        if self._renewing is not None:
            await self._renewing
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
        self._renewing = asyncio.ensure_future(self._renew_listener(self._renewing))

    async def _renew_listener(self, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            await earlier
        try:
            await self._listener.renew(self._files())
        except ListenError as error:
            log.error("%s", error)  # noqa: TRY400 - the text says all

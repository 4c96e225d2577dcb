"""Certificates of the component that runs in this process: the first one, and renewals while it runs.

- ``mesh up`` renews the files, or an operator with ``mesh keys``, or cert-manager: the component reads them again.
- With ``[keys] address`` the component asks the signer itself, and writes the files.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from opentelemetry import metrics

from mesh.certificates import CertificateError, Credentials, leaf_files
from mesh.certificates.credentials import CHECK_INTERVAL
from mesh.certificates.renewal import RenewalSchedule
from mesh.config.manifest import Manifest
from mesh.config.tls import TlsFiles
from mesh.control import mesh_certificates
from mesh.control.component.signer_client import SignerClient
from mesh.faults import Fault, Faults

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation

__all__ = ["keep_current", "load", "needed", "obtain"]

log = logging.getLogger("mesh.certificates")

_rounds: dict[str, int] = {}
"""Name of a component of this process → the authority's round at the issue of its first certificate."""

FIRST_TIMEOUT = 60.0
"""Seconds for which a component that has no certificate asks for its first one."""
FIRST_RETRY_INTERVAL = 1.0
"""Seconds between two of these requests."""


def needed(manifest: Manifest) -> bool:
    """Return whether the components of the mesh need certificates: some service is reached by TLS."""
    return any(manifest.secures(name) for name in manifest.services)


def asks_signer(manifest: Manifest) -> bool:
    """Return whether components get their certificates from a signer."""
    return bool(manifest.keys.address) and not isinstance(manifest.tls, TlsFiles)


def obtain(manifest: Manifest, name: str) -> None:
    """Get a certificate from the signer, if mesh.toml names one. It blocks; call it before the loop runs.

    A signer that does not respond is waited for, unless the component still has a valid certificate.

    Raises:
        Faults: There is no certificate.
    """
    if not needed(manifest) or not asks_signer(manifest):
        return
    client = SignerClient(manifest, name)
    until = time.monotonic() + FIRST_TIMEOUT
    while True:
        try:
            _rounds[name] = client.renew()
        except CertificateError as error:
            held = leaf_files.current_leaf(manifest.state / "identity", name, manifest.name)
            if held is not None and held.not_valid_after_utc > datetime.now(UTC):
                log.warning("no new certificate of %s: %s", name, error)
                return
            if time.monotonic() >= until:
                raise Faults([Fault(f"{manifest.file.name} [keys] address", str(error))]) from None
            time.sleep(FIRST_RETRY_INTERVAL)
        else:
            return


def load(manifest: Manifest, name: str) -> Credentials | None:
    """Return the credentials of a component, or None if no service is reached by TLS. The metric of expiry begins.

    Raises:
        Faults: A file is missing, malformed, or of another component.
    """
    if not needed(manifest):
        return None
    files = mesh_certificates.credential_files(manifest, name)
    if not isinstance(manifest.tls, TlsFiles) and not files.certificate.exists():
        text = f"there is no certificate of {name}, which tls = {manifest.tls!r} needs; `mesh keys` makes it"
        raise Faults([Fault(str(files.certificate), text)])
    credentials = Credentials(manifest.name, name, files)
    _measure(credentials)
    return credentials


def _measure(credentials: Credentials) -> None:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        yield metrics.Observation(credentials.seconds_to_expiry())

    metrics.get_meter("mesh").create_observable_gauge(
        "mesh.certificate.expiry", [observe], "s", "Time until the component's certificate expires."
    )


async def keep_current(credentials: Credentials, manifest: Manifest) -> None:
    """Renew the credentials, or read renewed files, until the task is cancelled.

    Args:
        credentials: Credentials that ``load`` returned.
        manifest: The manifest.
    """
    if not asks_signer(manifest):
        await credentials.watch()
        return
    client = SignerClient(manifest, credentials.name)
    schedule = RenewalSchedule(random.random)
    known = _rounds.get(credentials.name)  # the round of a leaf that a former process got is not known
    while True:
        await asyncio.sleep(CHECK_INTERVAL)
        credentials.check()
        now, monotonic = datetime.now(UTC), time.monotonic()
        due = schedule.renewal_due(now, credentials.renew_at, credentials.life, monotonic)
        if not due and not schedule.poll_due(monotonic):
            continue
        try:
            if due or await asyncio.to_thread(client.round) != known:
                known = await asyncio.to_thread(client.renew)
                credentials.reload()
        except (CertificateError, Faults, OSError, ValueError) as error:  # whatever it is, the next attempt may succeed
            delay = schedule.failed(time.monotonic())
            log.warning("the certificate of %s was not renewed, retry in %.0f s: %s", credentials.name, delay, error)
        else:
            schedule.succeeded(time.monotonic())

"""Certificate keeper of ``mesh up`` and of the signer: renews the leaf files of components at half of their life.

The process that runs it is the only one that opens the authority. The components read their own files again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from mesh.config.manifest import Manifest
from mesh.control import mesh_certificates
from mesh.faults import Faults

__all__ = ["CHECK_INTERVAL", "CertificateKeeper"]

CHECK_INTERVAL = 1.0
"""Seconds between two looks at the clock and at the authority, which ``mesh keys rotate-root`` changes."""
RETRY_DELAY = 15.0
"""Seconds after which a renewal that failed is repeated."""


class CertificateKeeper:
    """Issues certificates into folders of this machine, at once and as long as the process runs.

    Args:
        manifest: The manifest.
        folders: Name of each component → its folder; None: all components, in the identity folder.

    Raises:
        Faults: The first issue failed.
    """

    def __init__(self, manifest: Manifest, folders: dict[str, Path] | None = None) -> None:
        self._manifest = manifest
        self._state = mesh_certificates.authority(manifest).folder / "state.json"
        self._folders = folders or dict.fromkeys(mesh_certificates.names(manifest), manifest.state / "identity")
        self._checked_at = datetime.now(UTC)
        self._due = self._issue(self._checked_at)
        self._version = _version(self._state)

    async def run(self, report: Callable[[str], None]) -> None:
        """Renew until the task is cancelled. ``report`` shows a line of the supervisor."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            try:
                self.check(datetime.now(UTC))
            except Faults as faults:
                report(f"the certificates were not renewed; retry in {RETRY_DELAY:g} s: {faults}")
                await asyncio.sleep(RETRY_DELAY)

    def check(self, now: datetime) -> bool:
        """Renew what is due, also after the clock was set back or another process changed the authority.

        Returns:
            Whether the leaves were looked at.

        Raises:
            Faults: The authority or a folder cannot be read or written.
        """
        if self._checked_at <= now < self._due and _version(self._state) == self._version:
            self._checked_at = now
            return False
        self._due = self._issue(now)
        self._checked_at = now
        self._version = _version(self._state)
        return True

    def _issue(self, now: datetime) -> datetime:
        validity = mesh_certificates.lifetime(self._manifest)
        return mesh_certificates.issue_each(self._manifest, self._folders, validity, now)


def _version(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns

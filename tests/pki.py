"""Certificate authority of the tests: roots, leaves and credential files, valid, expired or foreign."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from mesh.certificates import CredentialFiles, Credentials, Root
from mesh.certificates.authority import LEAF_LIFETIME, key_pem, new_key

MESH = "shop"


@dataclass
class Pki:
    """One root of a mesh, and leaves that it signs in a folder.

    ``Pki(tmp_path).credentials("login")`` is enough for most tests; a second ``Pki`` in another folder is foreign.
    """

    folder: Path
    mesh: str = MESH
    root: Root = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.root = Root.make(self.mesh, now())
        self.trust(self.root)

    def trust(self, *roots: Root) -> None:
        """Write the bundle of trusted roots."""
        replace(self.folder / "roots.pem", b"".join(root.certificate_pem for root in roots))

    def issue(
        self,
        name: str,
        *,
        root: Root | None = None,
        mesh: str | None = None,
        at: datetime | None = None,
        lifetime: timedelta = LEAF_LIFETIME,
        hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> CredentialFiles:
        """Write a new leaf with its key, in place of the last one of this name."""
        key = key or new_key()
        signer = root or self.root
        leaf = signer.issue(mesh or self.mesh, name, key.public_key(), now=at or now(), hosts=hosts, lifetime=lifetime)
        replace(self.folder / f"{name}.pem", key_pem(key) + leaf)
        return CredentialFiles.of(self.folder, name)

    def expired(self, name: str) -> CredentialFiles:
        """Write a leaf that expired an hour ago."""
        return self.issue(name, at=now() - LEAF_LIFETIME - timedelta(hours=1))

    def credentials(self, name: str) -> Credentials:
        """Return the credentials of a new leaf."""
        return Credentials(self.mesh, name, self.issue(name))


def now() -> datetime:
    return datetime.now(UTC)


def replace(path: Path, content: bytes) -> None:
    """Replace a file by one rename."""
    fresh = path.with_name(f".{path.name}")
    fresh.touch(mode=0o600)
    fresh.write_bytes(content)
    fresh.replace(path)

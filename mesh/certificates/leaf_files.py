"""Leaf files of a mesh's components: issues those that are missing or due, and writes them with the trusted roots.

``mesh up`` calls it for all components, ``mesh keys --each`` for one folder each. A component that asks
``mesh keys serve`` writes its own files with ``write``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from mesh import private_files
from mesh.certificates.authority import LEAF_LIFETIME, half_life, key_pem, new_key, parse_bundle, verify_leaf
from mesh.certificates.authority_store import AuthorityStore
from mesh.certificates.credentials import CredentialFiles
from mesh.certificates.rotation import RotationState
from mesh.certificates.spiffe import CertificateError, leaf_service
from mesh.faults import Fault, Faults

__all__ = ["current_leaf", "issue_due", "write", "write_roots"]


def issue_due(
    store: AuthorityStore,
    folders: Mapping[str, Path],
    hosts: Mapping[str, Iterable[str]],
    *,
    now: datetime,
    lifetime: timedelta = LEAF_LIFETIME,
) -> datetime:
    """Issue the leaves that are missing, not valid, past half of their life or older than the step of a rotation.

    Args:
        store: The authority.
        folders: Name of each component → folder of its files. It is created if it is missing.
        hosts: Name → further host names and addresses in its leaf.
        now: The time.
        lifetime: Validity of new leaves.

    Returns:
        The time of the next renewal.

    Raises:
        Faults: The authority or a folder cannot be read or written.
    """
    with store.issuing():
        roots = store.roots()
        # The roots first: a component must trust the root of another one's new leaf.
        for folder in set(folders.values()):
            write_roots(folder, roots)
        state = store.status().state
        due = [now + lifetime]
        for name, folder in folders.items():
            leaf = current_leaf(folder, name, store.mesh)
            if leaf is None or not _current(leaf, state, roots, now) or not _hosts(leaf) >= set(hosts.get(name, ())):
                replaced = None if leaf is None else leaf.serial_number
                key = new_key()
                issued = store.issue(
                    name, key.public_key(), now=now, hosts=hosts.get(name, ()), lifetime=lifetime, replaced=replaced
                )
                write(folder, name, key_pem(key) + issued.leaf)
                leaf = x509.load_pem_x509_certificate(issued.leaf)
            due.append(half_life(leaf))
    return min(due)


def current_leaf(folder: Path, name: str, mesh: str) -> x509.Certificate | None:
    """Return the leaf in a component's file, or None if there is no valid file of this component."""
    try:
        leaf = x509.load_pem_x509_certificate(CredentialFiles.of(folder, name).certificate.read_bytes())
        return leaf if leaf_service(leaf, mesh) == name else None
    except (OSError, ValueError, CertificateError):
        return None


def write(folder: Path, name: str, pair: bytes) -> None:
    """Write key and leaf (PEM) of a component.

    Raises:
        Faults: The folder cannot be written.
    """
    _replace(CredentialFiles.of(folder, name).certificate, pair)


def write_roots(folder: Path, roots: bytes) -> None:
    """Write the trusted roots (PEM) if they differ from those of the file.

    Raises:
        Faults: The folder cannot be written.
    """
    path = CredentialFiles.of(folder, "").roots
    try:
        if path.read_bytes() == roots:
            return
    except OSError:
        pass
    _replace(path, roots)


def _replace(path: Path, content: bytes) -> None:
    try:
        private_files.make_folder(path.parent)
        private_files.replace_file(path, content)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Faults([Fault(str(path), f"the certificate cannot be written: {reason}")]) from None


def _current(leaf: x509.Certificate, state: RotationState, roots: bytes, now: datetime) -> bool:
    known = state.leaves.get(leaf.serial_number)
    if known is None or known.round != state.round or now >= half_life(leaf):
        return False
    try:
        verify_leaf(leaf, parse_bundle(roots), now)
    except CertificateError:
        return False
    return True


def _hosts(leaf: x509.Certificate) -> set[str]:
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}

"""Certificates of a mesh's components: names, hosts and folders, and their issue by the authority of this machine.

The authority is the folder ``authority`` of the state folder. Leaf and roots of a component are in the identity folder,
beside its identity key: ``identity/NAME.pem`` and ``identity/roots.pem``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from mesh.address import ANY, split
from mesh.certificates import leaf_files
from mesh.certificates.authority_store import AuthorityStore
from mesh.certificates.credentials import CredentialFiles
from mesh.certificates.spiffe import EDGE, OPERATOR, SIGNER
from mesh.config.manifest import Manifest
from mesh.config.tls import TlsFiles, local, secured
from mesh.faults import Fault, Faults

__all__ = [
    "BROKER", "PASSIVE", "authority", "broker_files", "credential_files", "hosts", "identity_files", "issue_each",
    "lifetime", "names", "signs_here", "with_broker",
]  # fmt: skip

BROKER = "broker"
"""Name of the event broker."""
PASSIVE = (BROKER, OPERATOR)
"""Names of those that do not ask a signer for their certificates: a program of others, and commands that end soon."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def authority(manifest: Manifest) -> AuthorityStore:
    """Return the authority of the mesh, which may not exist."""
    return AuthorityStore(manifest.state / "authority", manifest.name)


def signs_here(manifest: Manifest) -> bool:
    """Return whether this machine issues certificates: mesh.toml names neither own files nor a signer."""
    return not manifest.keys.address and not isinstance(manifest.tls, TlsFiles)


def credential_files(manifest: Manifest, name: str) -> CredentialFiles:
    """Return the files of a component: those of ``[tls]``, or those of the identity folder."""
    if isinstance(manifest.tls, TlsFiles):
        return CredentialFiles(*(Path(getattr(manifest.tls, key)) for key in ("certificate", "private_key", "ca")))
    return identity_files(manifest, name)


def identity_files(manifest: Manifest, name: str) -> CredentialFiles:
    """Return the files of a component in the identity folder."""
    return CredentialFiles.of(manifest.state / "identity", name)


def broker_files(manifest: Manifest, listen: str) -> CredentialFiles | None:
    """Return the certificate of the broker of ``mesh up``, and the trusted roots; None: it speaks plain text.

    It speaks TLS where a service with the same address would.

    Args:
        manifest: The manifest.
        listen: ``host:port`` on which it listens.

    Raises:
        Faults: Other machines reach it, and it has no certificate: mesh.toml has files of another authority, or the
            signer has issued none.
    """
    if not secured(manifest.tls, (listen,)):
        return None
    files = identity_files(manifest, BROKER)
    if not isinstance(manifest.tls, TlsFiles) and files.certificate.is_file():
        return files
    if local(listen):
        return None
    text = (
        f"there is no certificate {files.certificate} for the nats-server of `mesh up`, which other machines reach: "
        'listen on loopback, or run a broker of your own (broker = "tls://HOST:PORT")'
    )
    raise Faults([Fault(f"{manifest.file.name} [events] listen", text)])


def with_broker(manifest: Manifest, url: str) -> Manifest:
    """Return the manifest with the URL of the broker of ``mesh up``, whose certificate the mesh's roots verify."""
    events = manifest.events
    if urlsplit(url).scheme == "tls" and not manifest.broker:
        events = msgspec.structs.replace(events, ca=str(identity_files(manifest, BROKER).roots))
    return msgspec.structs.replace(manifest, broker=url, events=events)


def lifetime(manifest: Manifest) -> timedelta:
    """Return the validity of a new leaf."""
    return timedelta(seconds=manifest.keys.lifetime)


def names(manifest: Manifest) -> list[str]:
    """Return the names that get a certificate: the services, and the mesh's own components."""
    return [*manifest.services, EDGE, OPERATOR, BROKER, SIGNER]


def hosts(manifest: Manifest, name: str) -> tuple[str, ...]:
    """Return the host names and IP addresses in the leaf of a component, for clients that know no SPIFFE names.

    A host of mesh.toml is part of it, and so are the names of the loopback interface. Edge and operator have none: they
    are clients.
    """
    if name in (EDGE, OPERATOR):
        return ()
    return tuple(dict.fromkeys((*_LOOPBACK, *_named(_addresses(manifest, name)))))


def _addresses(manifest: Manifest, name: str) -> Iterator[str]:
    if name == SIGNER:
        yield manifest.keys.listen
        if manifest.keys.address:
            yield manifest.keys.address
    elif name == BROKER:
        yield manifest.events.listen
        for url in filter(None, manifest.broker.split(",")):
            yield f"{urlsplit(url.strip()).netloc.rpartition('@')[2].partition(':')[0]}:0"
    else:
        config = manifest.services[name]
        yield config.listen
        yield from config.addresses


def _named(addresses: Iterable[str]) -> Iterator[str]:
    for address in addresses:
        try:
            host, _ = split(address)
            found = ip_address(host.partition("%")[0])
        except ValueError:
            if host != ANY:
                yield host.lower()
        else:
            if not found.is_unspecified:
                yield str(found)


def issue_each(
    manifest: Manifest, folders: dict[str, Path], validity: timedelta, now: datetime | None = None
) -> datetime:
    """Issue the leaves that are missing or due into a folder for each component; return the time of the next renewal.

    Args:
        manifest: The manifest.
        folders: Name → folder.
        validity: Validity of a new leaf.
        now: The time; None: that of the clock.

    Raises:
        Faults: The authority or a folder cannot be read or written.
    """
    moment = datetime.now(UTC) if now is None else now
    store = authority(manifest)
    store.ensure(moment)
    all_hosts = {name: hosts(manifest, name) for name in folders}
    return leaf_files.issue_due(store, folders, all_hosts, now=moment, lifetime=validity)

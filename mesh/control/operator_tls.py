"""TLS of commands to services: the certificate of the operator, or that of the component whose container it runs in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from mesh.address import is_loopback, reachable, split
from mesh.certificates import CertificateError, CredentialFiles, Credentials
from mesh.certificates.spiffe import EDGE, OPERATOR, leaf_service
from mesh.config.manifest import Manifest, load
from mesh.config.tls import TlsFiles
from mesh.control import run_state
from mesh.control.mesh_certificates import credential_files
from mesh.faults import Fault, Faults
from mesh.rpc.client.service_tls import ServiceTls

__all__ = ["operator_tls", "tls_at"]


def operator_tls(manifest: Manifest, service: str) -> ServiceTls | None:
    """Return TLS for a command that calls a service, or None if the service speaks plain text.

    Raises:
        Faults: There is no certificate here that the service would accept.
    """
    if not manifest.secures(service):
        return None
    for name, files in _found(manifest):
        return ServiceTls(Credentials(manifest.name, name, files), service)
    place = str(manifest.state / "identity" / f"{OPERATOR}.pem")
    raise Faults([Fault(place, f"{service} is reached by TLS, and there is no certificate here; make one: mesh keys")])


def tls_at(file: Callable[[], Path], address: str) -> ServiceTls | None:
    """Return TLS for a command that calls a service by its address.

    None if there is no mesh.toml, if none of its services is at the address, or if the service speaks plain text.

    Args:
        file: Returns the path of mesh.toml.
        address: ``host:port``.

    Raises:
        Faults: There is no certificate here that the service would accept.
    """
    try:
        manifest = load(file())
    except Faults:  # an address needs no mesh.toml
        return None
    name = _service_at(manifest, address)
    return None if name is None else operator_tls(manifest, name)


def _service_at(manifest: Manifest, address: str) -> str | None:
    """Return the service that is reached by an address, or listens at it on this machine; None if there is none."""
    mesh = run_state.running(manifest.state)
    bound = {} if mesh is None else mesh.addresses
    for name, config in manifest.services.items():
        known = (*config.addresses, config.listen, bound.get(name, config.listen))
        if any(_same(address, one) for one in known):
            return name
    return None


def _same(address: str, known: str) -> bool:
    """Whether two addresses are of one listener. Each loopback address reaches a listener on all interfaces."""
    try:
        (host, port), (other, other_port) = split(address), split(reachable(known))
    except ValueError:
        return False
    return port == other_port and (host == other or (is_loopback(host) and is_loopback(other)))


def _found(manifest: Manifest) -> Iterator[tuple[str, CredentialFiles]]:
    """Yield names and files of the certificates on this machine, the operator's first."""
    if isinstance(manifest.tls, TlsFiles):
        files = credential_files(manifest, OPERATOR)
        yield _name_in(manifest, files), files
        return
    for name in (OPERATOR, *manifest.services, EDGE):
        files = credential_files(manifest, name)
        if files.certificate.is_file():
            yield name, files


def _name_in(manifest: Manifest, files: CredentialFiles) -> str:
    """Return the name that an own certificate proves.

    Raises:
        Faults: The file cannot be read, or is no certificate of this mesh.
    """
    from cryptography import x509  # noqa: PLC0415 - only own files need it

    try:
        return leaf_service(x509.load_pem_x509_certificate(files.certificate.read_bytes()), manifest.name)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    except (ValueError, CertificateError) as error:
        reason = str(error)
    raise Faults([Fault(str(files.certificate), reason)])

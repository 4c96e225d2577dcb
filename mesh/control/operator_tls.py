"""TLS of commands to services: the certificate of the operator, or that of the component whose container it runs in."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.certificates import CertificateError, CredentialFiles, Credentials
from mesh.certificates.spiffe import EDGE, OPERATOR, leaf_service
from mesh.config.manifest import Manifest
from mesh.config.tls import TlsFiles
from mesh.control.mesh_certificates import credential_files
from mesh.faults import Fault, Faults
from mesh.rpc.client.service_tls import ServiceTls

__all__ = ["operator_tls"]


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

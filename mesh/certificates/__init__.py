"""Certificates of a mesh: its certificate authority, the leaf certificate of each component, and TLS contexts of both.

Decisions:

- *SPIFFE names.* A leaf's URI is ``spiffe://NAME/SERVICE``: ``name`` of mesh.toml is the trust domain, the service's
  name is the path. Peers are identified by this URI. DNS names are in the leaf for stock clients, which know no URIs.
- *Short lives.* A leaf is valid for 24 hours and is renewed at half its life while the component runs. Nothing revokes
  a certificate.
- *Two roots during a rotation.* Each root has a subject and a key identifier of its own, so verifiers find the right
  one. A root signs leaves only after every component trusts it.
- *One profile for all verifiers.* ECDSA P-256, empty subject, critical alternative names, key identifiers. Python
  (strict), OpenSSL, BoringSSL, Go, rustls and the verifier of ``cryptography`` accept it.
- *One file for key and certificate.* It is replaced by one rename, so no reader sees a key without its certificate.

The package does not know gRPC, NATS or HTTP. Listeners and clients take contexts or files from ``Credentials``.

Refused: RSA, intermediate authorities, leaves for names of another mesh, TLS below 1.3 between services.
"""

from mesh.certificates.authority import Root
from mesh.certificates.credentials import CredentialFiles, Credentials
from mesh.certificates.spiffe import CertificateError, peer_service, spiffe_id

__all__ = ["CertificateError", "CredentialFiles", "Credentials", "Root", "peer_service", "spiffe_id"]

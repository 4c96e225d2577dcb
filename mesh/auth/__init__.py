"""Authentication and authorization of calls: users and calling services.

Decisions:

- *Two identities.* The *user* for whom a call is made has a JWT in ``authorization``, verified with the published
  keys of the issuer that it names. The *service* that makes the call is the one that its TLS certificate names.
- *A token for hops that a proxy terminates.* ``mesh-identity`` is valid for a minute and for one method. It is signed
  with the key that ``mesh up`` made for the service. Where there is no certificate it names the caller. Where there is
  one, both must name the same service.
- *Every listener verifies both.* A sidecar that trusted the edge's check would be open to anyone who reaches it
  directly.
- *Revocations are pushed.* A login service streams them to every listener, which keeps them in memory. A call costs no
  question to anybody, and a revocation takes effect in milliseconds.
- *The contract authorizes.* A method says its access and roles, and a service declares the services that it calls.

Refused: symmetric keys, unsigned tokens, and a service's call that the contract does not declare.
"""

from mesh.auth.api_keys import ApiKeyFile, ApiKeyVerifier, end_with_key
from mesh.auth.client_certificates import ClientCertificates
from mesh.auth.identity_layers import NO_SERVICES, CallDeclarations, authenticate, authorize, identify
from mesh.auth.key_sources import discover, fetch_url
from mesh.auth.revocation_watch import RevocationWatch
from mesh.auth.revocations import Revocations, end_when_revoked
from mesh.auth.service_tokens import EDGE, PeerVerifier, Signer
from mesh.auth.token_expiry import end_with_token
from mesh.auth.user_tokens import Issuer, TokenVerifier

__all__ = [
    "EDGE",
    "NO_SERVICES",
    "ApiKeyFile",
    "ApiKeyVerifier",
    "CallDeclarations",
    "ClientCertificates",
    "Issuer",
    "PeerVerifier",
    "RevocationWatch",
    "Revocations",
    "Signer",
    "TokenVerifier",
    "authenticate",
    "authorize",
    "discover",
    "end_when_revoked",
    "end_with_key",
    "end_with_token",
    "fetch_url",
    "identify",
]

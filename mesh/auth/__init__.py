"""Who is calling, and may they.

Two questions, two proofs, both checked again at every door: the *user* for whom a call is made (a JWT under
``authorization``, verified with the issuer's published keys) and the *service* that makes it (a token of a minute under
``mesh-identity``, signed with the key that ``mesh up`` made for that service). A door that trusted what another door
said would be open to anyone who reaches it directly.

Service identity is one method (``Peers.caller``), so that a certificate can answer it instead of a token.
"""

from mesh.auth.identity_layers import Declarations, Peers, authenticate, authorize, identify
from mesh.auth.service_tokens import EDGE, PeerVerifier, Signer
from mesh.auth.user_tokens import TokenVerifier, fetch_url

__all__ = [
    "EDGE",
    "Declarations",
    "PeerVerifier",
    "Peers",
    "Signer",
    "TokenVerifier",
    "authenticate",
    "authorize",
    "fetch_url",
    "identify",
]

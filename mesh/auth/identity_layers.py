"""Layers of identity: ``authenticate`` and ``authorize`` for calls received, ``identify`` for calls made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from typing import TYPE_CHECKING

from mesh.auth.service_tokens import EDGE, HEADER, PeerVerifier, Signer
from mesh.call import current, forward_client
from mesh.certificates.spiffe import OPERATOR
from mesh.contract.access import check_identity
from mesh.contract.model import Access, Contract, Method
from mesh.errors import PermissionDenied, Unauthenticated, Unavailable
from mesh.headers import AUTHORIZATION

if TYPE_CHECKING:
    from mesh.auth.api_keys import ApiKeyVerifier
    from mesh.auth.client_certificates import ClientCertificates
    from mesh.auth.user_tokens import TokenVerifier
    from mesh.call import Call, Handler, Layer

__all__ = ["CallDeclarations", "authenticate", "authorize", "identify"]

NO_SERVICES = frozenset({EDGE, OPERATOR})
"""Callers that make calls for others: the edge for users, the operator's command line for a person. They open no
INTERNAL method."""


class CallDeclarations:
    """Declared calls between services, from ``calls`` in the contract.

    Args:
        contract: The contract.
        serves: Name of each service in mesh.toml → full names of the gRPC services that it hosts.
    """

    __slots__ = ("_allowed", "_serves")

    def __init__(self, contract: Contract, serves: Mapping[str, Iterable[str]]) -> None:
        self._serves = {name: tuple(served) for name, served in serves.items()}
        self._allowed = {
            name: frozenset(
                called
                for service in served
                if service in contract.services
                for called in contract.services[service].calls
            )
            for name, served in self._serves.items()
        }

    def check(self, caller: str, service: str) -> None:
        """Check that the service ``caller`` declares that it calls ``service``.

        Raises:
            PermissionDenied: It does not. The message says where to declare it.
        """
        allowed = self._allowed.get(caller)
        if allowed is not None and service in allowed:
            return
        if allowed is None:
            raise PermissionDenied(f"{caller} calls {service}, but is no service of this mesh: it is not in mesh.toml")
        raise PermissionDenied(
            f'{caller} calls {service} without declaring it: add calls: "{service}" '
            f"to option (meshapi.v1.service) of {' or '.join(self._serves[caller])}"
        )


def authenticate(
    tokens: TokenVerifier | ApiKeyVerifier | None,
    peers: PeerVerifier | None,
    certificates: ClientCertificates | None = None,
) -> Layer:
    """Return the layer that verifies user, service token and certificate of a call.

    It sets ``call.identity`` and ``call.caller``.

    A call with a user token that is invalid, or that cannot be verified now, is refused, unless the method is PUBLIC.
    Then the caller is anonymous, because a client sends an expired token with Refresh and Login too. At the edge the
    method is not known yet, so ``call.auth_error`` keeps the error for the layer that finds that a user is needed. An
    invalid token of a service is always refused.

    With ``certificates`` the caller is the service that the certificate of the connection names. A token may come with
    it and must name the same service. Without ``certificates`` the token alone names the caller, also when a proxy
    terminates TLS.

    Args:
        tokens: Verifier of user tokens and API keys, or None if none is accepted.
        peers: Verifier of service tokens. None at the edge, which services do not call, and which ignores the header.
        certificates: Verifier of client certificates, where the listener requires them; or None.
    """
    caller_of = None if peers is None else peers.caller if certificates is None else _certified(peers, certificates)

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        if caller_of is not None:
            call.caller = caller_of(call)
        credentials = call.metadata.wire(AUTHORIZATION)
        if credentials is None:
            return next(call)
        if tokens is not None:
            call.identity = tokens.known(credentials)
            if call.identity is not None:
                return next(call)
        return verified(call, credentials, next)

    async def verified(call: Call, credentials: bytes, next: Handler) -> None:
        try:
            if tokens is None:
                raise Unauthenticated("no user tokens are accepted here; call without `authorization`")  # noqa: TRY301 - for the same handler
            call.identity = await tokens.verify(credentials)
        except (Unauthenticated, Unavailable) as error:
            if call.method is not None and call.method.access is not Access.PUBLIC:
                raise
            call.auth_error = error
        await next(call)

    return layer


def _certified(peers: PeerVerifier, certificates: ClientCertificates) -> Callable[[Call], str]:
    """Return a function that verifies certificate and token of a call, and returns the caller."""

    def caller_of(call: Call) -> str:
        certified, signed = certificates.caller(call.certificate), peers.caller(call)
        if signed is not None and signed != certified:
            text = f"the client certificate is that of {certified}, the mesh-identity token that of {signed}"
            raise Unauthenticated(text)
        return certified

    return caller_of


def authorize(
    contract: Contract, serves: Mapping[str, Iterable[str]], for_components: Container[str] = frozenset()
) -> Layer:
    """Return the layer that refuses a call unless ``access``, ``roles`` and ``scopes`` of its method allow its caller.

    A declared call of a service needs a user only if the method has roles, and no API key. Nobody calls a method that
    is for its triggers only. Deliveries do not pass through this layer.

    Args:
        contract: The contract, with the declared calls between services.
        serves: As for ``CallDeclarations``.
        for_components: Paths of INTERNAL methods that the mesh itself calls, from the edge and every service, without a
            declaration: the streams of revocations.
    """
    declarations = CallDeclarations(contract, serves)

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        method: Method = call.method
        if method.access is not Access.PUBLIC:
            caller = call.caller
            if method.path in for_components and (caller == EDGE or caller in serves):
                return next(call)
            by_service = caller is not None and caller not in NO_SERVICES
            if caller is not None and by_service:
                declarations.check(caller, method.service)
            elif method.access is Access.INTERNAL:
                raise PermissionDenied(f"{method.path} is only for services of the mesh")
            if method.triggers_only:
                text = f"{method.path} is only for its triggers; with access: INTERNAL services may call it as well"
                raise PermissionDenied(text)
            if method.access is not Access.INTERNAL and (not by_service or method.roles):
                check_identity(method, call.identity, method.path)
        return next(call)

    return layer


def identify(signer: Signer, declarations: CallDeclarations | None = None) -> Layer:
    """Return the outbound layer that adds the tokens of this service and of the user, and the client's address.

    The user and the address are those of the call in progress (``mesh.call.current``). An ``authorization`` that the
    call already has is not replaced.

    Args:
        signer: Signer of this service's tokens.
        declarations: The declared calls. An undeclared call is refused before it reaches the network. None for calls of
            the mesh itself: those of the edge, and the fetch of keys.
    """
    service = signer.service

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        method: Method = call.method
        if declarations is not None:
            declarations.check(service, method.service)
        forward_client(current.get(), call.metadata)
        call.metadata.append(HEADER, signer.token(method.path))
        return next(call)

    return layer

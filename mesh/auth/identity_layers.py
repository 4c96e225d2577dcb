"""The layers of identity: ``authenticate`` and ``authorize`` on the way in, ``identify`` on the way out."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from mesh.auth.service_tokens import EDGE, HEADER, Signer
from mesh.call import current
from mesh.contract.model import Access, Contract, Method
from mesh.errors import PermissionDenied, Unauthenticated

if TYPE_CHECKING:
    from mesh.auth.user_tokens import TokenVerifier
    from mesh.call import Call, Handler, Layer

__all__ = ["Declarations", "Peers", "authenticate", "authorize", "identify"]

AUTHORIZATION = b"authorization"


class Peers(Protocol):
    """Tells which service makes a call, by whatever proof it carries: a token (``PeerVerifier``) or a certificate."""

    def caller(self, call: Call) -> str | None:
        """Return the verified name of the calling service, or None when the call comes from outside.

        Raises:
            Unauthenticated: There is a proof, and it is not valid.
        """


class Declarations:
    """Which service may call which: what the contract declares in ``calls``.

    Args:
        contract: The contract.
        serves: The name of each service in mesh.toml → full names of the services of the contract that it serves.
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
            PermissionDenied: It does not; the message says what to declare where.
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


def authenticate(tokens: TokenVerifier | None, peers: Peers | None) -> Layer:
    """Return the layer that sets ``call.identity`` and ``call.caller`` from what the call proves.

    A user token that is not valid refuses the call, unless the method is PUBLIC: there the caller is as anonymous as
    without one, because a client whose token has expired sends it along with Refresh and Login too. At the edge, where
    the method is not known yet, ``call.auth_error`` keeps the refusal for whoever finds that a user is needed. The
    proof of a service is never passed over.

    Args:
        tokens: Verifies user tokens; None: no token is accepted.
        peers: Verifies services; None at the edge, where no service calls and the header means nothing.
    """

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        if peers is not None:
            call.caller = peers.caller(call)
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
        except Unauthenticated as error:
            if call.method is not None and call.method.access is not Access.PUBLIC:
                raise
            call.auth_error = error
        await next(call)

    return layer


def authorize(contract: Contract, serves: Mapping[str, Iterable[str]]) -> Layer:
    """Return the layer that lets a call pass only if ``call.method.access`` and ``roles`` allow its caller.

    Args:
        contract: The contract; its ``calls`` say which service may call which.
        serves: As for ``Declarations``.
    """
    declarations = Declarations(contract, serves)

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        method: Method = call.method
        if method.access is not Access.PUBLIC:
            caller = call.caller
            if caller is not None and caller != EDGE:
                declarations.check(caller, method.service)
            elif method.access is Access.INTERNAL:
                raise PermissionDenied(f"{method.path} is only for services of the mesh")
            if method.access is Access.AUTHENTICATED:
                _check_user(call, method, by_service=caller is not None and caller != EDGE)
        return next(call)

    return layer


def _check_user(call: Call, method: Method, *, by_service: bool) -> None:
    """Check the user of an AUTHENTICATED call; a service that declares the call needs none, unless a role is asked for.

    Raises:
        Unauthenticated: There is no user.
        PermissionDenied: The user holds none of the roles.
    """
    identity = call.identity
    if identity is None:
        if by_service and not method.roles:
            return
        raise Unauthenticated(f"{method.path} needs a user: send `authorization: Bearer TOKEN`")
    if method.roles and method.roles.isdisjoint(identity.roles):
        wanted = " or ".join(sorted(method.roles))
        raise PermissionDenied(f"{method.path} is only for users with the role {wanted}")


def identify(signer: Signer, declarations: Declarations | None = None) -> Layer:
    """Return the outbound layer that says which service calls, and for which user.

    The user is the one of the call that is being answered now (``mesh.call.current``); ``authorization`` that the call
    carries already stays as it is.

    Args:
        signer: Signs as this service.
        declarations: If given, a call that this service does not declare is refused before it reaches the network.
            None for what the mesh itself calls: the edge, and the fetch of keys.
    """
    service = signer.service

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        audience: str = call.method.service
        if declarations is not None:
            declarations.check(service, audience)
        metadata = call.metadata
        if metadata.wire(AUTHORIZATION) is None:
            answered = current.get()
            if answered is not None and answered.identity is not None:
                credentials = answered.metadata.wire(AUTHORIZATION)
                if credentials is not None:
                    metadata.append(AUTHORIZATION, credentials)
        metadata.append(HEADER, signer.token(audience))
        return next(call)

    return layer

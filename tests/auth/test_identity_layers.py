"""The layers: who gets through to which method, and what the others are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import descriptor_pool, empty_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from test_user_tokens import KEY, Issuer, jwk, token, verifier

from mesh.auth import CallDeclarations, PeerVerifier, Signer, authenticate, authorize, identify, key_files
from mesh.call import Call, Identity, Metadata, chain, current
from mesh.contract.model import Access, Contract, GrpcService, Method
from mesh.errors import PermissionDenied, StatusError, Unauthenticated

SERVES = {"registration": ["reg.Reg"], "login": ["log.Log"], "audit": ["aud.Aud", "aud.Other"]}
USER = Identity("u1", frozenset({"reader"}))


def method(
    service: str, name: str, access: Access, roles: frozenset[str] = frozenset(), scopes: frozenset[str] = frozenset()
) -> Method:
    empty = empty_pb2.Empty
    return Method(name, service, f"/{service}/{name}", empty, empty, access=access, roles=roles, scopes=scopes)


PUBLIC = method("log.Log", "Public", Access.PUBLIC)
AUTHENTICATED = method("log.Log", "Authenticated", Access.AUTHENTICATED)
ADMIN = method("log.Log", "Admin", Access.AUTHENTICATED, frozenset({"admin"}))
INTERNAL = method("log.Log", "Internal", Access.INTERNAL)
TRIGGERED = replace(method("log.Log", "OnEvent", Access.INTERNAL), triggers_only=True)
BY_KEY = method("log.Log", "ByKey", Access.KEY, scopes=frozenset({"a", "b"}))
METHODS = (PUBLIC, AUTHENTICATED, ADMIN, INTERNAL, TRIGGERED, BY_KEY)
ROBOT = Identity("key:ci", scopes=frozenset({"a"}))
TRUSTED_ROBOT = Identity("key:cd", scopes=frozenset({"a", "b", "c"}))


@pytest.fixture
def mesh_contract() -> Contract:
    services = {
        "reg.Reg": GrpcService("reg.Reg", {}, calls=("log.Log",)),
        "log.Log": GrpcService("log.Log", {m.name: m for m in METHODS}),
        "aud.Aud": GrpcService("aud.Aud", {}),
        "aud.Other": GrpcService("aud.Other", {}),
    }
    return Contract(services, {}, FileDescriptorSet(), descriptor_pool.DescriptorPool())


async def passes(handler: Any, call: Call) -> str:
    """Return "ok", or the refusal's code and text."""
    try:
        await handler(call)
    except StatusError as error:
        return str(error)
    return "ok"


async def nothing(call: Call) -> None:
    pass


UNDECLARED = 'PERMISSION_DENIED: audit calls log.Log without declaring it: add calls: "log.Log" to option (meshapi.v1.service) of aud.Aud or aud.Other'  # noqa: E501 - one line, as the reader sees it
ONLY_MESH = "PERMISSION_DENIED: /log.Log/Internal is only for services of the mesh"


@pytest.mark.parametrize(
    ("target", "caller", "user", "expected"),
    [
        (PUBLIC, None, None, "ok"),
        (PUBLIC, "audit", None, "ok"),
        (AUTHENTICATED, None, None, "UNAUTHENTICATED: /log.Log/Authenticated needs a user"),
        (AUTHENTICATED, "edge", None, "UNAUTHENTICATED: /log.Log/Authenticated needs a user"),
        (AUTHENTICATED, None, USER, "ok"),
        (AUTHENTICATED, "edge", USER, "ok"),
        (AUTHENTICATED, "registration", None, "ok"),
        (AUTHENTICATED, "registration", USER, "ok"),
        (AUTHENTICATED, "audit", USER, UNDECLARED),
        (AUTHENTICATED, "audit", None, UNDECLARED),
        (ADMIN, None, USER, "PERMISSION_DENIED: /log.Log/Admin is only for users with the role admin"),
        (ADMIN, "registration", USER, "PERMISSION_DENIED: /log.Log/Admin is only for users with the role admin"),
        (ADMIN, "registration", None, "UNAUTHENTICATED: /log.Log/Admin needs a user"),
        (ADMIN, "edge", Identity("u2", frozenset({"admin"})), "ok"),
        (INTERNAL, "registration", None, "ok"),
        (INTERNAL, None, None, ONLY_MESH),
        (INTERNAL, None, Identity("u2", frozenset({"admin"})), ONLY_MESH),
        (INTERNAL, "edge", Identity("u2", frozenset({"admin"})), ONLY_MESH),
        (INTERNAL, "operator", Identity("u2", frozenset({"admin"})), ONLY_MESH),
        (AUTHENTICATED, "operator", None, "UNAUTHENTICATED: /log.Log/Authenticated needs a user"),
        (AUTHENTICATED, "operator", USER, "ok"),
        (INTERNAL, "audit", None, UNDECLARED),
        (
            TRIGGERED,
            "registration",
            None,
            "PERMISSION_DENIED: /log.Log/OnEvent is only for its triggers; with access",
        ),
        (TRIGGERED, "registration", USER, "PERMISSION_DENIED: /log.Log/OnEvent is only for its triggers"),
        (TRIGGERED, "operator", USER, "PERMISSION_DENIED: /log.Log/OnEvent is only for services of the mesh"),
        (PUBLIC, "edge", ROBOT, "ok"),
        (BY_KEY, "edge", TRUSTED_ROBOT, "ok"),
        (BY_KEY, None, TRUSTED_ROBOT, "ok"),
        (BY_KEY, "edge", ROBOT, "PERMISSION_DENIED: /log.Log/ByKey is only for API keys with the scope b"),
        (BY_KEY, "edge", USER, "PERMISSION_DENIED: /log.Log/ByKey is only for API keys"),
        (BY_KEY, "edge", None, "UNAUTHENTICATED: /log.Log/ByKey needs an API key: send `authorization: Bearer KEY`"),
        (BY_KEY, "registration", None, "ok"),
        (BY_KEY, "registration", USER, "ok"),
        (BY_KEY, "audit", TRUSTED_ROBOT, UNDECLARED),
        (AUTHENTICATED, "edge", ROBOT, "PERMISSION_DENIED: /log.Log/Authenticated is only for users; an API key opens"),
        (AUTHENTICATED, "registration", ROBOT, "ok"),
        (ADMIN, "registration", ROBOT, "PERMISSION_DENIED: /log.Log/Admin is only for users; an API key opens"),
        (INTERNAL, "edge", TRUSTED_ROBOT, ONLY_MESH),
        (INTERNAL, "stranger", None, "PERMISSION_DENIED: stranger calls log.Log, but is no service of this mesh"),
    ],
)
async def test_access(
    mesh_contract: Contract, target: Method, caller: str | None, user: Identity | None, expected: str
):
    call = Call(target, Metadata())
    call.caller, call.identity = caller, user
    assert (await passes(chain(authorize(mesh_contract, SERVES), nothing), call)).startswith(expected)


@pytest.mark.parametrize(
    ("caller", "expected"),
    [("edge", "ok"), ("audit", "ok"), (None, ONLY_MESH), ("operator", ONLY_MESH), ("stranger", "PERMISSION_DENIED")],
)
async def test_the_stream_of_revocations_is_for_every_component(
    mesh_contract: Contract, caller: str | None, expected: str
) -> None:
    call = Call(INTERNAL, Metadata())
    call.caller, call.identity = caller, USER
    layer = authorize(mesh_contract, SERVES, {INTERNAL.path})
    assert (await passes(chain(layer, nothing), call)).startswith(expected)


async def test_who_calls_is_set_from_what_is_proved(tmp_path: Path):
    key_files.ensure(tmp_path, ["registration"])
    issuer = Issuer(jwk(KEY))
    layer = authenticate(verifier(issuer), PeerVerifier(tmp_path))
    peer = Signer("registration", key_files.load(tmp_path, "registration")).token(AUTHENTICATED.path)
    for _ in range(2):
        call = Call(AUTHENTICATED, Metadata.from_wire([(b"authorization", token()), (b"mesh-identity", peer)]))
        assert await passes(chain(layer, nothing), call) == "ok"
        assert (call.caller, call.identity and call.identity.subject) == ("registration", "u1")
    anonymous = Call(PUBLIC, Metadata())
    assert await passes(chain(layer, nothing), anonymous) == "ok"
    assert (anonymous.caller, anonymous.identity) == (None, None)


BROKEN = token(Ed25519PrivateKey.generate())


async def test_a_token_that_is_not_valid_is_none_for_a_public_method():
    """A browser sends its expired token along with Refresh and Login too."""
    layer = authenticate(verifier(Issuer(jwk(KEY))), None)
    call = Call(PUBLIC, Metadata.from_wire([(b"authorization", BROKEN)]))
    assert await passes(chain(layer, nothing), call) == "ok"
    assert call.identity is None
    answered = current.set(call)
    try:  # and it goes no further
        onward = Call(PUBLIC, Metadata())
        signer = Signer("registration", Ed25519PrivateKey.generate())
        assert await passes(chain(identify(signer), nothing), onward) == "ok"
    finally:
        current.reset(answered)
    assert onward.metadata.wire(b"authorization") is None


@pytest.mark.parametrize("target", [AUTHENTICATED, ADMIN, INTERNAL])
async def test_a_token_that_is_not_valid_refuses_every_other_call(target: Method):
    layer = authenticate(verifier(Issuer(jwk(KEY))), None)
    for tokens in (layer, authenticate(None, None)):
        call = Call(target, Metadata.from_wire([(b"authorization", BROKEN)]))
        assert (await passes(chain(tokens, nothing), call)).startswith("UNAUTHENTICATED: ")
        assert call.identity is None


async def test_a_token_that_cannot_be_verified_now_is_none_for_a_public_method_only():
    """The keys of its issuer cannot be fetched. Login must go on meanwhile."""
    issuer = Issuer(jwk(KEY))
    issuer.down = True
    layer = authenticate(verifier(issuer), None)
    for target, outcome in ((PUBLIC, "ok"), (AUTHENTICATED, "UNAVAILABLE: ")):
        call = Call(target, Metadata.from_wire([(b"authorization", token(KEY))]))
        assert (await passes(chain(layer, nothing), call)).startswith(outcome)
        assert call.identity is None


async def test_before_the_route_is_known_a_token_that_is_not_valid_is_a_doubt():
    call = Call(None, Metadata.from_wire([(b"authorization", BROKEN)]))
    assert await passes(chain(authenticate(verifier(Issuer(jwk(KEY))), None), nothing), call) == "ok"
    assert call.identity is None
    assert "signature" in str(call.auth_error)


async def test_a_service_that_cannot_prove_itself_is_refused_even_at_a_public_method(tmp_path: Path):
    key_files.ensure(tmp_path, ["registration"])
    layer = authenticate(verifier(Issuer(jwk(KEY))), PeerVerifier(tmp_path))
    reached: list[Call] = []

    async def handler(call: Call) -> None:
        reached.append(call)

    with pytest.raises(Unauthenticated):
        await chain(layer, handler)(Call(PUBLIC, Metadata.from_wire([(b"mesh-identity", b"forged")])))
    assert not reached


async def test_without_auth_in_the_manifest_no_token_is_accepted():
    layer = authenticate(None, None)
    with pytest.raises(Unauthenticated, match="no user tokens are accepted here"):
        await chain(layer, nothing)(Call(AUTHENTICATED, Metadata.from_wire([(b"authorization", token())])))
    forged = Call(PUBLIC, Metadata.from_wire([(b"mesh-identity", b"forged")]))
    await chain(layer, nothing)(forged)  # the edge: the header means nothing there
    assert forged.caller is None


async def test_an_onward_call_says_who_calls_and_for_whom(tmp_path: Path, mesh_contract: Contract):
    key_files.ensure(tmp_path, ["registration"])
    outbound = chain(
        identify(
            Signer("registration", key_files.load(tmp_path, "registration")), CallDeclarations(mesh_contract, SERVES)
        ),
        nothing,
    )
    answered = Call(method("reg.Reg", "Get", Access.PUBLIC), Metadata.from_wire([(b"authorization", b"Bearer user")]))

    async def onward(*pairs: tuple[bytes, bytes]) -> Call:
        call = Call(INTERNAL, Metadata.from_wire(list(pairs)))
        await outbound(call)
        assert PeerVerifier(tmp_path).caller(call) == "registration"
        return call

    assert (await onward()).metadata.wire(b"authorization") is None
    held = current.set(answered)
    try:
        assert (await onward()).metadata.wire(b"authorization") is None  # nobody verified it
        answered.identity = USER
        assert (await onward()).metadata.wire(b"authorization") == b"Bearer user"
        explicit = await onward((b"authorization", b"Bearer other"))
        assert explicit.metadata.getall("authorization") == ["Bearer other"]
        # What came from outside under the header's name does not stand.
        assert (await onward((b"mesh-identity", b"forged"))).caller is None
    finally:
        current.reset(held)


async def test_an_undeclared_call_does_not_leave(tmp_path: Path, mesh_contract: Contract):
    key_files.ensure(tmp_path, ["audit"])
    sent: list[Call] = []

    async def network(call: Call) -> None:
        sent.append(call)

    layer = identify(Signer("audit", key_files.load(tmp_path, "audit")), CallDeclarations(mesh_contract, SERVES))
    with pytest.raises(PermissionDenied, match=r"audit calls log\.Log without declaring it"):
        await chain(layer, network)(Call(PUBLIC, Metadata()))
    assert not sent

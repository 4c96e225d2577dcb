"""User tokens: what is accepted, what is refused and with which words, and how keys come and go."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.api_jws import PyJWS

from mesh.auth import Issuer as TrustedIssuer
from mesh.auth import TokenVerifier, jwks
from mesh.auth.verified_cache import VerifiedCache
from mesh.call import current
from mesh.errors import Unauthenticated, Unavailable

KEY = Ed25519PrivateKey.generate()


def jwk(key: Ed25519PrivateKey, kid: str = "k1", **more: Any) -> dict[str, Any]:
    return {**OKPAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "alg": "EdDSA", "use": "sig", **more}


class Issuer:
    """Publishes keys; counts how often it is asked."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        self.keys = list(entries)
        self.asked = 0
        self.down = False
        self.release = asyncio.Event()
        self.release.set()
        self.called = asyncio.Event()
        self.saw: object = None

    async def fetch(self) -> bytes:
        self.asked += 1
        self.called.set()
        self.saw = current.get()
        await self.release.wait()
        if self.down:
            raise OSError("connection refused")
        return json.dumps({"keys": self.keys}).encode()


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def token(key: Any = KEY, kid: str | None = "k1", algorithm: str = "EdDSA", **claims: Any) -> bytes:
    full = {"iss": "me", "aud": "mesh", "sub": "u1", "exp": int(time.time()) + 60, "roles": ["admin"], **claims}
    full = {name: value for name, value in full.items() if value is not None}
    return b"Bearer " + jwt.encode(full, key, algorithm=algorithm, headers={"kid": kid} if kid else {}).encode()


def trusted(issuer: Issuer, name: str = "me", audiences: tuple[str, ...] = ("mesh",), **more: Any) -> TrustedIssuer:
    return TrustedIssuer(name=name, audiences=audiences, fetch=issuer.fetch, **more)


def verifier(
    issuer: Issuer, *, clock: Clock | None = None, monotonic: Clock | None = None, **more: Any
) -> TokenVerifier:
    clocks = {} if clock is None else {"clock": clock, "monotonic": monotonic}
    return TokenVerifier([trusted(issuer, **more)], **clocks)  # type: ignore[arg-type]


async def test_a_valid_token_is_an_identity_and_then_a_lookup():
    issuer = Issuer(jwk(KEY))
    tokens = verifier(issuer)
    text = token()
    assert tokens.known(text) is None
    identity = await tokens.verify(text)
    assert (identity.subject, identity.roles, identity.claims["iss"]) == ("u1", frozenset({"admin"}), "me")
    assert tokens.known(text) is identity
    assert issuer.asked == 1


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"exp": 1}, "the token has expired"),
        ({"iss": "you"}, "from another issuer, 'you'; expected me"),
        ({"aud": "other"}, "for another audience; expected mesh"),
        ({"nbf": 4_000_000_000}, "not valid yet"),
        ({"sub": None}, "no claim 'sub'"),
        ({"exp": None}, "no claim 'exp'"),
        ({"iss": None}, "no claim 'iss'"),
        ({"aud": None}, "no claim 'aud'"),
    ],
)
async def test_a_refusal_says_what_is_wrong(claims: dict[str, Any], message: str):
    with pytest.raises(Unauthenticated, match=message):
        await verifier(Issuer(jwk(KEY))).verify(token(**claims))


HUGE = "1" + "0" * 400


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize(
    "value", [HUGE, f"-{HUGE}", "9" * 5000, "1e400", "-1e400", "NaN", "1e308",
              "253402300800", '"1e9"', '"x"', "[1]", "{}",
              "[" * 3000 + "]" * 3000]
)  # fmt: skip
async def test_a_time_that_is_none_is_refused(claim: str, value: str):
    """JSON has numbers of any length, and Python reads a few that are none."""
    claims = {"iss": '"me"', "aud": '"mesh"', "sub": '"u1"', "exp": "4000000000", claim: value}
    payload = "{" + ",".join(f'"{name}":{text}' for name, text in claims.items()) + "}"
    text = b"Bearer " + PyJWS().encode(payload.encode(), KEY, algorithm="EdDSA", headers={"kid": "k1"}).encode()
    tokens = verifier(Issuer(jwk(KEY)))
    with pytest.raises(Unauthenticated, match=r"is no time|malformed|not valid yet|has expired"):
        await tokens.verify(text)
    assert tokens.known(text) is None


async def test_the_last_time_that_there_is():
    assert (await verifier(Issuer(jwk(KEY))).verify(token(exp=253_402_300_799, nbf=0, iat=-1))).subject == "u1"


@pytest.mark.parametrize(
    "text", [b"", b"Basic abc", b"Bearer", b"Bearer ", b"Bearer a.b.c", b"Bearer \xff", b"Bearer " + b"a" * 20_000]
)
async def test_what_is_no_token_is_refused_without_a_fetch(text: bytes):
    issuer = Issuer(jwk(KEY))
    with pytest.raises(Unauthenticated, match=r"expected `auth|malformed|longer than"):
        await verifier(issuer).verify(text)
    assert issuer.asked == 0


async def test_a_forged_signature_is_refused():
    with pytest.raises(Unauthenticated, match="signature does not match"):
        await verifier(Issuer(jwk(KEY))).verify(token(Ed25519PrivateKey.generate()))


async def test_the_algorithm_is_the_keys_own():
    public = json.dumps(jwk(KEY)).encode()
    secret = {"kty": "oct", "kid": "s", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "alg": "HS256"}
    tokens = verifier(Issuer(jwk(KEY), secret))
    for text in (
        token(b"x" * 32 + public, algorithm="HS256"),
        token(b"secretsecretsecretsecretsecretsecret", kid="s", algorithm="HS256"),
        token(None, algorithm="none"),
        token(ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"),
    ):
        with pytest.raises(Unauthenticated, match=r"malformed|not known here"):
            await tokens.verify(text)


async def test_other_kinds_of_keys_work():
    curve = ec.generate_private_key(ec.SECP256R1())
    rsa_key = rsa.generate_private_key(65537, 2048)
    issuer = Issuer(
        {**ECAlgorithm.to_jwk(curve.public_key(), as_dict=True), "kid": "ec"},
        {**RSAAlgorithm.to_jwk(rsa_key.public_key(), as_dict=True), "kid": "rsa"},
        {"kty": "new", "kid": "x"},
        jwk(KEY, "enc", use="enc"),
    )
    tokens = verifier(issuer)
    assert (await tokens.verify(token(curve, "ec", "ES256"))).subject == "u1"
    assert (await tokens.verify(token(rsa_key, "rsa", "RS256"))).subject == "u1"
    with pytest.raises(Unauthenticated, match="not known here"):
        await tokens.verify(token(kid="enc"))


async def test_a_token_without_kid_needs_a_set_of_one():
    assert (await verifier(Issuer(jwk(KEY))).verify(token(kid=None))).subject == "u1"
    with pytest.raises(Unauthenticated, match="not known here"):
        await verifier(Issuer(jwk(KEY), jwk(Ed25519PrivateKey.generate(), "k2"))).verify(token(kid=None))


async def test_a_new_key_is_fetched_but_not_for_every_made_up_kid():
    clock = Clock()
    issuer = Issuer(jwk(KEY))
    tokens = verifier(issuer, clock=clock, monotonic=clock)
    await tokens.verify(token())
    new = Ed25519PrivateKey.generate()
    issuer.keys.append(jwk(new, "k2"))
    clock.now += 6
    assert (await tokens.verify(token(new, "k2"))).subject == "u1"
    assert issuer.asked == 2
    for n in range(5):
        with pytest.raises(Unauthenticated, match="not known here"):
            await tokens.verify(token(kid=f"made-up-{n}"))
    assert issuer.asked == 2


async def test_many_callers_share_one_fetch_and_one_that_leaves_does_not_end_it():
    issuer = Issuer(jwk(KEY))
    issuer.release.clear()
    tokens = verifier(issuer)
    mark: Any = object()
    held = current.set(mark)
    waiting = [asyncio.create_task(tokens.verify(token(sub=f"u{n}"))) for n in range(5)]
    current.reset(held)
    await issuer.called.wait()
    waiting[0].cancel()
    issuer.release.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert [answer.subject for answer in answers[1:] if not isinstance(answer, BaseException)] == [
        "u1",
        "u2",
        "u3",
        "u4",
    ]
    assert issuer.asked == 1
    assert issuer.saw is None  # the fetch is nobody's call


async def test_no_keys_is_unavailable_not_unauthenticated():
    clock = Clock()
    issuer = Issuer(jwk(KEY))
    issuer.down = True
    tokens = verifier(issuer, clock=clock, monotonic=clock)
    for _ in range(3):
        with pytest.raises(Unavailable, match="cannot be fetched"):
            await tokens.verify(token())
    assert issuer.asked == 1
    issuer.down = False
    clock.now += 6
    assert (await tokens.verify(token())).subject == "u1"


async def test_an_issuer_that_restarts_is_not_missed_but_not_forever():
    clock = Clock()
    issuer = Issuer(jwk(KEY))
    tokens = verifier(issuer, clock=clock, monotonic=clock)
    await tokens.verify(token())
    issuer.down = True
    clock.now += 301
    assert (await tokens.verify(token(sub="u2"))).subject == "u2"
    assert issuer.asked == 2
    clock.now += 3600
    with pytest.raises(Unavailable):
        await tokens.verify(token(sub="u3"))


async def test_a_withdrawn_key_is_refused_after_the_set_has_aged():
    clock = Clock()
    issuer = Issuer(jwk(KEY))
    tokens = verifier(issuer, clock=clock, monotonic=clock)
    await tokens.verify(token())
    issuer.keys = [jwk(Ed25519PrivateKey.generate(), "k2")]
    clock.now += 301
    with pytest.raises(Unauthenticated, match="not known here"):
        await tokens.verify(token(sub="u2"))


async def test_a_withdrawn_key_refuses_a_token_that_was_seen_before():
    clock = Clock()
    issuer = Issuer(jwk(KEY), jwk(Ed25519PrivateKey.generate(), "k2"))
    tokens = verifier(issuer, clock=clock, monotonic=clock)
    old = token(exp=int(time.time()) + 10 * 365 * 86_400)
    assert tokens.known(old) is None
    await tokens.verify(old)
    clock.now += 299
    assert tokens.known(old) is not None
    issuer.keys = [jwk(Ed25519PrivateKey.generate(), "k2")]
    clock.now += 2
    assert tokens.known(old) is not None  # the set is fetched in the background meanwhile
    await refreshed(tokens)
    assert tokens.known(old) is None
    with pytest.raises(Unauthenticated, match="not known here"):
        await tokens.verify(old)


async def test_another_key_of_the_same_id_refuses_a_token_that_was_seen_before():
    clock = Clock()
    issuer = Issuer(jwk(KEY))
    tokens = verifier(issuer, clock=clock, monotonic=clock)
    old = token(exp=int(time.time()) + 86_400)
    await tokens.verify(old)
    issuer.keys = [jwk(Ed25519PrivateKey.generate())]
    clock.now += 301
    tokens.known(old)
    await refreshed(tokens)
    assert tokens.known(old) is None
    with pytest.raises(Unauthenticated, match="signature does not match"):
        await tokens.verify(old)


async def test_a_key_that_stays_keeps_its_tokens_known():
    clock = Clock()
    issuer = Issuer(jwk(KEY))
    tokens = verifier(issuer, clock=clock, monotonic=clock)
    long = token(exp=int(time.time()) + 86_400)
    await tokens.verify(long)
    clock.now += 301
    tokens.known(long)
    await refreshed(tokens)
    assert tokens.known(long) is not None
    issuer.down = True
    clock.now += 3000
    assert tokens.known(long) is not None
    clock.now += 700  # the set is too old to be believed
    assert tokens.known(long) is None
    with pytest.raises(Unavailable):
        await tokens.verify(long)


async def refreshed(tokens: TokenVerifier) -> None:
    """Wait for the fetch that is in progress in the background."""
    ((_, keys),) = tokens._issuers.values()
    pending = keys._pending
    assert pending is not None
    await asyncio.wait_for(pending, 10)


@pytest.mark.parametrize("value", ["admin editor", ["admin", "editor", 7]])
async def test_roles_come_from_the_configured_claim(value: object):
    tokens = verifier(Issuer(jwk(KEY)), roles="scope")
    assert (await tokens.verify(token(scope=value))).roles == {"admin", "editor"}


async def test_a_set_that_is_no_set_is_unavailable():
    async def fetch() -> bytes:
        return b'["keys"]'

    with pytest.raises(Unavailable):
        await TokenVerifier([TrustedIssuer(name="me", audiences=("mesh",), fetch=fetch)]).verify(token())


@pytest.mark.parametrize(
    ("path", "claims"),
    [
        ("realm_access.roles", {"realm_access": {"roles": ["admin"]}}),
        ("resource_access.shop.roles", {"resource_access": {"shop": {"roles": ["admin"]}}}),
        ("https://shop.example/roles", {"https://shop.example/roles": ["admin"]}),
        ("a.b", {"a.b": ["admin"], "a": {"b": ["other"]}}),
    ],
)
async def test_roles_come_from_a_nested_claim_or_one_with_dots_in_its_name(path: str, claims: dict[str, Any]):
    tokens = verifier(Issuer(jwk(KEY)), roles=path, role_prefix="sso:")
    assert (await tokens.verify(token(roles=["wrong"], **claims))).roles == {"sso:admin"}


@pytest.mark.parametrize("claims", [{}, {"realm_access": "roles"}, {"realm_access": {"roles": {"admin": True}}}])
async def test_a_nested_claim_that_is_not_there_gives_no_roles(claims: dict[str, Any]):
    tokens = verifier(Issuer(jwk(KEY)), roles="realm_access.roles")
    assert (await tokens.verify(token(**claims))).roles == frozenset()


async def test_the_subject_comes_from_the_configured_claim():
    tokens = verifier(Issuer(jwk(KEY)), subject="oid", subject_prefix="entra:")
    assert (await tokens.verify(token(oid="7"))).subject == "entra:7"
    for value in (None, "", 7):
        with pytest.raises(Unauthenticated, match="no text in the claim 'oid'"):
            await tokens.verify(token(oid=value))


async def test_one_of_several_audiences_is_enough():
    tokens = verifier(Issuer(jwk(KEY)), audiences=("shop", "mesh"))
    assert (await tokens.verify(token(aud=["x", "mesh"]))).subject == "u1"
    with pytest.raises(Unauthenticated, match="for another audience; expected shop or mesh"):
        await tokens.verify(token(aud="x"))


OTHER = Ed25519PrivateKey.generate()


async def test_each_token_is_verified_with_the_keys_of_the_issuer_that_it_names():
    """Both sets have the same key id, so only the issuer tells the keys apart."""
    mine, yours = Issuer(jwk(KEY)), Issuer(jwk(OTHER))
    tokens = TokenVerifier([trusted(mine), trusted(yours, "you", ("shop",), subject_prefix="you:", leeway=5)])
    assert (await tokens.verify(token())).subject == "u1"
    assert (await tokens.verify(token(OTHER, iss="you", aud="shop"))).subject == "you:u1"
    for mixed in (token(OTHER), token(KEY, iss="you", aud="shop")):
        with pytest.raises(Unauthenticated, match="signature does not match"):
            await tokens.verify(mixed)
        assert tokens.known(mixed) is None
    for claims, key in (({"iss": "me", "aud": "shop"}, KEY), ({"iss": "you", "aud": "mesh"}, OTHER)):
        with pytest.raises(Unauthenticated, match="for another audience"):
            await tokens.verify(token(key, **claims))


async def test_a_key_of_one_issuer_is_not_looked_for_at_another():
    mine, yours = Issuer(jwk(KEY, "k1")), Issuer(jwk(OTHER, "k2"))
    tokens = TokenVerifier([trusted(mine), trusted(yours, "you")])
    with pytest.raises(Unauthenticated, match="not known here"):
        await tokens.verify(token(OTHER, "k2"))
    assert (mine.asked, yours.asked) == (1, 0)


@pytest.mark.parametrize("name", ["they", "ME", "me/", ["me"], {"me": 1}, 7])
async def test_an_unknown_issuer_is_refused_without_a_fetch(name: object):
    issuer = Issuer(jwk(KEY))
    text = b"Bearer " + PyJWS().encode(
        json.dumps({"iss": name, "aud": "mesh", "sub": "u", "exp": 4_000_000_000}).encode(),
        KEY, algorithm="EdDSA", headers={"kid": "k1"},
    ).encode()  # fmt: skip
    with pytest.raises(Unauthenticated, match="from another issuer"):
        await verifier(issuer).verify(text)
    assert issuer.asked == 0


async def test_an_issuer_that_is_down_is_not_missed_by_the_users_of_another():
    mine, yours = Issuer(jwk(KEY)), Issuer(jwk(OTHER))
    yours.down = True
    tokens = TokenVerifier([trusted(mine), trusted(yours, "you")])
    with pytest.raises(Unavailable):
        await tokens.verify(token(OTHER, iss="you"))
    assert (await tokens.verify(token())).subject == "u1"


def test_the_cache_forgets_the_least_recently_used():
    cache: VerifiedCache[int] = VerifiedCache(2)
    cache.put(b"a", 1, 10)
    cache.put(b"b", 2, 10)
    assert cache.get(b"a", 0) == 1
    cache.put(b"c", 3, 10)
    assert (cache.get(b"a", 0), cache.get(b"b", 0), cache.get(b"c", 0)) == (1, None, 3)
    assert cache.get(b"a", 10) is None
    assert len(cache) == 1


async def test_an_issuer_that_hangs_stalls_nobody_whose_key_is_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jwks, "REFRESH_TIMEOUT", 0.01)
    issuer, clock = Issuer(jwk(KEY)), Clock()
    tokens = verifier(issuer, clock=clock, monotonic=clock)
    await tokens.verify(token())
    issuer.release.clear()
    clock.now += jwks.REFRESH_INTERVAL + 1
    text = token(exp=int(clock.now) + 60)
    async with asyncio.timeout(2):
        assert (await tokens.verify(text)).subject == "u1"
    assert issuer.asked == 2  # it is asked all the same
    issuer.release.set()

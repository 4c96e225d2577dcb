"""Revocations: what they refuse, how they reach verified tokens and open streams, and the watch that brings them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from types import MappingProxyType
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm
from meshapi.v1 import revocations_pb2 as pb

from mesh.auth import Issuer, Revocations, RevocationWatch, TokenVerifier, end_when_revoked, revocation_watch
from mesh.auth.revocations import Revocation
from mesh.call import Call, Handler, Identity
from mesh.errors import NotFound, Unauthenticated, Unavailable

KEY = Ed25519PrivateKey.generate()
JWKS = json.dumps({"keys": [{**OKPAlgorithm.to_jwk(KEY.public_key(), as_dict=True), "kid": "k1"}]}).encode()
NOW = int(time.time())
REFUSED = "the session of this token has ended"
INFINITE = float("inf")


def token(**claims: Any) -> bytes:
    full = {"iss": "me", "aud": "mesh", "sub": "u1", "sid": "s1", "jti": "t1", "iat": NOW, "exp": NOW + 600, **claims}
    full = {name: value for name, value in full.items() if value is not None}
    return b"Bearer " + jwt.encode(full, KEY, algorithm="EdDSA", headers={"kid": "k1"}).encode()


def verifier(revocations: Revocations, **more: Any) -> TokenVerifier:
    async def fetch() -> bytes:
        return JWKS

    return TokenVerifier([Issuer(name="me", audiences=("mesh",), fetch=fetch, revocations=revocations, **more)])


@pytest.mark.parametrize(
    ("claim", "value", "seconds", "refused"),
    [
        ("sid", "s1", INFINITE, True),
        ("sid", "s2", INFINITE, False),
        ("sub", "u1", INFINITE, True),
        ("sub", "u1", 1, True),
        ("sub", "u1", 0, False),
        ("sub", "s1", INFINITE, False),
        ("jti", "t1", INFINITE, True),
    ],
)
async def test_a_token_is_refused_before_and_after_it_was_verified(
    claim: str, value: str, seconds: float, *, refused: bool
) -> None:
    for verified_before in (True, False):
        revocations = Revocations()
        tokens, text = verifier(revocations, subject_prefix="me:"), token()
        if verified_before:
            await tokens.verify(text)
        revocations.add(Revocation(claim, value, NOW + seconds, INFINITE))
        if refused:
            assert tokens.known(text) is None
            with pytest.raises(Unauthenticated, match=REFUSED):
                await tokens.verify(text)
        else:
            identity = await tokens.verify(text)
            assert tokens.known(text) is identity
            assert tokens.known(text) is identity  # and once more, in the same generation


@pytest.mark.parametrize("issued", [None, "soon"])
async def test_a_token_without_a_time_of_issue_is_older_than_every_time(issued: object) -> None:
    revocations = Revocations()
    revocations.add(Revocation("sub", "u1", 0.0, INFINITE))
    assert revocations.refuse({"sub": "u1", "iat": issued})


async def test_a_revocation_is_never_taken_back_by_a_later_one() -> None:
    revocations = Revocations()
    revocations.add(Revocation("sub", "u1", NOW + 100, NOW + 900))
    revocations.add(Revocation("sub", "u1", NOW + 50, NOW + 800))
    assert revocations.refuse({"sub": "u1", "iat": NOW + 99})
    assert revocations.generation == 1


async def test_it_is_forgotten_when_its_tokens_have_expired() -> None:
    clock = iter([1129.0, 1130.0])
    revocations = Revocations(leeway=30, clock=lambda: next(clock))
    revocations.add(Revocation("sid", "s1", INFINITE, 1100))
    revocations.add(Revocation("sid", "s2", INFINITE, INFINITE))
    for remembered in (True, False):
        revocations.forget()
        assert revocations.refuse({"sid": "s1"}) is remembered
        assert revocations.refuse({"sid": "s2"})


# -- streams --


async def hang(_: Call) -> None:
    await asyncio.Event().wait()


def stream(revocations: Revocations, function: Handler, **claims: Any) -> asyncio.Task[None]:
    async def run() -> None:
        call = Call(None, None)  # type: ignore[arg-type]
        if claims:
            call.identity = Identity("u1", claims=MappingProxyType({"iss": "me", **claims}))
        await end_when_revoked({"me": revocations})(call, function)

    return asyncio.ensure_future(run())


async def test_the_streams_of_a_revoked_user_end_and_no_others() -> None:
    revocations = Revocations()
    ended = [stream(revocations, hang, sub="u1", iat=NOW), stream(revocations, hang, sub="u1", sid="s1")]
    others = [
        stream(revocations, hang, sub="u1", iat=NOW + 1),
        stream(revocations, hang, sub="u2"),
        stream(revocations, hang, iss="another", sub="u1"),
        stream(revocations, hang),
    ]
    await asyncio.sleep(0)
    revocations.add(Revocation("sub", "u1", NOW + 1, INFINITE))
    for task in ended:
        with pytest.raises(Unauthenticated, match=REFUSED):
            await task
    done, _ = await asyncio.wait(others, timeout=0.05)
    assert not done
    for task in others:
        task.cancel()
    assert [type(found) for found in await asyncio.gather(*others, return_exceptions=True)] == [
        asyncio.CancelledError
    ] * 4
    revocations.add(Revocation("sub", "u2", INFINITE, INFINITE))  # of a stream that is no more


async def test_a_token_that_was_revoked_after_its_check_opens_no_stream() -> None:
    revocations = Revocations()
    revocations.add(Revocation("sid", "s1", INFINITE, INFINITE))
    with pytest.raises(Unauthenticated, match=REFUSED):
        await stream(revocations, hang, sid="s1")


async def test_the_status_of_the_function_counts() -> None:
    async def function(_: Call) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise NotFound("its own status") from None

    revocations = Revocations()
    task = stream(revocations, function, sid="s1")
    await asyncio.sleep(0)
    revocations.add(Revocation("sid", "s1", INFINITE, INFINITE))
    with pytest.raises(NotFound):
        await task


# -- the watch --

SNAPSHOT_END = pb.RevocationUpdate(snapshot_end=pb.SnapshotEnd())
HEARTBEAT = pb.RevocationUpdate(heartbeat=pb.Heartbeat())


def revoked(**what: str) -> pb.RevocationUpdate:
    return pb.RevocationUpdate(revocation=pb.Revocation(**what))


class Login:
    """What a login service sends: each stream until it is broken."""

    def __init__(self, *snapshot: pb.RevocationUpdate) -> None:
        self.snapshot = [*snapshot, SNAPSHOT_END]
        self.calls = 0
        self.queue: asyncio.Queue[pb.RevocationUpdate | None] = asyncio.Queue()
        self.down = False

    async def stream(self) -> AsyncIterator[pb.RevocationUpdate]:
        self.calls += 1
        if self.down:
            raise OSError("connection refused")
        for message in self.snapshot:
            yield message
        while (message := await self.queue.get()) is not None:
            yield message


@contextlib.contextmanager
def watched(login: Login, revocations: Revocations, *, closed: bool = False, stale: float = 10.0) -> Iterator[None]:
    watch = RevocationWatch("me", revocations, subject="oid", call=login.stream, closed=closed, stale_delay=stale)
    task = asyncio.ensure_future(watch.run())
    try:
        yield
    finally:
        task.cancel()


async def until(what: Any) -> None:
    async with asyncio.timeout(10):
        while not what():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.002)


async def test_the_first_check_waits_for_the_snapshot_and_new_ones_follow() -> None:
    revocations = Revocations()
    tokens = verifier(revocations)
    login = Login(revoked(session="s1"))
    with watched(login, revocations):
        with pytest.raises(Unauthenticated, match=REFUSED):
            await tokens.verify(token())
        text = token(sid="s2", oid="user")
        await tokens.verify(text)
        update = pb.RevocationUpdate(revocation=pb.Revocation(subject="user"))
        update.revocation.not_before.FromSeconds(NOW + 1)
        update.revocation.forget_at.FromSeconds(NOW + 600)
        login.queue.put_nowait(update)
        await until(lambda: tokens.known(text) is None)
        await tokens.verify(token(sid="s2", oid="user", iat=NOW + 1))
        login.queue.put_nowait(pb.RevocationUpdate(revocation=pb.Revocation()))  # of a kind that is not known here
        login.queue.put_nowait(revoked(token_id="t9"))
        await until(lambda: revocations.refuse({"jti": "t9"}))


async def test_a_broken_stream_is_opened_again_and_nothing_is_taken_back() -> None:
    revocations = Revocations()
    login = Login(revoked(session="s1"))
    with watched(login, revocations):
        await until(lambda: revocations.refuse({"sid": "s1"}))
        login.snapshot = [revoked(session="s2"), SNAPSHOT_END]
        login.down = True
        login.queue.put_nowait(None)
        await until(lambda: login.calls > 2)
        assert not revocations.refuse({"sid": "s2"})
        login.down = False
        await until(lambda: revocations.refuse({"sid": "s2"}))
        assert revocations.refuse({"sid": "s1"})


async def test_a_login_service_that_is_away_does_not_hold_tokens_up_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mesh.auth")
    revocations = Revocations()
    tokens, text = verifier(revocations), token()
    login = Login(revoked(session="s1"))
    login.down = True
    with watched(login, revocations, stale=0.05):
        await tokens.verify(text)
        await until(lambda: "tokens are accepted that may be revoked" in caplog.text)
        login.down = False
        await until(lambda: tokens.known(text) is None)
        await until(lambda: "the revocations of me arrive again" in caplog.text)


async def test_the_log_says_why_no_revocations_arrive(caplog: pytest.LogCaptureFixture) -> None:
    revocations = Revocations()
    login = Login()
    login.down = True
    with watched(login, revocations, stale=0.05):
        await until(lambda: "tokens are accepted that may be revoked; the last call failed: OSError" in caplog.text)


async def test_a_silent_stream_is_given_up_for_another(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocation_watch, "SILENCE_TIMEOUT", 0.05)
    revocations = Revocations()
    login = Login()
    with watched(login, revocations, stale=0.2):
        await until(lambda: login.calls == 1)
        login.snapshot = []  # a server that hangs: the stream opens, and nothing comes
        await until(lambda: "the last call sent nothing for" in caplog.text)
        login.snapshot = [revoked(session="s1"), SNAPSHOT_END]
        await until(lambda: revocations.refuse({"sid": "s1"}))


async def test_closed_accepts_no_token_while_none_arrive(caplog: pytest.LogCaptureFixture) -> None:
    revocations = Revocations()
    tokens, text = verifier(revocations), token()
    login = Login()
    login.down = True
    with watched(login, revocations, closed=True, stale=0.05):
        with pytest.raises(Unavailable, match="whether it is revoked cannot be known"):
            await tokens.verify(text)
        login.down = False
        await until(lambda: not revocations.unavailable)
        await tokens.verify(text)
        await until(lambda: revocations.unavailable)  # no heartbeat came
        assert tokens.known(text) is None
        assert "no token of this issuer is accepted" in caplog.text
        login.queue.put_nowait(HEARTBEAT)
        await until(lambda: tokens.known(text) is not None)

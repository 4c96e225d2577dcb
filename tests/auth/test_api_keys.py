"""API keys: what opens and what is refused, how the file is written, and how soon a change counts."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from test_user_tokens import KEY, Clock, Issuer, jwk, token, verifier

from mesh.auth import ApiKeyFile, ApiKeyVerifier, api_keys, end_with_key, end_with_token
from mesh.call import Call, Metadata
from mesh.errors import Unauthenticated


def bearer(key: str | None) -> bytes:
    assert key is not None
    return b"Bearer " + key.encode()


@pytest.fixture
def file(tmp_path: Path) -> ApiKeyFile:
    return ApiKeyFile(tmp_path)


def create(file: ApiKeyFile, name: str = "ci", *scopes: str, expires: float | None = None) -> bytes:
    return bearer(file.create(name, scopes, now=time.time(), expires=expires))


async def test_a_key_is_an_identity_with_its_scopes(file: ApiKeyFile) -> None:
    keys = ApiKeyVerifier(file, None)
    credentials = create(file, "ci", "orders:read")
    identity = keys.known(credentials)
    assert identity is not None
    assert (identity.subject, identity.roles, identity.scopes) == ("key:ci", frozenset(), frozenset({"orders:read"}))
    assert await keys.verify(credentials) == identity
    assert keys.known(credentials.replace(b"Bearer", b"bEARER")) == identity


@pytest.mark.parametrize(
    "text", [b"Bearer mesh_", b"Bearer mesh_x", b"Basic  mesh_x", b"Bearer mesh_" + b"A" * 20_000, b"Bearer mesh_\xff"]
)
async def test_what_is_no_key_is_refused(file: ApiKeyFile, text: bytes) -> None:
    create(file)
    keys = ApiKeyVerifier(file, None)
    assert keys.known(text) is None
    with pytest.raises(Unauthenticated, match="the API key is unknown, expired or revoked"):
        await keys.verify(text)


async def test_the_hash_in_the_file_is_no_key(file: ApiKeyFile) -> None:
    create(file)
    for text in (f"mesh_{file.read()[0].hash}", file.read()[0].hash):
        with pytest.raises(Unauthenticated):
            await ApiKeyVerifier(file, None).verify(bearer(text))


async def test_a_key_is_refused_a_second_after_it_was_revoked(file: ApiKeyFile) -> None:
    clock = Clock()
    keys = ApiKeyVerifier(file, None, monotonic=clock)
    one, other = create(file, "one"), create(file, "other")
    assert keys.known(one)
    assert keys.known(other)
    assert file.revoke("one")
    assert not file.revoke("one")
    assert keys.known(one)  # not looked at again yet
    clock.now += 1
    assert keys.known(one) is None
    assert keys.known(other)
    new = create(file, "one")
    clock.now += 1
    assert keys.known(new)
    assert keys.known(one) is None


async def test_a_key_expires(file: ApiKeyFile) -> None:
    clock = Clock()
    keys = ApiKeyVerifier(file, None, clock=clock, monotonic=clock)
    credentials = create(file, expires=clock.now + 60)
    assert keys.known(credentials)
    clock.now += 60
    assert keys.known(credentials) is None
    with pytest.raises(Unauthenticated, match="expired"):
        await keys.verify(credentials)


async def test_a_stream_ends_with_the_key_of_its_caller(file: ApiKeyFile) -> None:
    call = Call(None, Metadata())  # type: ignore[arg-type]
    call.identity = ApiKeyVerifier(file, None).known(create(file, expires=time.time() + 0.2))
    assert call.identity is not None

    async def hang(_: Call) -> None:
        await forever.wait()

    forever = asyncio.Event()
    with pytest.raises(Unauthenticated, match="has expired"):
        await end_with_token({})(call, hang)


async def test_the_streams_of_a_revoked_key_end_and_no_others(
    file: ApiKeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "READ_INTERVAL", 0.01)
    keys = ApiKeyVerifier(file, None)
    text = {name: create(file, name) for name in ("one", "other")}

    def stream(name: str) -> asyncio.Task[None]:
        call = Call(None, Metadata())  # type: ignore[arg-type]
        call.identity = keys.known(text[name])
        assert call.identity is not None

        async def run() -> None:
            await end_with_key(keys)(call, hang)

        return asyncio.ensure_future(run())

    async def hang(_: Call) -> None:
        await asyncio.Event().wait()

    one, other = stream("one"), stream("other")
    await asyncio.sleep(0)
    create(file, "new")
    done, _ = await asyncio.wait([one, other], timeout=0.05)
    assert not done
    file.revoke("one")
    create(file, "one")  # another key of the same name
    with pytest.raises(Unauthenticated, match="the API key was revoked"):
        await asyncio.wait_for(one, 10)
    assert not other.done()
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other


async def test_the_rate_of_a_key(file: ApiKeyFile) -> None:
    keys = ApiKeyVerifier(file, None)
    file.create("fast", (), now=0, expires=None, rate="600/m burst 50")
    credentials = create(file, "ci")
    assert b"rate" in file.path.read_bytes().partition(b"ci")[0]
    assert b"rate" not in file.path.read_bytes().partition(b"ci")[2]  # so that older code can read the file
    assert keys.known(credentials)
    rate = keys.rate_of("key:fast")
    assert rate is not None
    assert (rate, rate.burst) == (10.0, 50)
    assert keys.rate_of("key:ci") is None
    with pytest.raises(ValueError, match="expected a rate"):
        file.create("x", (), now=0, expires=None, rate="fast")


async def test_user_tokens_go_on(file: ApiKeyFile) -> None:
    create(file)
    keys = ApiKeyVerifier(file, verifier(Issuer(jwk(KEY))))
    text = token()
    assert keys.known(text) is None
    identity = await keys.verify(text)
    assert (identity.subject, identity.scopes) == ("u1", None)
    assert keys.known(text) is identity
    with pytest.raises(Unauthenticated, match="no user tokens are accepted here"):
        await ApiKeyVerifier(file, None).verify(text)


async def test_a_file_that_cannot_be_read_opens_nothing(file: ApiKeyFile, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    keys = ApiKeyVerifier(file, None, monotonic=clock)
    credentials = create(file)
    assert keys.known(credentials)
    content = file.path.read_bytes()
    for wrong in (b"", b"[]", b'{"keys": [{"name": "ci"}]}', b"\xff", b'{"a":' + b"[" * 100_000):
        file.path.write_bytes(wrong)
        clock.now += 1
        assert keys.known(credentials) is None
        assert "no API key is accepted" in caplog.text
    file.path.write_bytes(content)
    clock.now += 1
    assert keys.known(credentials)
    file.path.unlink()
    clock.now += 1
    assert keys.known(credentials) is None


def test_the_file_is_private_and_has_no_key(file: ApiKeyFile) -> None:
    before = os.umask(0)
    try:
        credentials = create(file, "ci", "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert credentials.removeprefix(b"Bearer ") not in file.path.read_bytes()
    assert [key["name"] for key in json.loads(file.path.read_bytes())["keys"]] == ["ci"]
    assert file.create("ci", (), now=0, expires=None) is None


def test_commands_at_the_same_time_lose_nothing(file: ApiKeyFile) -> None:
    names = [f"k{n}" for n in range(20)]
    threads = [threading.Thread(target=create, args=(file, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in file.read()) == sorted(names)

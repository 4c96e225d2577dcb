"""Service tokens: the signer is the caller, for a minute, for one method."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.auth import PeerVerifier, Signer, key_files
from mesh.call import Call, Metadata
from mesh.errors import Unauthenticated


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    key_files.ensure(tmp_path, ["registration", "login", "edge"])
    return tmp_path


METHOD = "/login.v1.Login/SetCredential"


def call(token: bytes | None, path: str = METHOD) -> Call:
    pairs = [] if token is None else [(b"mesh-identity", token)]
    return Call(SimpleNamespace(path=path), Metadata.from_wire(pairs))


def signed(folder: Path, name: str = "registration", **claims: object) -> bytes:
    now = int(time.time())
    full = {"iss": "mesh", "sub": name, "aud": METHOD, "iat": now, "exp": now + 60, **claims}
    full = {key: value for key, value in full.items() if value is not None}
    return jwt.encode(full, key_files.load(folder, name), algorithm="EdDSA", headers={"kid": name}).encode()


def test_the_signer_is_the_caller(folder: Path):
    signer = Signer("registration", key_files.load(folder, "registration"))
    verifier = PeerVerifier(folder)
    token = signer.token(METHOD)
    assert verifier.caller(call(token)) == "registration"
    assert verifier.caller(call(token)) == "registration"  # from the cache
    assert verifier.caller(call(None)) is None


def test_a_token_is_used_for_half_its_life(folder: Path):
    clock = Clock()
    signer = Signer("login", key_files.load(folder, "login"), clock)
    first = signer.token("a.A")
    clock.now += 29
    assert signer.token("a.A") is first
    assert signer.token("b.B") != first
    clock.now += 2
    assert signer.token("a.A") != first


def test_a_clock_that_goes_back_makes_a_token_anew(folder: Path):
    clock = Clock()
    signer = Signer("login", key_files.load(folder, "login"), clock)
    ahead = signer.token("a.A")
    clock.now -= 5 * 3600
    token = signer.token("a.A")
    assert token != ahead
    assert jwt.decode(token, options={"verify_signature": False})["iat"] == int(clock.now)
    assert signer.token("a.A") is token


def test_a_token_for_one_method_is_none_for_another(folder: Path):
    verifier = PeerVerifier(folder)
    token = Signer("registration", key_files.load(folder, "registration")).token(METHOD)
    for _ in range(2):
        with pytest.raises(
            Unauthenticated, match=r"is for /login\.v1\.Login/SetCredential, not for /login\.v1\.Login/Login"
        ):
            verifier.caller(call(token, "/login.v1.Login/Login"))
        assert verifier.caller(call(token)) == "registration"


def test_a_cached_token_expires_all_the_same(folder: Path):
    import time

    clock = Clock()
    clock.now = time.time()
    verifier = PeerVerifier(folder, clock)
    token = Signer("registration", key_files.load(folder, "registration"), clock).token(METHOD)
    assert verifier.caller(call(token)) == "registration"
    old = signed(folder, iat=int(time.time()) - 91, exp=int(time.time()) - 31)
    clock.now += 60 + 31
    with pytest.raises(Unauthenticated, match="has expired"):
        verifier.caller(call(old))
    assert verifier._verified.get(token, clock()) is None


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "login"}, {"iss": "other"}, {"exp": None}, {"iat": None}, {"aud": None}, {"sub": None},
        {"aud": [METHOD]}, {"iat": "soon"}, {"iat": [1]},
    ],
)  # fmt: skip
def test_wrong_claims_are_refused(folder: Path, claims: dict[str, object]):
    with pytest.raises(Unauthenticated, match="the mesh-identity token is not valid"):
        PeerVerifier(folder).caller(call(signed(folder, **claims)))


@pytest.mark.parametrize("claims", [{"exp": 4_000_000_000}, {"iat": 1}])
def test_a_long_lived_token_is_refused(folder: Path, claims: dict[str, object]):
    with pytest.raises(Unauthenticated, match="the mesh-identity token is valid for more than 60 s"):
        PeerVerifier(folder).caller(call(signed(folder, **claims)))


def test_only_the_own_key_signs(folder: Path):
    forged = jwt.encode(
        {"iss": "mesh", "sub": "registration", "aud": METHOD, "iat": 1, "exp": 61},
        key_files.load(folder, "login"),
        algorithm="EdDSA",
        headers={"kid": "registration"},
    ).encode()
    verifier = PeerVerifier(folder)
    for token in (forged, b"", b"a.b.c", b"\xff\xfe", forged[:-4]):
        with pytest.raises(Unauthenticated, match="the mesh-identity token is not valid"):
            verifier.caller(call(token))
    unsigned = jwt.encode({"sub": "login"}, None, algorithm="none", headers={"kid": "login"}).encode()
    with pytest.raises(Unauthenticated):
        verifier.caller(call(unsigned))


def test_a_service_that_came_later_is_found(folder: Path):
    clock = Clock()
    verifier = PeerVerifier(folder, clock)
    key_files.ensure(folder, ["audit"])
    token = signed(folder, "audit")
    with pytest.raises(Unauthenticated, match="a key that is not known here"):
        verifier.caller(call(token))  # looked a moment ago
    clock.now += 1.1
    assert verifier.caller(call(token)) == "audit"


def test_a_retired_key_is_refused_after_seconds(folder: Path):
    clock = Clock()
    clock.now = time.time()
    signer, verifier = (
        Signer("registration", key_files.load(folder, "registration"), clock),
        PeerVerifier(folder, clock),
    )
    stolen = Signer("registration", key_files.load(folder, "registration"), clock)
    seen = stolen.token(METHOD)
    assert verifier.caller(call(seen)) == "registration"
    key_files.retire(folder, "registration", datetime.fromtimestamp(clock.now, UTC))
    clock.now += 1
    assert verifier.caller(call(seen)) == "registration"  # the service has not taken its new key yet
    assert verifier.caller(call(stolen.token("b.B"), "b.B")) == "registration"
    signer.use(key_files.load(folder, "registration"))
    fresh = signer.token(METHOD)
    assert fresh != seen
    assert verifier.caller(call(fresh)) == "registration"
    clock.now += key_files.OVERLAP.total_seconds() - 1
    for token in (seen, stolen.token(METHOD)):
        with pytest.raises(Unauthenticated, match="not valid"):
            verifier.caller(call(token))
    assert verifier.caller(call(fresh)) == "registration"


def test_a_key_that_was_removed_is_refused_a_second_later(folder: Path):
    clock = Clock()
    clock.now = time.time()
    signer, verifier = Signer("login", key_files.load(folder, "login"), clock), PeerVerifier(folder, clock)
    assert verifier.caller(call(signer.token(METHOD))) == "login"
    (folder / "login.pub").unlink()
    clock.now += 1
    with pytest.raises(Unauthenticated, match="not known here"):
        verifier.caller(call(signer.token(METHOD)))


def test_a_damaged_key_file_refuses_unknown_callers_only(folder: Path, caplog: pytest.LogCaptureFixture):
    clock = Clock()
    peers = PeerVerifier(folder, clock)
    (folder / "late.pub").write_text("half of a key")
    clock.now += 1
    stranger = Signer("stranger", Ed25519PrivateKey.generate()).token(METHOD)
    with pytest.raises(Unauthenticated, match="not known here"):
        peers.caller(call(stranger))
    assert "late.pub: expected an Ed25519 public key" in caplog.text
    assert peers.caller(call(signed(folder))) == "registration"


def test_a_service_that_came_later_is_found_by_a_clock_that_went_back(folder: Path):
    clock = Clock()
    verifier = PeerVerifier(folder, clock)
    key_files.ensure(folder, ["audit"])
    clock.now -= 5 * 3600
    assert verifier.caller(call(signed(folder, "audit"))) == "audit"

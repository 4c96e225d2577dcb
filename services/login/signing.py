"""Access tokens and their signing keys.

Keys are rows of the database, so every replica signs with the same key. The newest key signs. The key before it stays
published until the last token that it signed has expired. The generation is the primary key: when two replicas make the
next key at once, one wins and the other uses its key.
"""

from __future__ import annotations

import secrets
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm
from login.v1 import login_pb2 as pb
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from mesh import Context, Service
from services.login.settings import Settings
from services.login.tables import signing_keys

__all__ = ["access_token", "current_key", "published"]

PUBLISH_MARGIN_SECONDS = 300
"""Seconds beyond a token's lifetime for which its key stays published, because of clocks and caches of others."""


async def current_key(mesh: Context | Service, settings: Settings, now: int) -> Any:
    """Return the row of the signing key; make a key if there is none or the last one is too old."""
    while True:
        async with mesh.transaction() as tx:
            newest = (
                await tx.execute(select(signing_keys).order_by(signing_keys.c.generation.desc()).limit(1))
            ).one_or_none()
        if newest is not None and now - newest.created_at < settings.key:
            return newest
        generation = 1 if newest is None else newest.generation + 1
        private = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            async with mesh.transaction() as tx:
                # Keys before the last one have signed nothing for the lifetime of a key.
                await tx.execute(delete(signing_keys).where(signing_keys.c.generation < generation - 1))
                await tx.execute(
                    insert(signing_keys).values(
                        generation=generation, kid=secrets.token_hex(8), private=private.decode(), created_at=now
                    )
                )
        except IntegrityError:
            continue  # another replica has made it


def access_token(key: Any, settings: Settings, now: int, user: Any, *, session_id: str) -> str:
    """Return a signed access token.

    Args:
        key: Row of the signing key.
        settings: Issuer, audience and lifetime.
        now: Seconds since the epoch.
        user: Row of the user's credential. The token is not issued before its ``tokens_not_before``.
        session_id: The session.
    """
    claims = {
        "iss": settings.issuer, "aud": settings.audience, "sub": user.user_id, "roles": user.roles, "sid": session_id,
        "iat": max(now, user.tokens_not_before), "exp": now + settings.access, "jti": secrets.token_hex(8),
    }  # fmt: skip
    return jwt.encode(claims, key.private, algorithm="EdDSA", headers={"kid": key.kid})


async def published(mesh: Context, settings: Settings, now: int) -> pb.KeySet:
    """Return the public keys, newest first."""
    async with mesh.transaction() as tx:
        rows = (await tx.execute(select(signing_keys).order_by(signing_keys.c.generation.desc()))).all()
    keys: list[pb.Key] = []
    retired_at = None
    for row in rows:
        if retired_at is None or now - retired_at < settings.access + PUBLISH_MARGIN_SECONDS:
            keys.append(_public(row))
        retired_at = row.created_at
    return pb.KeySet(keys=keys)


def _public(row: Any) -> pb.Key:
    private = serialization.load_pem_private_key(row.private.encode(), password=None)
    if not isinstance(private, Ed25519PrivateKey):
        raise TypeError(f"signing key {row.kid} is not Ed25519")
    x = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)["x"]
    return pb.Key(kty="OKP", crv="Ed25519", x=x, kid=row.kid, alg="EdDSA", use="sig")

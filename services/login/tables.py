"""Tables of login. Times are whole seconds since the epoch."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, ForeignKey, Integer, MetaData, String, Table

__all__ = [
    "credentials", "failures", "handles", "recoveries", "refresh_tokens", "revocation_counter", "revocations",
    "sessions", "signing_keys",
]  # fmt: skip

metadata = MetaData()

credentials = Table(
    "credentials",
    metadata,
    Column("user_id", String, primary_key=True),
    Column("password_hash", String, nullable=False),
    Column("roles", JSON, nullable=False),
    Column("version", BigInteger, nullable=False),
    # Version of the account whose event last changed the roles. Names and roles change in events of different types,
    # which come in any order, so each has a version of its own.
    Column("roles_version", BigInteger, nullable=False, server_default="0"),
    # Access tokens issued before this time are refused.
    Column("tokens_not_before", BigInteger, nullable=False, server_default="0"),
    # True once its user has registered; nobody can log in before.
    Column("active", Boolean, nullable=False),
    # An ended credential stays as a tombstone, so that a late SetCredential for it is refused.
    Column("ended", Boolean, nullable=False),
)

handles = Table(
    "handles",
    metadata,
    Column("key", String, primary_key=True),  # a name or an e-mail address, folded
    Column("user_id", String, ForeignKey(credentials.c.user_id), nullable=False, index=True),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String, primary_key=True),
    Column("user_id", String, ForeignKey(credentials.c.user_id), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("hash", String, primary_key=True),  # SHA-256 of the token, so nobody can log in with a copy of the database
    Column("session_id", String, ForeignKey(sessions.c.id, ondelete="CASCADE"), nullable=False, index=True),
    Column("used_at", BigInteger),
)

# Failed logins in a row. The key is a SHA-256, because people type passwords into the field for the name.
failures = Table(
    "failures",
    metadata,
    Column("key", String, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("last_at", BigInteger, nullable=False, index=True),
    Column("locked_until", BigInteger, nullable=False),
)

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("generation", Integer, primary_key=True),  # the newest signs
    Column("kid", String, nullable=False, unique=True),
    Column("private", String, nullable=False),  # PEM
    Column("created_at", BigInteger, nullable=False),
)

# One row. A writer of revocations locks it to the end of its transaction, so they become visible in the order of their
# numbers, and a reader who has seen one has seen all before it.
revocation_counter = Table(
    "revocation_counter",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("last", BigInteger, nullable=False),
)

revocations = Table(
    "revocations",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String, nullable=False),  # "session" or "subject", as in meshapi.v1.Revocation
    Column("value", String, nullable=False),
    Column("not_before", BigInteger),
    Column("forget_at", BigInteger, nullable=False, index=True),
)

recoveries = Table(
    "recoveries",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),  # a login name, folded; perhaps nobody's
    Column("user_id", String, index=True),  # set with the token
    Column("token_hash", String, unique=True),  # SHA-256
    Column("expires_at", BigInteger, nullable=False, index=True),
)

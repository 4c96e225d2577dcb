"""Table of registration. Times are microseconds since the epoch."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, MetaData, String, Table

__all__ = ["ACTIVE", "PENDING", "users"]

PENDING, ACTIVE = "pending", "active"

users = Table(
    "users",
    MetaData(),
    Column("id", String, primary_key=True),
    Column("state", String, nullable=False),
    Column("name", String, nullable=False),
    Column("name_key", String, nullable=False, unique=True),  # folded: unique without regard to case
    Column("email", String, nullable=False),
    Column("email_key", String, nullable=False, unique=True),
    Column("roles", JSON, nullable=False),
    Column("version", BigInteger, nullable=False),  # increases with each change of name, e-mail or roles
    Column("superseded", JSON, nullable=False),  # ids of the pending attempts that this row has replaced
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

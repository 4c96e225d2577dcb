"""Credentials, sessions and signing keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "credentials",
        sa.Column("user_id", sa.String, primary_key=True),
        sa.Column("password_hash", sa.String, nullable=False),
        sa.Column("roles", sa.JSON, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("ended", sa.Boolean, nullable=False),
    )
    op.create_table(
        "handles",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("user_id", sa.String, sa.ForeignKey("credentials.user_id"), nullable=False, index=True),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("user_id", sa.String, sa.ForeignKey("credentials.user_id"), nullable=False, index=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "refresh_tokens",
        sa.Column("hash", sa.String, primary_key=True),
        sa.Column(
            "session_id", sa.String, sa.ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False, index=True
        ),
        sa.Column("used_at", sa.BigInteger),
    )
    op.create_table(
        "signing_keys",
        sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kid", sa.String, nullable=False, unique=True),
        sa.Column("private", sa.String, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )

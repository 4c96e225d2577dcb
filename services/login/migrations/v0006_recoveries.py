"""Recoveries of accounts."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
compatible = True  # a table that older code does not know


def upgrade() -> None:
    op.create_table(
        "recoveries",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("user_id", sa.String, index=True),
        sa.Column("token_hash", sa.String, unique=True),
        sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    )

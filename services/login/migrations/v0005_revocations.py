"""Revoked sessions and users, and the time before which a user's access tokens are refused."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
compatible = True  # older code revokes nothing, as before


def upgrade() -> None:
    op.create_table(
        "revocation_counter",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("last", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO revocation_counter (id, last) VALUES (1, 0)")
    op.create_table(
        "revocations",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("value", sa.String, nullable=False),
        sa.Column("not_before", sa.BigInteger),
        sa.Column("forget_at", sa.BigInteger, nullable=False, index=True),
    )
    op.add_column("credentials", sa.Column("tokens_not_before", sa.BigInteger, nullable=False, server_default="0"))

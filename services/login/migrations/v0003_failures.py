"""Failed logins."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
compatible = True  # a table that older code does not know


def upgrade() -> None:
    op.create_table(
        "failures",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False, index=True),
        sa.Column("locked_until", sa.BigInteger, nullable=False),
    )

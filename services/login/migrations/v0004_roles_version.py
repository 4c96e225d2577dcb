"""The version of a credential's roles."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
compatible = True  # older code never changes the roles of an active credential


def upgrade() -> None:
    op.add_column("credentials", sa.Column("roles_version", sa.BigInteger, nullable=False, server_default="0"))

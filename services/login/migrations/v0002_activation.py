"""Credentials that wait for their user's registration; sessions by when they expire."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
# Code of 0001 makes credentials that are active at once, as it always did.
compatible = True


def upgrade() -> None:
    # Whose credential is here already has registered.
    op.add_column("credentials", sa.Column("active", sa.Boolean, nullable=False, server_default=sa.true()))
    op.create_index("ix_sessions_expires_at", "sessions", ["expires_at"])

"""Tables of audit. Times are microseconds since the epoch."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Integer, MetaData, String, Table

__all__ = ["counter", "records"]

metadata = MetaData()

# One row with the number of records. A writer locks it to the end of its transaction. Records therefore become visible
# in the order of their numbers, and a reader who has seen one record has seen all before it.
counter = Table(
    "counter",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("last", BigInteger, nullable=False),
)

records = Table(
    "records",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("recorded_at", BigInteger, nullable=False),
    Column("happened_at", BigInteger, nullable=False, index=True),
    Column("event_id", String, nullable=False, index=True),
    Column("type", String, nullable=False, index=True),
    Column("user_id", String, nullable=False, index=True),
    Column("data", JSON, nullable=False),
)

"""Database of a service: SQLAlchemy's asyncio core on SQLite or PostgreSQL, migrated when the service starts.

Decisions:

- *A transaction is a block*: ``async with database.transaction() as tx``. There is no autocommit and no ORM session.
- *Transient errors are statuses*: connection lost, lock not acquired, serialization failed. The function cannot repair
  them, but its caller can retry. Errors about the data (``IntegrityError``) stay SQLAlchemy's, because the function
  knows their meaning.
- *SQLite is used like a server database*: WAL, foreign keys, and ``synchronous=FULL``, so that a committed transaction
  survives a power cut. The writers of a process queue in order and do not poll for SQLite's lock. A transaction whose
  first statement is a plain SELECT only reads. ``SELECT … FOR UPDATE`` and all other statements take the write lock
  first. So the same code is correct on both databases.

Refused: other kinds of databases.
"""

from mesh.database.database import Database, DatabaseError, TransactionOutbox
from mesh.database.leader_lock import LeaderLock
from mesh.database.sqlite_transaction import StatementExecutor

__all__ = ["Database", "DatabaseError", "LeaderLock", "StatementExecutor", "TransactionOutbox"]

"""A service's own database: SQLAlchemy's asyncio core on SQLite or PostgreSQL, migrated when the service starts.

Decisions:

- *One transaction is one block.* ``async with database.transaction() as tx``; there is no autocommit and no session.
- *Errors are statuses where they are about now* (connection lost, lock not had, serialization failed), because the
  function cannot mend them and its caller can try again. What is about the data (``IntegrityError``) stays
  SQLAlchemy's own, because the function knows what it means.
- *SQLite is a server database here*: WAL, foreign keys, and ``synchronous=FULL``, so that what was acknowledged
  survives a power cut. Writers of one process queue in order instead of polling for SQLite's lock. A transaction whose
  first statement is a plain SELECT reads; ``SELECT … FOR UPDATE`` or any other statement takes the write lock first, so
  the same code is right on both databases.
"""

from mesh.database.database import Database, DatabaseError, Outbox
from mesh.database.leader_lock import Sole
from mesh.database.sqlite_transaction import Execute

__all__ = ["Database", "DatabaseError", "Execute", "Outbox", "Sole"]

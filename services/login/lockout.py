"""Lock-out after failed logins, with backoff.

Failures are counted by what the caller gave - the login name - and not by the account found with it. So an unknown name
is locked like a known one, and a lock says nothing about which names exist or belong to one account.

The count is made after the comparison of the password. Calls that are compared at the same time are therefore all
counted but not refused; the queue of ``passwords`` bounds how many these are. A right password among them is refused
too once the others have locked the name.

About a hundred guesses a day are left for one name (NIST SP 800-63B, 5.2.2: no more than 100 failures in a row). The
price: whoever knows a name can keep its user from logging in for up to ``MAX_LOCK_DELAY`` at a time. Sessions go on.
"""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from mesh import Aborted, Context, ResourceExhausted, Transaction
from services.login.tables import failures

__all__ = ["check", "clear", "fail", "key_of", "purge"]

FREE_FAILURES = 5
"""Failures in a row from which on a name is locked: for one second, then for twice as long after each."""
MAX_LOCK_DELAY = 900
"""Seconds of the longest lock."""
MAX_COUNT_AGE = 86_400
"""Seconds after the last failure for which a count is kept."""
MAX_ATTEMPTS = 5
"""Attempts of a transaction that conflicts with another one at the same count."""


def key_of(kind: str, value: str) -> str:
    """Return the key of a count, such as ``key_of("login", "ada")``."""
    return hashlib.sha256(f"{kind}:{value}".encode()).hexdigest()


async def check(tx: Transaction, key: str, now: int) -> None:
    """Check that the key is not locked.

    Raises:
        ResourceExhausted: It is; with the seconds that are left.
    """
    until = (await tx.execute(select(failures.c.locked_until).where(failures.c.key == key))).scalar_one_or_none()
    if until is not None and until > now:
        raise ResourceExhausted("too many failed attempts; try again later", retry_after=float(until - now))


async def fail(context: Context, key: str, now: int, who: str) -> None:
    """Count and log a failure.

    Args:
        context: The call.
        key: The key of its count.
        now: Seconds since the epoch.
        who: What the log may name: a user id, never a text that a caller typed.
    """
    count, seconds = await _count(context, key, now)
    if seconds:
        context.log.warning("wrong password for %s: failure %d in a row, locked for %d s", who, count, seconds)
    else:
        context.log.info("wrong password for %s: failure %d in a row", who, count)


async def _count(context: Context, key: str, now: int) -> tuple[int, int]:
    for _ in range(MAX_ATTEMPTS):
        try:
            async with context.transaction() as tx:
                row: Any = (
                    await tx.execute(select(failures).where(failures.c.key == key).with_for_update())
                ).one_or_none()
                count = 1 if row is None or row.last_at <= now - MAX_COUNT_AGE else row.count + 1
                seconds = 0 if count < FREE_FAILURES else min(2 ** min(count - FREE_FAILURES, 30), MAX_LOCK_DELAY)
                values = {"count": count, "last_at": now, "locked_until": now + seconds}
                if row is None:
                    await tx.execute(insert(failures).values(key=key, **values))
                else:
                    await tx.execute(update(failures).where(failures.c.key == key).values(**values))
        except (IntegrityError, Aborted):
            continue  # another call counts for the same key
        return count, seconds
    raise Aborted("other calls fail for the same name; try again")


async def clear(tx: Transaction, key: str) -> None:
    """Forget the failures."""
    await tx.execute(delete(failures).where(failures.c.key == key))


async def purge(tx: Transaction, now: int) -> None:
    """Delete the counts that have no effect any more."""
    await tx.execute(delete(failures).where(failures.c.last_at <= now - MAX_COUNT_AGE))

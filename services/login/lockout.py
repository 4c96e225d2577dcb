"""Lock-out after failed logins, with backoff: by login name and address, by login name, and by address.

Failures are counted by what the caller gave - the login name - and not by the account found with it. So an unknown name
is locked like a known one, and a lock says nothing about which names exist or belong to one account.

Three counts are kept, each with limits of its own (``Rule``):

- of a name and an address: who guesses locks only himself out, and the user can log in from elsewhere;
- of a name: guesses from many addresses. About a hundred a day are left for one name (NIST SP 800-63B, 5.2.2: no more
  than 100 failures in a row);
- of an address: one password tried with many names. An IPv6 address counts by its /64 network, which one site has.

The count is made after the comparison of the password. Calls that are compared at the same time are therefore all
counted but not refused; the queue of ``passwords`` bounds how many these are. A right password among them is refused
too once the others have locked the name.

The price: whoever has many addresses and knows a name can keep its user from logging in. Sessions go on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from mesh import Aborted, Context, ResourceExhausted, Transaction
from services.login.tables import failures

__all__ = ["Lock", "check", "clear", "count", "fail", "of_login", "of_password", "of_recovery", "purge"]

MAX_COUNT_AGE = 86_400
"""Seconds after the last failure for which a count is kept."""
MAX_ATTEMPTS = 5
"""Attempts of a transaction that conflicts with another one at the same count."""
_IPV6_PREFIX = 64


@dataclass(frozen=True, slots=True)
class Rule:
    """Limits of one kind of counts.

    Attributes:
        free: Failures from which on there is a lock: for one second, then for twice as long after each further one.
        max_delay: Seconds of the longest lock.
        leak: Seconds after which one failure is forgotten; 0: all are, ``MAX_COUNT_AGE`` after the last one.
        in_a_row: Whether a success forgets the failures. It does not for an address: its owner may have an account.
    """

    free: int
    max_delay: int
    leak: int = 0
    in_a_row: bool = True


BY_BOTH = Rule(free=5, max_delay=900)
BY_NAME = Rule(free=20, max_delay=1800)
BY_ADDRESS = Rule(free=50, max_delay=900, leak=60, in_a_row=False)
"""An office behind one address may fail once a minute for ever, and 50 times at once."""


RECOVERIES = Rule(free=4, max_delay=3600, leak=600, in_a_row=False)
"""Recoveries of one name: each sends a message to its user."""


@dataclass(frozen=True, slots=True)
class Lock:
    """One count: the SHA-256 of what it counts, and its rule."""

    key: str
    rule: Rule


def of_login(name: str, address: str | None) -> tuple[Lock, ...]:
    """Return the counts of a login name, without regard to case, from an address; None: the address is unknown."""
    network = _network(address)
    found = (_lock(BY_BOTH, "login", name, network), _lock(BY_NAME, "name", name))
    return (*found, _lock(BY_ADDRESS, "address", network)) if network else found


def of_password(user_id: str) -> tuple[Lock, ...]:
    """Return the count of a user's current password, which is asked for to change it."""
    return (_lock(BY_BOTH, "password", user_id),)


def of_recovery(name: str, address: str | None) -> tuple[Lock, ...]:
    """Return the counts of the recoveries of a name, and from an address."""
    network = _network(address)
    found = (_lock(RECOVERIES, "recovery", name),)
    return (*found, _lock(BY_ADDRESS, "recoveries", network)) if network else found


def _lock(rule: Rule, *words: str) -> Lock:
    return Lock(hashlib.sha256(":".join(words).encode()).hexdigest(), rule)


def _network(address: str | None) -> str:
    if not address:
        return ""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or IPv6Network((int(parsed), _IPV6_PREFIX), strict=False))


async def check(tx: Transaction, locks: Sequence[Lock], now: int) -> None:
    """Check that nothing is locked.

    Raises:
        ResourceExhausted: Something is; with the seconds that are left.
    """
    keys = [lock.key for lock in locks]
    found = (await tx.execute(select(failures.c.locked_until).where(failures.c.key.in_(keys)))).scalars().all()
    _refuse_locked(found, now)


def _refuse_locked(times: Sequence[int], now: int) -> None:
    until = max(times, default=0)
    if until > now:
        raise ResourceExhausted("too many attempts; try again later", retry_after=float(until - now))


async def fail(context: Context, locks: Sequence[Lock], now: int, who: str) -> None:
    """Count and log a failure.

    Args:
        context: The call.
        locks: Its counts, the narrowest first.
        now: Seconds since the epoch.
        who: What the log may name: a user id, never a text that a caller typed.
    """
    counts = await count(context, locks, now)
    failed, seconds = counts[0][0], max(delay for _, delay in counts)
    log = context.log.warning if seconds else context.log.info
    text = f", locked for {seconds} s" if seconds else ""
    log("wrong password for %s from %s: failure %d in a row%s", who, context.client_address or "-", failed, text)


async def count(
    context: Context, locks: Sequence[Lock], now: int, *, refuse_locked: bool = False
) -> list[tuple[int, int]]:
    """Count a call; return the counts and the seconds of the locks.

    Args:
        context: The call.
        locks: Its counts.
        now: Seconds since the epoch.
        refuse_locked: Whether a call is refused, and not counted, while something is locked. The rows are locked
            meanwhile, so that of calls which come at the same time no more pass than of calls in a row.

    Raises:
        ResourceExhausted: Something is locked.
    """
    for _ in range(MAX_ATTEMPTS):
        try:
            async with context.transaction() as tx:
                query = select(failures).where(failures.c.key.in_([lock.key for lock in locks]))
                # All in one order, because two calls that lock in different orders would deadlock.
                found = (await tx.execute(query.order_by(failures.c.key).with_for_update())).all()
                if refuse_locked:
                    _refuse_locked([row.locked_until for row in found], now)
                rows = {row.key: row for row in found}
                rules = {lock.key: lock.rule for lock in locks}
                counts = {key: _next(rule, rows.get(key), now) for key, rule in rules.items()}
                for key in sorted(counts):
                    number, seconds = counts[key]
                    last_at = _last_at(rules[key], rows.get(key), now)
                    values = {"count": number, "last_at": last_at, "locked_until": now + seconds}
                    if key in rows:
                        await tx.execute(update(failures).where(failures.c.key == key).values(**values))
                    else:
                        await tx.execute(insert(failures).values(key=key, **values))
        except (IntegrityError, Aborted):
            continue  # another call counts for the same key
        return [counts[lock.key] for lock in locks]
    raise Aborted("other calls fail for the same name; try again")


def _next(rule: Rule, row: Any, now: int) -> tuple[int, int]:
    """Return the count after one more failure, and the seconds of the lock."""
    before = 0
    if row is not None and row.last_at > now - MAX_COUNT_AGE:
        before = row.count
        if rule.leak:
            before = max(0, before - (now - row.last_at) // rule.leak)
    number = before + 1
    return number, 0 if number < rule.free else min(2 ** min(number - rule.free, 30), rule.max_delay)


def _last_at(rule: Rule, row: Any, now: int) -> int:
    """Return the time of the failure to store; the part of ``leak`` that has passed counts for the next one."""
    if not rule.leak or row is None or (now - row.last_at) // rule.leak >= row.count:
        return now
    return now - (now - int(row.last_at)) % rule.leak


async def clear(tx: Transaction, locks: Sequence[Lock]) -> None:
    """Forget the failures in a row."""
    keys = sorted(lock.key for lock in locks if lock.rule.in_a_row)
    await tx.execute(select(failures.c.key).where(failures.c.key.in_(keys)).order_by(failures.c.key).with_for_update())
    await tx.execute(delete(failures).where(failures.c.key.in_(keys)))


async def purge(tx: Transaction, now: int) -> None:
    """Delete the counts that have no effect any more."""
    await tx.execute(delete(failures).where(failures.c.last_at <= now - MAX_COUNT_AGE))

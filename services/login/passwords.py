"""Password hashes by Argon2id, computed outside the event loop, a limited number at a time.

One hash takes a core for tens of milliseconds, so a flood of logins is the cheapest attack on the service. Calls tell
the mesh how long they wait for a thread, and it refuses logins while that is too long (docs/operations.md, Overload).
A call that would wait until its deadline is refused at once.

Parameters: OWASP Password Storage Cheat Sheet (m = 19 MiB, t = 2, p = 1). Policy: NIST SP 800-63B, section 5.1.1 -
length alone, any character, compared in one Unicode form.
"""

from __future__ import annotations

import asyncio
import base64
import os
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from mesh import InvalidArgument, ResourceExhausted, note_wait

__all__ = ["check", "hashed", "outdated", "verify"]

SHORTEST, LONGEST = 8, 128
"""Limits of a password's length, in characters; the contract registration.v1 has the same."""
LONGEST_RAW = 8 * LONGEST
"""Limit of characters before Unicode normalization, which takes seconds for megabytes."""

_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


class HashPool:
    """Threads for hashes, one for each core, with a queue that is bounded by the deadlines of the calls.

    More hashes at once than cores would only take more memory, 19 MiB each.

    Args:
        threads: Hashes at the same time.
    """

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="argon2")
        self._count = threads
        self._lock = threading.Lock()
        self._pending = 0
        self._average = 0.0

    async def run(self, time_left: float | None, work: Callable[..., Any], *args: Any) -> Any:
        """Run ``work(*args)`` in a thread. A hash that waits is given up with its call.

        Args:
            time_left: Seconds until the call's deadline; None: no deadline.
            work: The function.
            args: Its arguments.

        Raises:
            ResourceExhausted: It would not be made by then.
        """
        with self._lock:
            wait = max(0, self._pending - self._count + 1) * self._average / self._count
            if time_left is not None and wait + self._average > time_left:
                note_wait(wait)
                raise ResourceExhausted("too many passwords are being checked; try again later", retry_after=wait)
            self._pending += 1
        began: list[float] = []
        queued = monotonic()
        future = self._threads.submit(self._timed, began, work, *args)
        future.add_done_callback(self._done)
        try:
            return await asyncio.wrap_future(future)
        finally:
            note_wait((began or [monotonic()])[0] - queued)

    def _timed(self, times: list[float], work: Callable[..., Any], *args: Any) -> Any:
        began = monotonic()
        times.append(began)
        try:
            return work(*args)
        finally:
            with self._lock:
                self._average += (monotonic() - began - self._average) / (8 if self._average else 1)

    def _done(self, _: object) -> None:
        with self._lock:
            self._pending -= 1


_pool = HashPool(os.cpu_count() or 1)


def check(password: str, field: str = "password") -> None:
    """Check the password against the policy.

    Args:
        password: The password.
        field: Its field in the request.

    Raises:
        InvalidArgument: The password is too short or too long.
    """
    if len(password) > LONGEST_RAW or not SHORTEST <= len(_normal(password)) <= LONGEST:
        text = f"must have {SHORTEST} to {LONGEST} characters"
        raise InvalidArgument(f"the password {text}", violations={field: text})


async def hashed(password: str, time_left: float | None) -> str:
    """Return the hash to store.

    Raises:
        ResourceExhausted: It would take longer than ``time_left`` seconds.
    """
    found: str = await _pool.run(time_left, _hasher.hash, _normal(password))
    return found


async def verify(stored: str | None, password: str, time_left: float | None) -> bool:
    """Whether the password belongs to the stored hash; False at the same cost without a hash.

    Raises:
        ResourceExhausted: It would take longer than ``time_left`` seconds.
    """
    if len(password) > LONGEST_RAW:
        stored, password = None, ""
    found: bool = await _pool.run(time_left, _verify, stored, _normal(password))
    return found


def outdated(stored: str) -> bool:
    """Whether the hash was made with other parameters than the current ones."""
    return _hasher.check_needs_rehash(stored)


def _verify(stored: str | None, password: str) -> bool:
    try:
        _hasher.verify(_dummy_hash() if stored is None else stored, password)
    except (VerificationError, InvalidHashError):
        return False
    return stored is not None


def _dummy_hash() -> str:
    """Return a hash of no password with the current parameters, for a user who does not exist."""
    salt, digest = (base64.b64encode(os.urandom(size)).rstrip(b"=").decode() for size in (16, 32))
    return f"$argon2id$v=19$m={_hasher.memory_cost},t={_hasher.time_cost},p={_hasher.parallelism}${salt}${digest}"


def _normal(password: str) -> str:
    return unicodedata.normalize("NFKC", password)

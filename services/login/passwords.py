"""Argon2id, off the event loop, a bounded number at a time.

Parameters: OWASP Password Storage Cheat Sheet (m = 19 MiB, t = 2, p = 1). Policy: NIST SP 800-63B, section 5.1.1 -
length alone, any character, compared in one Unicode form.
"""

from __future__ import annotations

import asyncio
import base64
import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from mesh import InvalidArgument

__all__ = ["check", "hashed", "outdated", "verify"]

SHORTEST, LONGEST = 8, 128
"""Characters. registration.v1 says the same in its contract."""
LONGEST_RAW = 8 * LONGEST
"""Characters before they are brought into one form, which takes seconds for megabytes."""

_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_threads = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="argon2")
"""One hash takes a core and 19 MiB for some 40 ms; more at once than there are cores only takes memory."""


def check(password: str) -> None:
    """Check the password against the policy.

    Raises:
        InvalidArgument: It is too short or too long.
    """
    if len(password) > LONGEST_RAW or not SHORTEST <= len(_normal(password)) <= LONGEST:
        text = f"must have {SHORTEST} to {LONGEST} characters"
        raise InvalidArgument(f"the password {text}", violations={"password": text})


async def hashed(password: str) -> str:
    """Return the hash to be stored."""
    return await asyncio.get_running_loop().run_in_executor(_threads, _hasher.hash, _normal(password))


async def verify(stored: str | None, password: str) -> bool:
    """Return whether the password belongs to the stored hash; without one the answer is no, at the same cost."""
    if len(password) > LONGEST_RAW:
        stored, password = None, ""
    return await asyncio.get_running_loop().run_in_executor(_threads, _verify, stored, _normal(password))


def outdated(stored: str) -> bool:
    """Return whether the hash was made with other parameters than today's."""
    return _hasher.check_needs_rehash(stored)


def _verify(stored: str | None, password: str) -> bool:
    try:
        _hasher.verify(_nobody() if stored is None else stored, password)
    except (VerificationError, InvalidHashError):
        return False
    return stored is not None


def _nobody() -> str:
    """Return what stands in for the hash of a user who does not exist: of today's parameters, and of no password."""
    salt, digest = (base64.b64encode(os.urandom(size)).rstrip(b"=").decode() for size in (16, 32))
    return f"$argon2id$v=19$m={_hasher.memory_cost},t={_hasher.time_cost},p={_hasher.parallelism}${salt}${digest}"


def _normal(password: str) -> str:
    return unicodedata.normalize("NFKC", password)

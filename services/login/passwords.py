"""Password hashes by Argon2id, computed outside the event loop, a limited number at a time.

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
"""Limits of a password's length, in characters; the contract registration.v1 has the same."""
LONGEST_RAW = 8 * LONGEST
"""Limit of characters before Unicode normalization, which takes seconds for megabytes."""

_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_threads = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="argon2")
"""One hash takes a core and 19 MiB for some 40 ms. More hashes at once than cores would only take more memory."""


def check(password: str) -> None:
    """Check the password against the policy.

    Raises:
        InvalidArgument: The password is too short or too long.
    """
    if len(password) > LONGEST_RAW or not SHORTEST <= len(_normal(password)) <= LONGEST:
        text = f"must have {SHORTEST} to {LONGEST} characters"
        raise InvalidArgument(f"the password {text}", violations={"password": text})


async def hashed(password: str) -> str:
    """Return the hash to store."""
    return await asyncio.get_running_loop().run_in_executor(_threads, _hasher.hash, _normal(password))


async def verify(stored: str | None, password: str) -> bool:
    """Whether the password belongs to the stored hash; False at the same cost without a hash."""
    if len(password) > LONGEST_RAW:
        stored, password = None, ""
    return await asyncio.get_running_loop().run_in_executor(_threads, _verify, stored, _normal(password))


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

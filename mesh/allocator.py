"""C library's allocator: memory that is free goes back to the operating system.

glibc takes blocks from 128 KiB on from the operating system one by one. But with each one that is freed, that limit
grows up to 32 MiB, and blocks below it come from heaps. Messages of all sizes leave holes there, so that a process that
holds 24 MiB of them takes several times as much, and keeps it. So the limit is fixed, and the holes are given back from
time to time (mallopt(3), malloc_trim(3)). Other C libraries are left alone.
"""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["return_free_memory", "return_large_blocks"]

LARGE_BLOCK_BYTES = 256 * 2**10
"""Bytes of a block that goes back when it is freed. Batches of spans are smaller: to take each one anew costs the calls
half a page fault each."""
TRIM_BYTES = 2**21
"""Free bytes at the end of the heap from which on they are returned."""
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def return_large_blocks() -> None:
    """Let large blocks go back when they are freed, from now on."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)  # threads that hold Python's lock need no heaps of their own
        mallopt(_M_TRIM_THRESHOLD, TRIM_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def return_free_memory() -> None:
    """Give back the free pages of all heaps. It takes some milliseconds."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)

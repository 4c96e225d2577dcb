"""The memory that a worker writes to while it starts: noted by one, copied ahead by the next.

A fork shares all memory until someone writes to it; then the page is copied, which takes a virtual machine five
microseconds, and a start writes to some thousand pages (objects count their references in themselves). Workers of one
fork server have the same things at the same addresses, so what one has written to, the next one will.

Only addresses are noted, never content. Where the kernel cannot (it needs Linux 5.14), nothing is noted or copied: it
is a matter of speed alone.

Source: D. Ustiugov et al., "Benchmarking, Analysis, and Optimization of Serverless Function Snapshots" (ASPLOS 2021),
section 5: record the working set of the first start, prefetch it for the others.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
from array import array
from pathlib import Path

__all__ = ["copy_ahead", "note"]

MOST = 8192
"""Pages that are noted at most: what a spare may cost, 32 MiB."""
LARGEST = 2**30
"""Bytes of a mapping beyond which it is left out: libraries reserve such for later, and looking takes time."""
_PAGE = mmap.PAGESIZE
_POPULATE_WRITE = 23
"""``MADV_POPULATE_WRITE`` (madvise(2)): copies a page as a write would, and changes nothing in it."""
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw.p ", re.MULTILINE)
_OWN, _KIND = 1 << 63 | 1 << 56, 1 << 63 | 1 << 61 | 1 << 56
"""Bits of an entry of ``/proc/PID/pagemap``: present and mapped by nobody else; the same, and that it is of a file."""
_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)


def note(file: int) -> None:
    """Write down which pages this process has written to since it was forked.

    Args:
        file: The descriptor of a file; what was in it is replaced.
    """
    with contextlib.suppress(OSError):
        ranges = _written()
        if 0 < sum(ranges[1::2]) <= MOST:
            os.ftruncate(file, 0)
            os.pwrite(file, ranges.tobytes(), 0)


def copy_ahead(file: int) -> None:
    """Copy the pages that another process has noted, as far as this one has them."""
    ranges = array("Q")
    with contextlib.suppress(OSError):
        ranges.frombytes(os.pread(file, MOST * 16, 0))
    for start, count in zip(ranges[::2], ranges[1::2], strict=True):
        _madvise(start, count * _PAGE, _POPULATE_WRITE)  # what is no memory here is refused, and left out


def _written() -> array[int]:
    """Return the address and the number of pages of each piece, one after the other."""
    found = array("Q")
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for begin, end in _MAPPING.findall(Path("/proc/self/maps").read_text()):
            start = int(begin, 16)
            size = int(end, 16) - start
            if size > LARGEST:
                continue
            entries = array("Q")
            entries.frombytes(os.pread(pagemap.fileno(), size // _PAGE * 8, start // _PAGE * 8))
            after = -1
            for index, entry in enumerate(entries):
                if entry & _KIND != _OWN:
                    continue
                if index == after:
                    found[-1] += 1
                else:
                    found.extend((start + index * _PAGE, 1))
                after = index + 1
    return found

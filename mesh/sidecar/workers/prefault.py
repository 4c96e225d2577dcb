"""Copy-on-write prefaulting: records the dirtied pages of one start and pre-faults them in the next fork.

A fork shares all memory until a process writes to it; then the page is copied, which takes a virtual machine five
microseconds. A start writes to some thousand pages, because objects hold their own reference counts. Workers of one
fork server have the same objects at the same addresses, so the next worker writes to the same pages.

Only addresses are recorded, never content. Before Linux 5.14 nothing is recorded or copied: only speed depends on it.

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

__all__ = ["prefault", "record"]

MAX_PAGES = 8192
"""Pages that are recorded at most: 32 MiB, which is the most that a spare process may cost."""
MAX_MAPPING_SIZE = 2**30
"""Bytes of a mapping beyond which it is skipped: libraries reserve such ranges for later, and reading them is slow."""
_PAGE_SIZE = mmap.PAGESIZE
_POPULATE_WRITE = 23
"""``MADV_POPULATE_WRITE`` (madvise(2)): copies a page as a write would, and changes nothing in it."""
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw.p ", re.MULTILINE)
_PRIVATE, _PRIVATE_MASK = 1 << 63 | 1 << 56, 1 << 63 | 1 << 61 | 1 << 56
"""Bits of an element of ``/proc/PID/pagemap``: present (63), mapped exclusively (56), of a file (61, must be 0)."""
_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)


def record(file: int) -> None:
    """Write down which pages this process has written to since it was forked.

    Args:
        file: The descriptor of a file; its content is replaced.
    """
    with contextlib.suppress(OSError):
        ranges = _dirty_ranges()
        if 0 < sum(ranges[1::2]) <= MAX_PAGES:
            os.ftruncate(file, 0)
            os.pwrite(file, ranges.tobytes(), 0)


def prefault(file: int) -> None:
    """Copy the pages that another process has recorded, as far as this process has them."""
    ranges = array("Q")
    with contextlib.suppress(OSError):
        ranges.frombytes(os.pread(file, MAX_PAGES * 16, 0))
    for start, count in zip(ranges[::2], ranges[1::2], strict=True):
        _madvise(start, count * _PAGE_SIZE, _POPULATE_WRITE)  # the kernel refuses what is not mapped here


def _dirty_ranges() -> array[int]:
    """Return address and number of pages of each range, one range after the other."""
    found = array("Q")
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for begin, end in _MAPPING.findall(Path("/proc/self/maps").read_text()):
            start = int(begin, 16)
            size = int(end, 16) - start
            if size > MAX_MAPPING_SIZE:
                continue
            bits = array("Q")
            bits.frombytes(os.pread(pagemap.fileno(), size // _PAGE_SIZE * 8, start // _PAGE_SIZE * 8))
            after = -1
            for index, page in enumerate(bits):
                if page & _PRIVATE_MASK != _PRIVATE:
                    continue
                if index == after:
                    found[-1] += 1
                else:
                    found.extend((start + index * _PAGE_SIZE, 1))
                after = index + 1
    return found

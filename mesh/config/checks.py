"""Checks of values that several tables of mesh.toml have: limits, paths and addresses. Each yields faults."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import msgspec

from mesh.address import ANY, split
from mesh.faults import Fault

__all__ = ["address_faults", "bound_faults", "buffer_bytes", "path_faults", "stall_faults", "target_faults"]

DEFAULT_BUFFERS_BYTES = 24 * 2**20
"""Bytes of ``buffers`` that are held by default: the process stays below 256 MiB with them."""
MIN_STALL_SECONDS = 1.0
"""Shortest ``stall``. A lost packet delays a connection by as much."""


def bound_faults(config: msgspec.Struct, table: str, *sizes: str) -> Iterator[Fault]:
    """Check the limits that would refuse every call: ``concurrency``, ``queue`` and the keys ``sizes``."""
    for name, least in (("concurrency", 1), ("queue", 0), *((name, 1) for name in sizes)):
        value = int(getattr(config, name))
        if value < least:
            yield Fault(f"{table} {name}", f"must be at least {least}, not {value}")


def buffer_bytes(buffers: int | None, largest: int) -> int:
    """Return the bytes of ``buffers``, by default for at least a request and a response of the ``largest`` size."""
    return max(DEFAULT_BUFFERS_BYTES, 2 * largest) if buffers is None else int(buffers)


def stall_faults(stall: float, table: str) -> Iterator[Fault]:
    """Check ``stall``."""
    if stall < MIN_STALL_SECONDS:
        yield Fault(f"{table} stall", f"must be at least {MIN_STALL_SECONDS:g} s: shorter pauses are usual in networks")


def path_faults(place: str, text: str) -> Iterator[Fault]:
    """Check that the file system encoding, which the locale decides, can encode a path."""
    try:
        name = os.fsencode(text)
    except UnicodeEncodeError as error:
        lacking, encoding = error.object[error.start], sys.getfilesystemencoding()
        yield Fault(place, f"the locale encodes file names in {encoding}, which lacks {lacking!r}; set PYTHONUTF8=1")
    else:
        if b"\0" in name:
            yield Fault(place, f"a path cannot contain NUL, as {text!r} does")


def address_faults(place: str, text: str) -> Iterator[Fault]:
    """Check an address that is listened at."""
    try:
        split(text)
    except ValueError as error:
        yield Fault(place, str(error))


def target_faults(place: str, text: str) -> Iterator[Fault]:
    """Check an address that clients connect to."""
    faults = list(address_faults(place, text))
    yield from faults
    if faults:
        return
    host, port = split(text)
    if host == ANY:
        yield Fault(place, f"{text!r} is an address to listen at, not to connect to; name a host")
    elif not port:
        yield Fault(place, f"{text!r} is an address to listen at, not to connect to; name the port")

"""What ``workers`` of mesh.toml says about the processes that run a service's functions: typed, and checked."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from mesh.config.values import Duration, Size
from mesh.faults import Fault

__all__ = ["WorkersConfig", "workers_faults"]

SMALLEST = 64 * 2**20
"""Bytes: an interpreter with a service's imports already takes most of that."""


class WorkersConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``workers`` of ``[services.NAME]``: its functions run in processes of their own, as many as there is work for.

    Attributes:
        min: Workers that stay when there is nothing to do.
        max: Workers at most.
        concurrency: Calls that one worker answers at once.
        idle: How long there must have been no call before the last worker leaves.
        memory: Resident memory of one worker; one that takes more is replaced, and its calls fail.
        max_requests: Calls after which a worker is replaced, once those that it still answers have ended; 0: never.
        timeout: The longest that a call may take when its method says nothing.
    """

    min: int = 0
    max: int = 4
    concurrency: int = 16
    idle: Duration = Duration(60)
    memory: Size = Size(256 * 10**6)
    max_requests: int = 0
    timeout: Duration = Duration(30)


def workers_faults(workers: WorkersConfig, place: str) -> Iterator[Fault]:
    """Check that the numbers can be meant together."""
    if workers.min < 0:
        yield Fault(f"{place}.min", f"must be at least 0, not {workers.min}")
    if workers.max < 1:
        yield Fault(
            f"{place}.max",
            f"must be at least 1, not {workers.max}; without workers the functions run in the sidecar's own process",
        )
    elif workers.min > workers.max:
        yield Fault(f"{place}.min", f"is {workers.min}, more than max, which is {workers.max}")
    if workers.concurrency < 1:
        yield Fault(f"{place}.concurrency", f"must be at least 1, not {workers.concurrency}")
    if workers.memory < SMALLEST:
        yield Fault(
            f"{place}.memory",
            f"{int(workers.memory)} bytes are less than a worker needs before its first call; give it 64MiB or more",
        )
    if workers.max_requests < 0:
        yield Fault(f"{place}.max_requests", f"must be 0 (never) or more, not {workers.max_requests}")
    if workers.timeout <= 0:
        yield Fault(
            f"{place}.timeout", "must be longer than 0 s; a method without a limit says no_time_limit in the contract"
        )

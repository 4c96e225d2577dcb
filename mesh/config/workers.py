"""Table ``workers`` of a service: the processes that run its functions."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from mesh.config.values import Duration, Size
from mesh.faults import Fault

__all__ = ["WorkersConfig", "workers_faults"]

MIN_MEMORY_BYTES = 64 * 2**20
"""An interpreter with the imports of a service already needs most of that."""


class WorkersConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``workers`` of ``[services.NAME]``: worker processes of the service, scaled by demand.

    Attributes:
        min: Workers at least, also without calls.
        max: Workers at most.
        concurrency: Calls in progress at most in one worker.
        idle: Time without calls after which the last worker ends.
        memory: Limit of a worker's resident memory. A worker above it is replaced, and its calls fail.
        max_requests: Calls after which a worker is replaced. Its calls in progress finish first. 0: never.
        timeout: Timeout of a call whose method declares none.
    """

    min: int = 0
    max: int = 4
    concurrency: int = 16
    idle: Duration = Duration(60)
    memory: Size = Size(256 * 10**6)
    max_requests: int = 0
    timeout: Duration = Duration(30)


def workers_faults(workers: WorkersConfig, place: str) -> Iterator[Fault]:
    """Check the values and their combination."""
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
    if workers.memory < MIN_MEMORY_BYTES:
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

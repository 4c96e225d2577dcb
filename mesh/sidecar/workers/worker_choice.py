"""Worker choice: the worker with the most free permits, of those that may run the call. A pure decision.

Calls of methods with different health (``mesh.sidecar.workers.method_health``) are kept in different workers, as far as
there may be several workers. A method that kills its worker then costs only calls of methods with the same health.

- **Suspects** never share a worker with others. They may hold all workers but two (but one, if there are only two).
  They wait for each other rather than take the last ones.
- **New** and proven methods share a worker only after a call has waited for one of its own.
- While calls of several kinds of health are in progress, each kind fills the workers that it has before it takes an
  idle one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from mesh.sidecar.workers.method_health import MethodHealth

__all__ = ["choose"]

_WORKERS_LEFT_BY_SUSPECTS = 2
"""Workers that suspects leave to other methods, if ``max`` allows more."""


class _Candidate(Protocol):
    """The properties of a worker that decide."""

    @property
    def free_permits(self) -> int:
        """Calls that it can take now."""

    @property
    def busy(self) -> int:
        """Calls that it has."""

    @property
    def unanswered_pings(self) -> int:
        """More than 0 while its event loop seems to be blocked."""

    @property
    def health(self) -> MethodHealth:
        """The worst health of the methods whose calls it has."""


WorkerT = TypeVar("WorkerT", bound=_Candidate)


def choose(workers: Sequence[WorkerT], health: MethodHealth, *, max_workers: int, mixed: bool) -> WorkerT | None:
    """Return the worker that takes a call, or None if the call has to wait.

    Args:
        workers: Those that take calls.
        health: Health of the call's method.
        max_workers: ``workers.max``.
        mixed: Whether new methods may share a worker with proven ones now.
    """
    suspects = sum(1 for worker in workers if worker.busy and worker.health is MethodHealth.SUSPECT)
    full = suspects >= max(1, max_workers - _WORKERS_LEFT_BY_SUSPECTS)
    best: WorkerT | None = None
    rank = (-1, 0)
    for worker in workers:
        permits = worker.free_permits
        if permits <= 0:
            continue
        if max_workers == 1 or (worker.health is health and worker.busy):
            fit = 3
        elif not worker.busy:
            if health is MethodHealth.SUSPECT and full:
                continue
            fit = 2
        elif not mixed or MethodHealth.SUSPECT in (health, worker.health):
            continue
        else:
            fit = 1
        if worker.unanswered_pings:
            fit = 0
        if (fit, permits) > rank:
            best, rank = worker, (fit, permits)
    return best

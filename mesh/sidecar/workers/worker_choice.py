"""Which worker takes a call: the one with the most room, of those that may have it. A pure decision.

Calls of different standing (``mesh.sidecar.workers.method_health``) are kept in different workers as far as there may
be several: a method that ends its worker then costs only calls of its own kind.

- **Suspects** are never beside others. They may hold all workers but two, or but one where there are only two: they
  wait for each other rather than take the last.
- **New** methods and proven ones are beside each other only after they have waited for a worker of their own.
- While there are calls of several standings, each fills the workers that it has before it takes an idle one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from mesh.sidecar.workers.method_health import Standing

__all__ = ["choose"]

_FREE = 2
"""Workers that suspects leave to the others, where there may be more."""


class _Worker(Protocol):
    """What is looked at."""

    @property
    def room(self) -> int:
        """Calls that it can take now."""

    @property
    def busy(self) -> int:
        """Calls that it has."""

    @property
    def silent(self) -> int:
        """More than 0 while its loop seems to stand still."""

    @property
    def standing(self) -> Standing:
        """The worst of its calls."""


WorkerT = TypeVar("WorkerT", bound=_Worker)


def choose(workers: Sequence[WorkerT], standing: Standing, *, most: int, mix: bool) -> WorkerT | None:
    """Return the worker that takes a call, or None if it has to wait.

    Args:
        workers: Those that take calls.
        standing: What the call's method is taken for.
        most: Workers that there may be.
        mix: Whether new methods may be beside proven ones now.
    """
    suspects = sum(1 for worker in workers if worker.busy and worker.standing is Standing.SUSPECT)
    full = suspects >= max(1, most - _FREE)
    best: WorkerT | None = None
    rank = (-1, 0)
    for worker in workers:
        room = worker.room
        if room <= 0:
            continue
        if most == 1 or (worker.standing is standing and worker.busy):
            fit = 3
        elif not worker.busy:
            if standing is Standing.SUSPECT and full:
                continue
            fit = 2
        elif not mix or Standing.SUSPECT in (standing, worker.standing):
            continue
        else:
            fit = 1
        if worker.silent:
            fit = 0
        if (fit, room) > rank:
            best, rank = worker, (fit, room)
    return best

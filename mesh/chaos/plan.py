"""What ``mesh chaos`` strikes, when, in which order of preference: all of it from a seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "BROKER",
    "DATABASE",
    "EDGE",
    "KINDS",
    "POSTGRESQL",
    "WORKERS",
    "Strike",
    "kills",
    "lasting",
    "pick",
    "strikes",
    "targets",
]

EDGE, BROKER, POSTGRESQL = "edge", "broker", "postgresql"
WORKERS, DATABASE = "workers", "database"
"""Of a service: ``login workers``, ``login database`` (a SQLite file)."""
KINDS = (EDGE, "services", WORKERS, BROKER, "databases")
"""What can be asked for besides the names of services."""

_YOUNGEST, _OLDEST = 0.1, 2.0
"""Seconds that a victim has lived at least: most have done something."""
_EARLY = 0.25
"""Share of the strikes that come at any time; were it all of them, a slow machine would never get to work."""
_BRIEF, _LONG = 0.2, 4.0
"""Seconds that a database is held, or away."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One blow.

    Attributes:
        after: Seconds since the one before.
        order: The targets, the preferred first.
        age: Seconds that the victim must have lived.
        lasts: Seconds that it lasts, if it is a database that is struck.
        early: It does not wait for the mesh to work again, and may meet a component that is not ready yet.
        way: Between 0 and 1: in which of several ways, or which of several processes.
    """

    after: float
    order: tuple[str, ...]
    age: float
    lasts: float
    early: bool
    way: float


def targets(
    services: Collection[str],
    *,
    edge: bool,
    workers: Collection[str],
    databases: Collection[str],
    only: Sequence[str],
    postgresql: bool = False,
) -> list[str]:
    """Return what may be struck.

    Args:
        services: All services of mesh.toml.
        edge: There is an edge.
        workers: The services that run their functions in workers.
        databases: Those whose database can be held.
        only: Kinds and names of services; empty: everything.
        postgresql: There is a PostgreSQL that can be stopped.

    Raises:
        ValueError: A word is neither a kind nor a service; or nothing is left.
    """
    unknown = [word for word in only if word not in KINDS and word not in services]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join([*KINDS, *services])}")
    found: list[str] = []
    for kind, names in (
        (EDGE, [EDGE] if edge else []),
        (BROKER, [BROKER]),
        ("services", list(services)),
        (WORKERS, [f"{name} {WORKERS}" for name in workers]),
        ("databases", [f"{name} {DATABASE}" for name in databases]),
        ("databases", [POSTGRESQL] if postgresql else []),
    ):
        found += [name for name in names if not only or kind in only or name in only]
    if not found:
        raise ValueError(f"this mesh has no {', '.join(only)}")
    return found


def strikes(seed: int, rate: float, targets: Sequence[str]) -> Iterator[Strike]:
    """Yield strikes for ever, the same for the same seed.

    Args:
        seed: Any number.
        rate: Strikes a second, on average.
        targets: What may be struck; each is preferred equally often.
    """
    chance = random.Random(seed)  # noqa: S311 - it shall be repeatable
    while True:
        for first in chance.sample(targets, len(targets)):
            others = [name for name in targets if name != first]
            yield Strike(
                after=chance.uniform(0.5, 1.5) / rate,
                order=(first, *chance.sample(others, len(others))),
                age=chance.uniform(_YOUNGEST, _OLDEST),
                lasts=chance.uniform(_BRIEF, _LONG),
                early=chance.random() < _EARLY,
                way=chance.random(),
            )


def kills(struck: Sequence[tuple[float, str]]) -> int:
    """Return how many of the strikes ended a process; a SQLite file is only held.

    Args:
        struck: When, and what.
    """
    return sum(1 for _, target in struck if not target.endswith(f" {DATABASE}"))


def lasting(target: str) -> bool:
    """Return whether a strike at it lasts: a database is held, or stopped and started again."""
    return target == POSTGRESQL or target.endswith(f" {DATABASE}")


def pick(strike: Strike, ages: Mapping[str, float]) -> str | None:
    """Return what is struck: of what has lived long enough the most preferred; None if nothing has.

    A database is struck only when it is preferred to all others: as a substitute it would be held nearly always.

    Args:
        strike: The strike.
        ages: Target → seconds that it has lived; what is not there cannot be struck.
    """
    order = [name for name in strike.order if name == strike.order[0] or not lasting(name)]
    return next((name for name in order if ages.get(name, -1.0) >= strike.age), None)

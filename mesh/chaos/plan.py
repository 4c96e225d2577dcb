"""Fault plan of ``mesh chaos``: targets, times and variants of the faults, derived from a seed. Pure."""

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
    "Injection",
    "injections",
    "is_outage",
    "killed_processes",
    "pick",
    "targets",
]

EDGE, BROKER, POSTGRESQL = "edge", "broker", "postgresql"
WORKERS, DATABASE = "workers", "database"
"""Suffixes of the targets of a service: ``login workers``, ``login database`` (a SQLite file)."""
KINDS = (EDGE, "services", WORKERS, BROKER, "databases")
"""Kinds of targets that ``--kill`` takes besides the names of services."""

_MIN_AGES_SECONDS = (0.1, 2.0)
"""Range of the age that a target must have, in seconds: most targets have done something by then."""
_IMMEDIATE_SHARE = 0.25
"""Share of the faults that come at any time. With a share of 1 a slow machine would never accept a call."""
_OUTAGE_SECONDS = (0.2, 4.0)
"""Range of the duration of a database's outage, in seconds."""


@dataclass(frozen=True, slots=True)
class Injection:
    """One fault to inject.

    Attributes:
        delay: Seconds since the fault before.
        preference: The targets, the preferred one first.
        min_age: Seconds that the target must have lived.
        duration: Seconds of the outage, if the target is a database.
        immediate: Whether it does not wait for the recovery of the mesh; it may then hit a component that still starts.
        variant: Number between 0 and 1 that chooses one of several processes or kinds of outage.
    """

    delay: float
    preference: tuple[str, ...]
    min_age: float
    duration: float
    immediate: bool
    variant: float


def targets(
    services: Collection[str],
    *,
    edge: bool,
    workers: Collection[str],
    databases: Collection[str],
    only: Sequence[str],
    postgresql: bool = False,
) -> list[str]:
    """Return the possible targets.

    Args:
        services: All services of mesh.toml.
        edge: Whether there is an edge.
        workers: The services that run their functions in workers.
        databases: The services whose SQLite file can be locked.
        only: Kinds of targets and names of services; empty: all targets.
        postgresql: Whether there is a PostgreSQL that can be stopped.

    Raises:
        ValueError: A word is neither a kind nor a service, or no target is left.
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


def injections(seed: int, rate: float, targets: Sequence[str]) -> Iterator[Injection]:
    """Yield faults for ever, the same ones for the same seed.

    Args:
        seed: Any number.
        rate: Faults a second, on average.
        targets: The possible targets; each is preferred equally often.
    """
    chance = random.Random(seed)  # noqa: S311 - the plan must be repeatable
    while True:
        for first in chance.sample(targets, len(targets)):
            others = [name for name in targets if name != first]
            yield Injection(
                delay=chance.uniform(0.5, 1.5) / rate,
                preference=(first, *chance.sample(others, len(others))),
                min_age=chance.uniform(*_MIN_AGES_SECONDS),
                duration=chance.uniform(*_OUTAGE_SECONDS),
                immediate=chance.random() < _IMMEDIATE_SHARE,
                variant=chance.random(),
            )


def killed_processes(injected: Sequence[tuple[float, str]]) -> int:
    """Return the number of faults that ended a process; a SQLite file is only locked.

    Args:
        injected: Time and target of each fault.
    """
    return sum(1 for _, target in injected if not target.endswith(f" {DATABASE}"))


def is_outage(target: str) -> bool:
    """Whether a fault at a target has a duration: a database is locked, or stopped and started again."""
    return target == POSTGRESQL or target.endswith(f" {DATABASE}")


def pick(injection: Injection, ages: Mapping[str, float]) -> str | None:
    """Return the most preferred target that has lived long enough, or None.

    A database is chosen only as the first preference. As a substitute it would be locked nearly always.

    Args:
        injection: The fault.
        ages: Target → seconds that it has lived; a target that does not exist is missing.
    """
    first = injection.preference[0]
    order = [name for name in injection.preference if name == first or not is_outage(name)]
    return next((name for name in order if ages.get(name, -1.0) >= injection.min_age), None)

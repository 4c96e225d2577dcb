"""Worker choice: rules for any state of the workers."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from mesh.sidecar.workers.method_health import MethodHealth
from mesh.sidecar.workers.worker_choice import choose

PROVEN, NEW, SUSPECT = MethodHealth


@dataclass
class Fake:
    """A worker as ``choose`` sees it."""

    busy: int
    free_permits: int
    health: MethodHealth = PROVEN
    unanswered_pings: int = 0


def test_the_most_room() -> None:
    workers = [Fake(3, 1), Fake(1, 3), Fake(2, 2)]
    assert choose(workers, PROVEN, max_workers=4, mixed=False) is workers[1]


def test_suspects_share_with_nobody_else() -> None:
    workers = [Fake(1, 9), Fake(8, 2, SUSPECT), Fake(1, 9, NEW)]
    assert choose(workers, SUSPECT, max_workers=4, mixed=False) is workers[1]
    assert choose(workers[::2], SUSPECT, max_workers=4, mixed=True) is None


def test_suspects_leave_workers_to_the_others() -> None:
    workers = [Fake(8, 0, SUSPECT), Fake(0, 8), Fake(0, 8), Fake(0, 8)]
    assert choose(workers, SUSPECT, max_workers=4, mixed=True) in workers[1:]
    workers[1] = Fake(8, 0, SUSPECT)
    assert choose(workers, SUSPECT, max_workers=4, mixed=True) is None


def test_new_ones_and_proven_ones_mix_only_when_nothing_else_is_left() -> None:
    workers = [Fake(1, 9), Fake(9, 1, NEW)]
    assert choose(workers, NEW, max_workers=3, mixed=False) is workers[1]
    assert choose(workers[:1], NEW, max_workers=3, mixed=False) is None
    assert choose(workers[:1], NEW, max_workers=3, mixed=True) is workers[0]
    assert choose(workers[1:], PROVEN, max_workers=3, mixed=False) is None
    assert choose(workers[1:], PROVEN, max_workers=3, mixed=True) is workers[1]


def test_one_that_stands_still_is_the_last_choice() -> None:
    workers = [Fake(1, 9, unanswered_pings=1), Fake(9, 1)]
    assert choose(workers, PROVEN, max_workers=2, mixed=True) is workers[1]
    assert choose(workers[:1], PROVEN, max_workers=2, mixed=True) is workers[0]


def test_a_single_worker_takes_everything() -> None:
    workers = [Fake(1, 9, SUSPECT)]
    assert choose(workers, PROVEN, max_workers=1, mixed=True) is workers[0]


WORKERS = st.lists(st.builds(Fake, st.integers(0, 8), st.integers(0, 8), st.sampled_from(MethodHealth)), max_size=5)


@given(WORKERS, st.sampled_from(MethodHealth), st.integers(2, 8), st.booleans())
def test_nobody_is_ever_beside_a_suspect(
    workers: list[Fake],
    health: MethodHealth,
    most: int,
    mixed: bool,  # noqa: FBT001 - drawn
) -> None:
    found = choose(workers, health, max_workers=max(most, len(workers)), mixed=mixed)
    if found is not None:
        assert found.free_permits > 0
        assert not found.busy or found.health is health or SUSPECT not in (health, found.health)


@given(WORKERS, st.integers(2, 8))
def test_others_wait_only_when_suspects_have_the_room(workers: list[Fake], most: int) -> None:
    """Once methods may mix, a call of no suspect takes any permit that suspects leave free."""
    for health in (PROVEN, NEW):
        free = [one for one in workers if one.free_permits and not (one.busy and one.health is SUSPECT)]
        assert (choose(workers, health, max_workers=max(most, len(workers)), mixed=True) is not None) == bool(free)

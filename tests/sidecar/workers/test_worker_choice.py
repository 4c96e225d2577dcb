"""Which worker takes a call: rules that hold whatever the workers have."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from mesh.sidecar.workers.method_health import Standing
from mesh.sidecar.workers.worker_choice import choose

PROVEN, NEW, SUSPECT = Standing


@dataclass
class Fake:
    """What is looked at of a worker."""

    busy: int
    room: int
    standing: Standing = PROVEN
    silent: int = 0


def test_the_most_room() -> None:
    workers = [Fake(3, 1), Fake(1, 3), Fake(2, 2)]
    assert choose(workers, PROVEN, most=4, mix=False) is workers[1]


def test_suspects_share_with_nobody_else() -> None:
    workers = [Fake(1, 9), Fake(8, 2, SUSPECT), Fake(1, 9, NEW)]
    assert choose(workers, SUSPECT, most=4, mix=False) is workers[1]
    assert choose(workers[::2], SUSPECT, most=4, mix=True) is None


def test_suspects_leave_workers_to_the_others() -> None:
    workers = [Fake(8, 0, SUSPECT), Fake(0, 8), Fake(0, 8), Fake(0, 8)]
    assert choose(workers, SUSPECT, most=4, mix=True) in workers[1:]
    workers[1] = Fake(8, 0, SUSPECT)
    assert choose(workers, SUSPECT, most=4, mix=True) is None


def test_new_ones_and_proven_ones_mix_only_when_nothing_else_is_left() -> None:
    workers = [Fake(1, 9), Fake(9, 1, NEW)]
    assert choose(workers, NEW, most=3, mix=False) is workers[1]
    assert choose(workers[:1], NEW, most=3, mix=False) is None
    assert choose(workers[:1], NEW, most=3, mix=True) is workers[0]
    assert choose(workers[1:], PROVEN, most=3, mix=False) is None
    assert choose(workers[1:], PROVEN, most=3, mix=True) is workers[1]


def test_one_that_stands_still_is_the_last_choice() -> None:
    workers = [Fake(1, 9, silent=1), Fake(9, 1)]
    assert choose(workers, PROVEN, most=2, mix=True) is workers[1]
    assert choose(workers[:1], PROVEN, most=2, mix=True) is workers[0]


def test_a_single_worker_takes_everything() -> None:
    workers = [Fake(1, 9, SUSPECT)]
    assert choose(workers, PROVEN, most=1, mix=True) is workers[0]


WORKERS = st.lists(st.builds(Fake, st.integers(0, 8), st.integers(0, 8), st.sampled_from(Standing)), max_size=5)


@given(WORKERS, st.sampled_from(Standing), st.integers(2, 8), st.booleans())
def test_nobody_is_ever_beside_a_suspect(
    workers: list[Fake],
    standing: Standing,
    most: int,
    mix: bool,  # noqa: FBT001 - drawn
) -> None:
    found = choose(workers, standing, most=max(most, len(workers)), mix=mix)
    if found is not None:
        assert found.room > 0
        assert not found.busy or found.standing is standing or SUSPECT not in (standing, found.standing)


@given(WORKERS, st.integers(2, 8))
def test_others_wait_only_when_suspects_have_the_room(workers: list[Fake], most: int) -> None:
    """After a while, a call that is no suspect's takes any room that suspects do not hold."""
    for standing in (PROVEN, NEW):
        free = [one for one in workers if one.room and not (one.busy and one.standing is SUSPECT)]
        assert (choose(workers, standing, most=max(most, len(workers)), mix=True) is not None) == bool(free)

"""Load balancing and backoff with randomness as an argument; resolution of addresses."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.rpc.client.balancer import backoff, pick
from mesh.rpc.client.resolver import Endpoint, is_static, resolve, split

candidates = st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 3)), max_size=6)


def make(loads):
    return [SimpleNamespace(streams=range(load), available_streams=available) for load, available in loads]


@given(candidates, st.randoms(use_true_random=False))
def test_a_pick_has_room_and_there_is_one_if_any_has(loads, chance):
    made = make(loads)
    found = pick(made, chance.randrange)
    if found is None:
        assert all(candidate.available_streams <= 0 for candidate in made)
    else:
        assert found in made
        assert found.available_streams > 0


def test_the_busiest_is_never_picked_while_another_has_room():
    made = make([(5, 1), (9, 1), (1, 1)])
    chance = random.Random(1)  # noqa: S311 - the same in every run
    picks = Counter(made.index(pick(made, chance.randrange)) for _ in range(1000))
    assert picks[1] == 0
    assert picks[2] > picks[0] > 0


@given(st.integers(1, 200), st.floats(0, 1))
def test_backoff_grows_to_its_cap(failures, chance):
    wait = backoff(failures, chance, base=0.1, cap=5)
    assert 0.079 < wait < 6.001
    assert backoff(failures, 0.5, base=0.1, cap=5) <= backoff(failures + 1, 0.5, base=0.1, cap=5)
    assert backoff(200, 0.5, base=0.1, cap=5) == 5


@pytest.mark.parametrize(
    ("address", "parts"),
    [("localhost:80", ("localhost", 80)), ("10.0.0.1:1", ("10.0.0.1", 1)), ("[::1]:65535", ("::1", 65535))],
)
def test_addresses(address, parts):
    assert split(address) == parts


@pytest.mark.parametrize(
    "address", ["", "localhost", ":80", "::1:80", "host:", "host:0", "host:65536", "host:x", "h:²"]
)
def test_addresses_that_are_none(address):
    with pytest.raises(ValueError, match=r"host:port|within"):
        split(address)


def test_static():
    assert is_static("127.0.0.1:1")
    assert is_static("[::1]:1")
    assert not is_static("localhost:1")


async def test_resolving():
    found, trouble = await resolve(["127.0.0.1:1", "[::1]:2", "localhost:3", "no-such-name.invalid:4"])
    assert Endpoint("127.0.0.1", 1, "127.0.0.1:1") in found
    assert Endpoint("::1", 2, "[::1]:2") in found
    assert Endpoint("127.0.0.1", 3, "localhost:3") in found
    assert "no-such-name.invalid:4" in trouble
    assert str(Endpoint("::1", 2, "[::1]:2")) == "[::1]:2"
    assert str(Endpoint("127.0.0.1", 3, "localhost:3")) == "localhost:3 (127.0.0.1:3)"

"""Fair budget: a pure structure, held by its invariants under random use and by examples of who gives back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.rpc.server.clients.budget import FairBudget, Holding


class Request:
    """An owner that ends when it is displaced."""

    def __init__(self, budget: FairBudget, client: str, connection: int) -> None:
        self.budget = budget
        self.displaceable = True
        self.displaced = 0
        self.holding = Holding(client, connection, self)

    def displace(self) -> None:
        assert self.displaceable
        assert self.holding.amount == 0
        self.displaced += 1

    def add(self, amount: int) -> bool:
        return self.budget.add(self.holding, amount)


def test_one_client_may_use_all_and_no_more():
    budget = FairBudget(10)
    requests = [Request(budget, "a", number) for number in range(11)]
    assert [one.add(1) for one in requests] == [True] * 10 + [False]
    assert budget.used == 10


def test_another_client_takes_from_the_one_that_holds_most():
    budget = FairBudget(10)
    flood = [Request(budget, "a", 1) for _ in range(10)]
    for one in flood:
        one.add(1)
    others = [Request(budget, "b", 2) for _ in range(6)]
    assert [one.add(1) for one in others] == [True] * 5 + [False]
    assert [one.displaced for one in flood] == [0] * 5 + [1] * 5  # the newest first


def test_of_one_client_the_connection_that_holds_most_gives_back():
    budget = FairBudget(4)
    flood = [Request(budget, "proxy", 1) for _ in range(4)]
    for one in flood:
        one.add(1)
    assert Request(budget, "proxy", 2).add(1)
    assert [one.displaced for one in flood] == [0, 0, 0, 1]


def test_requests_of_one_client_that_are_as_large_do_not_displace_each_other():
    budget = FairBudget(100)
    held = [Request(budget, "a", number) for number in range(4)]
    for one in held:
        one.add(25)
    assert not Request(budget, "a", 5).add(24)
    assert not any(one.displaced for one in held)


def test_the_largest_holding_of_the_largest_client_gives_back():
    budget = FairBudget(100)
    small, large = Request(budget, "a", 1), Request(budget, "a", 1)
    small.add(10)
    large.add(80)
    assert Request(budget, "b", 2).add(20)
    assert (small.displaced, large.displaced, budget.used) == (0, 1, 30)


def test_what_is_worked_on_stays():
    budget = FairBudget(10)
    working = Request(budget, "a", 1)
    working.add(10)
    working.displaceable = False
    other = Request(budget, "b", 2)
    assert not other.add(1)
    assert (working.holding.amount, other.holding.amount, budget.used) == (10, 0, 10)


def test_a_released_holding_can_be_used_again():
    budget = FairBudget(10)
    one = Request(budget, "a", 1)
    one.add(7)
    budget.release(one.holding)
    budget.release(one.holding)
    assert budget.used == 0
    assert one.add(10)


@given(
    st.integers(1, 30),
    st.lists(
        st.tuples(st.sampled_from(["add", "add", "release", "work", "wait"]), st.integers(0, 7), st.integers(1, 12)),
        max_size=80,
    ),
)
def test_the_sum_is_right_and_within_the_limit(limit, steps):
    budget = FairBudget(limit)
    requests = [Request(budget, "abc"[number % 3], number % 4) for number in range(8)]
    for step, number, amount in steps:
        one = requests[number]
        match step:
            case "add":
                before = one.holding.amount
                held = one.add(amount)
                assert one.holding.amount == (before + amount if held else 0)
            case "release":
                budget.release(one.holding)
            case _:
                one.displaceable = step == "wait"
        assert budget.used == sum(each.holding.amount for each in requests) <= limit
    for one in requests:
        budget.release(one.holding)
    assert (budget.used, budget._clients) == (0, {})


@given(st.integers(2, 20), st.integers(1, 60))
def test_a_client_within_its_share_is_never_refused(limit, flood):
    """Whatever one client holds, another gets up to half of the budget."""
    budget = FairBudget(limit)
    for number in range(flood):
        Request(budget, "a", number).add(1)
    assert all(Request(budget, "b", -number).add(1) for number in range(limit // 2))

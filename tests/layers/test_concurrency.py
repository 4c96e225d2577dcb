"""Concurrency limit: no permit is lost and no call is forgotten, whatever ends a call."""

from __future__ import annotations

import asyncio
import inspect
from math import inf
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from limit_model import LimitModel, method

from mesh.call import Call, Metadata
from mesh.errors import ResourceExhausted
from mesh.layers import concurrency

TestModel = LimitModel.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40)

MUTANTS = {
    "the permit of a call that was admitted and cancelled in one turn is lost": (
        "if not queue.remove(waiter) and waiter.admitted:",
        "if not queue.remove(waiter) and False:",
    ),
    "such a permit is released and not passed on": (
        "                queue.leave(shares)\n                self._admit()\n            waiter.note_wait()",
        "                queue.leave(shares)\n            waiter.note_wait()",
    ),
    "a cancelled call releases a permit that it does not hold": (
        "if not queue.remove(waiter) and waiter.admitted:",
        "if not queue.remove(waiter):",
    ),
    "a cancelled call stays in the queue": (
        "if not queue.remove(waiter) and waiter.admitted:",
        "if waiter.admitted:",
    ),
    "a permit is released twice": (
        "            queue.leave(shares)\n            if self.adaptive",
        "            queue.leave(shares)\n            queue.leave(shares)\n            if self.adaptive",
    ),
    "a released permit is not passed on": ("            if queue.waiting:\n", "            if False:\n"),
    "a call waits past its deadline": ("if not self.load.waits(self):", "if True:"),
    "a call past its deadline stays in the queue": (
        "            self.load.forget(self)\n            self.refuse(_late())",
        "            self.refuse(_late())",
    ),
    "a displaced call is not told": ("if displaced is not None:", "if False:"),
    "a higher limit admits nobody": ("self._queue.limit = limit\n        self._admit()", "self._queue.limit = limit"),
    "a refused call keeps running": ("        if error is not None:\n            raise error", ""),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_model_finds_each_mistake(mutant: str) -> None:
    """A model that never fails proves nothing."""
    before, after = MUTANTS[mutant]
    source = inspect.getsource(concurrency)
    assert source.count(before) == 1
    module = ModuleType("mutant")
    exec(compile(source.replace(before, after), mutant, "exec"), module.__dict__)  # noqa: S102

    class Mutated(LimitModel):
        limit_class: type[Any] = module.ConcurrencyLimit

    quick = settings(
        max_examples=1000, stateful_step_count=30, derandomize=True, database=None, phases=[Phase.generate],
        report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    with pytest.raises((AssertionError, KeyError, BaseExceptionGroup)):
        run_state_machine_as_test(Mutated, settings=quick)


class Delivery(Call):
    """A call that delivers an event."""

    delivery = "event"


class TestAdaptive:
    """Calls of an overloaded method: how long they wait, and which of them."""

    @staticmethod
    async def overloaded(limit: concurrency.ConcurrencyLimit, call: Any) -> tuple[asyncio.Event, asyncio.Task[None]]:
        """Let a call hold the one permit, and make the method count as overloaded."""
        go = asyncio.Event()

        async def function(_: Any) -> None:
            await go.wait()

        task = asyncio.ensure_future(limit(call, function))
        await asyncio.sleep(0)
        delay, now = limit._loads[call.method.path].delay, asyncio.get_running_loop().time()
        for tenth in range(21):
            delay.waited(1.0, inf, now - 2 + tenth / 10)
        assert delay.overloaded(now)
        return go, task

    async def test_a_call_waits_for_the_target_at_most_and_is_told_when_to_come_again(self) -> None:
        limit = concurrency.ConcurrencyLimit(1, 10, adaptive=True)
        go, task = await self.overloaded(limit, Call(method("/t.v1.S/Do"), Metadata()))
        with pytest.raises(ResourceExhausted, match="1 calls of this method are in progress") as refused:
            await asyncio.wait_for(limit(Call(method("/t.v1.S/Do"), Metadata()), nothing), 10)
        assert refused.value.details
        go.set()
        await task
        assert (limit.in_flight, limit.waiting) == (0, 0)

    async def test_the_newest_call_goes_first(self) -> None:
        limit = concurrency.ConcurrencyLimit(1, 10, adaptive=True)
        go, task = await self.overloaded(limit, Call(method("/t.v1.S/Do"), Metadata()))
        served: list[int] = []

        async def function(call: Any) -> None:
            served.append(call.deadline)

        calls = [Call(method("/t.v1.S/Do"), Metadata(), asyncio.get_running_loop().time() + wait) for wait in (50, 60)]
        waiting = [asyncio.ensure_future(limit(call, function)) for call in calls]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(task, *waiting)
        assert served == [calls[1].deadline, calls[0].deadline]

    async def test_a_delivery_waits_for_its_permit(self) -> None:
        limit = concurrency.ConcurrencyLimit(1, 10, adaptive=True)
        go, task = await self.overloaded(limit, Call(method("/t.v1.S/Do"), Metadata()))
        delivery = Delivery(method("/t.v1.S/Do"), Metadata())
        waiting = asyncio.ensure_future(limit(delivery, nothing))
        with pytest.raises(ResourceExhausted):
            await asyncio.wait_for(limit(Call(method("/t.v1.S/Do"), Metadata()), nothing), 10)
        assert not waiting.done()
        go.set()
        await asyncio.gather(task, waiting)

    @pytest.mark.parametrize("option", ["client_streaming", "server_streaming", "no_time_limit"])
    async def test_calls_that_may_take_long_are_not_measured(self, option: str) -> None:
        limit = concurrency.ConcurrencyLimit(1, 10, adaptive=True)
        await limit(Call(method("/t.v1.S/Do", **{option: True}), Metadata()), nothing)
        assert not limit._loads["/t.v1.S/Do"].measured


async def nothing(_: Any) -> None:
    """Return at once."""

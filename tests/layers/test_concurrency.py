"""Concurrency limit: no permit is lost and no call is forgotten, whatever ends a call."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from limit_model import LimitModel

from mesh.layers import concurrency

TestModel = LimitModel.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40)

MUTANTS = {
    "the permit of a call that was admitted and cancelled in one turn is lost": (
        "if not queue.remove(waiter) and waiter.admitted:",
        "if not queue.remove(waiter) and False:",
    ),
    "such a permit is released and not passed on": (
        "                queue.leave(shares)\n                self._admit()\n            raise",
        "                queue.leave(shares)\n            raise",
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
    "a call waits past its deadline": ("if self.load.forget(self):", "if False:"),
    "a call past its deadline stays in the queue": (
        "if self.load.forget(self):",
        "if self in self.load.share.waiting:",
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

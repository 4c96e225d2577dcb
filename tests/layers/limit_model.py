"""Model of the concurrency limit: any order of arrivals, ends, cancellations and deadlines, also within one turn.

The event loop is real and turns only when the model says so, and its clock is the model's. So the model reaches every
interleaving: cancelled in the turn of admission, a deadline in the turn of a release, refused and cancelled at once.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mesh.call import Call, Metadata, chain
from mesh.errors import DeadlineExceeded, ResourceExhausted
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.layers.deadline import deadline
from mesh.layers.timer_wheel import SLOT_SECONDS

START = 1e9  # later than the real clock, which only rejects deadlines that have passed


def method(path: str, **options: Any) -> SimpleNamespace:
    """Return what the layers read of a method."""
    unary = {"client_streaming": False, "server_streaming": False, "no_time_limit": False, "timeout": None}
    return SimpleNamespace(path=path, **unary | options)


class _Loop(asyncio.SelectorEventLoop):
    """Event loop whose clock stands still until it is moved."""

    now = START

    def time(self) -> float:
        return self.now

    def turn(self) -> None:
        self.call_soon(self.stop)
        self.run_forever()

    def settle(self) -> None:
        """Turn until nothing is ready, and no timer due."""
        self.turn()
        self.turn()
        while self._ready:  # type: ignore[attr-defined]
            self.turn()


class _Tried(Call):
    """A call of the model."""

    __slots__ = ("go", "keys", "ran", "running")

    def __init__(self, loop: _Loop, keys: tuple[str | None, ...], until: float | None) -> None:
        super().__init__(method(str(keys[0])), Metadata(), until)
        self.keys = keys[1:]
        self.go = loop.create_future()
        self.ran = self.running = False


async def _function(call: Any) -> None:
    call.ran = call.running = True
    try:
        await call.go
    finally:
        call.running = False


class LimitModel(RuleBasedStateMachine):
    """Calls of a ``ConcurrencyLimit``, compared with what runs."""

    limit_class: type[Any] = ConcurrencyLimit

    @initialize(limit=st.integers(0, 4), queue=st.integers(0, 6), adaptive=st.booleans())
    def begin(self, limit: int, queue: int, adaptive: bool) -> None:  # noqa: FBT001
        self.loop = _Loop()
        self.bugs: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.bugs.append(context))
        self.limit = self.limit_class(limit, queue, lambda call: call.keys, adaptive=adaptive)
        self.highest = limit
        self.calls: list[tuple[_Tried, asyncio.Task[None]]] = []

    def _alive(self) -> list[tuple[_Tried, asyncio.Task[None]]]:
        return [(call, task) for call, task in self.calls if not task.done()]

    @rule(
        keys=st.tuples(st.sampled_from("mn"), st.sampled_from(["a", "b", None]), st.sampled_from("xyz")),
        after=st.sampled_from([None, 1, 2, 3]),
        enforced=st.booleans(),
        count=st.integers(1, 3),
    )
    def arrive(self, keys: tuple[str | None, ...], after: int | None, enforced: bool, count: int) -> None:  # noqa: FBT001
        for _ in range(count):
            call = _Tried(self.loop, keys, None if after is None else self.loop.now + after)
            handler = chain(*((deadline,) if enforced else ()), self.limit, _function)
            self.calls.append((call, self.loop.create_task(handler(call))))

    @rule()
    def turns(self) -> None:
        self.loop.turn()

    @precondition(lambda self: self._alive())
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        call, _ = data.draw(st.sampled_from(self._alive()))
        if not call.go.done():
            call.go.set_result(None)

    @precondition(lambda self: self._alive())
    @rule(data=st.data())
    def is_cancelled(self, data: st.DataObject) -> None:
        _, task = data.draw(st.sampled_from(self._alive()))
        task.cancel()

    @precondition(lambda self: self.limit.waiting and any(call.running for call, _ in self._alive()))
    @rule(data=st.data())
    def is_cancelled_in_the_turn_of_its_admission(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from([call for call, _ in self._alive() if call.running]))
        if not call.go.done():
            call.go.set_result(None)
        self.loop.turn()
        waiting = [task for call, task in self._alive() if not call.ran]
        if waiting:
            data.draw(st.sampled_from(waiting)).cancel()

    @rule(seconds=st.sampled_from([1, 2]))
    def time_passes(self, seconds: int) -> None:
        self.loop.now += seconds + SLOT_SECONDS

    @rule(limit=st.integers(0, 4))
    def limit_changes(self, limit: int) -> None:
        self.highest = max(self.highest, limit)
        self.limit.limit = limit

    @rule()
    def settles(self) -> None:
        """Let everything happen that can: then every permit belongs to a function that runs."""
        self.loop.settle()
        alive = self._alive()
        running = [call for call, _ in alive if call.running]
        assert self.limit.in_flight == len(running), "a permit was lost, or released twice"
        assert self.limit.waiting == len(alive) - len(running), "a call is neither running nor in the queue"
        assert not self.limit.waiting or len(running) >= self.limit.limit, "a permit is free, and calls wait"
        late = self.loop.now - 2 * SLOT_SECONDS
        assert all(call.deadline is None or call.deadline > late for call, _ in alive if not call.ran)

    @invariant()
    def the_limit_holds(self) -> None:
        if hasattr(self, "calls"):
            assert sum(call.running for call, _ in self.calls) <= self.highest
            assert 0 <= self.limit.in_flight <= self.highest
            assert not self.bugs, self.bugs

    def teardown(self) -> None:
        if not hasattr(self, "calls"):
            return
        try:
            self.settles()
            self.limit.limit = 4
            for _ in range(3):
                for call, _ in self._alive():
                    if not call.go.done():
                        call.go.set_result(None)
                self.settles()
            assert not self._alive(), "a call waits for ever"
            assert (self.limit.in_flight, self.limit.waiting) == (0, 0)
            for call, task in self.calls:
                error = None if task.cancelled() else task.exception()
                assert error is None or isinstance(error, ResourceExhausted | DeadlineExceeded), error
                assert error is None or not call.ran or call.deadline is not None, "it ran and was refused"
            assert not self.bugs, self.bugs
        finally:
            for _, task in self._alive():
                task.cancel()
            self.loop.settle()
            self.loop.close()

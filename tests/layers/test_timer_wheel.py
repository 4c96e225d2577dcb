"""Timer wheel: never early, at most a slot late, and no cancelled timer expires."""

import asyncio
from time import monotonic

from hypothesis import given
from hypothesis import strategies as st

from mesh.layers.timer_wheel import SLOT_SECONDS, TaskTimeout, TimerWheel, timer_wheel


class Clock:
    """An event loop that has timers only: time passes when it is told."""

    def __init__(self):
        self.now = 100.0
        self.timers = []

    def time(self):
        return self.now

    def call_at(self, when, function):
        timer = [when, function, False]
        self.timers.append(timer)

        class Handle:
            def cancel(self):
                timer[2] = True

        return Handle()

    def go(self, until):
        while True:
            live = [timer for timer in self.timers if not timer[2] and timer[0] <= until]
            if not live:
                break
            first = min(live, key=lambda timer: timer[0])
            first[2] = True
            self.now = max(self.now, first[0])
            first[1]()
        self.now = until


class Target:
    def __init__(self, clock):
        self.clock = clock
        self.at = None

    def expire(self):
        assert self.at is None
        self.at = self.clock.now


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3), st.none() | st.floats(0, 3)), max_size=40))
def test_each_timeout_is_told_once_in_its_slot_unless_called_off(plan):
    clock = Clock()
    turning = TimerWheel(clock)
    moments = sorted(
        [(begin, 0, number) for number, (begin, _, _) in enumerate(plan)]
        + [(begin + off, 1, number) for number, (begin, _, off) in enumerate(plan) if off is not None]
    )
    timed = [Target(clock) for _ in plan]
    slots, off_at = {}, {}
    for moment, kind, number in moments:
        clock.go(100 + moment)
        if kind == 0:
            slots[number] = turning.add(clock.now + plan[number][1], timed[number])
        else:
            slots[number].discard(timed[number])
            off_at[number] = clock.now
    clock.go(200)
    for number, (begin, wait, _) in enumerate(plan):
        due = 100 + begin + wait
        at = timed[number].at
        if at is None:
            assert off_at[number] <= due + SLOT_SECONDS + 1e-6
        else:
            assert due - 1e-9 <= at <= due + SLOT_SECONDS + 1e-6
            assert number not in off_at or off_at[number] >= at


async def test_a_limit_cancels_its_task_and_says_whether_it_was_alone():
    async def run():
        limit = TaskTimeout(asyncio.current_task())
        began = monotonic()
        slot = timer_wheel().add(began + 0.02, limit)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return limit.sole_cause, monotonic() - began >= 0.02
        finally:
            slot.discard(limit)
            limit.uncancel()

    task = asyncio.create_task(run())
    assert await task == (True, True)
    assert task.cancelling() == 0


async def test_a_wheel_is_of_its_loop_and_goes_with_it():
    mine = timer_wheel()
    assert timer_wheel() is mine

    async def other():
        return timer_wheel()

    def elsewhere():
        return asyncio.run(other())

    theirs = await asyncio.to_thread(elsewhere)
    assert theirs is not mine
    assert timer_wheel() is mine
